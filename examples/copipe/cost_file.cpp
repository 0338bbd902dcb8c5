// SPDX-License-Identifier: Apache-2.0
#include "cost_file.hpp"

#include "options.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <map>
#include <set>
#include <string>
#include <system_error>
#include <vector>

namespace {

using nlohmann::json;

/// Where the keys of an object stand in the text; under no name, the object itself.
using key_places = std::map<std::string, std::size_t>;

/// The file's text as JSON, and where it says what.
class document {
public:
    explicit document(std::string const& path) : path_(path), text_(contents_of(path)) {
        char const* reached = text_.data();
        auto const place_keys = [&](int depth, json::parse_event_t event, json const& parsed) {
            bool const opens = event == json::parse_event_t::object_start;
            if (opens && depth == 2) links_.emplace_back();
            bool const in_root = depth == (opens ? 0 : 1), in_link = depth == (opens ? 2 : 3) && !links_.empty();
            if ((opens || event == json::parse_event_t::key) && (in_root || in_link))
                (in_root ? keys_ : links_.back())[opens ? "" : parsed.get<std::string>()] =
                    static_cast<std::size_t>(reached - text_.data()) - (opens ? 1 : parsed.dump().size());
            return true;
        };
        try {
            root_ = json::parse(cursor{text_.data(), &reached}, cursor{text_.data() + text_.size(), &reached},
                                place_keys);
        } catch (json::out_of_range const&) {
            fail(static_cast<std::size_t>(reached - text_.data()) - 1, "the number that ends here is too large");
        } catch (json::exception const&) {
            fail(static_cast<std::size_t>(reached - text_.data()) - 1, "this is not JSON");
        }
    }

    [[nodiscard]] json const& root() const { return root_; }
    [[nodiscard]] key_places const& keys() const { return keys_; }
    /// Of the n-th object in a list of the root.
    [[nodiscard]] key_places const& link_keys(std::size_t n) const { return links_.at(n); }

    /// Throws `usage_error` with the line and column of the character at `place`.
    [[noreturn]] void fail(std::size_t place, std::string const& why) const {
        std::string const before = text_.substr(0, std::min(place, text_.size())); // of no text, place is out of range
        auto const line = 1 + std::count(before.begin(), before.end(), '\n');
        std::size_t const column = before.size() - (before.rfind('\n') + 1) + 1;
        throw usage_error(path_ + ":" + std::to_string(line) + ":" + std::to_string(column) + ": " + why);
    }

private:
    /// Notes how far the text has been read.
    struct cursor {
        using iterator_category = std::input_iterator_tag;
        using value_type = char;
        using difference_type = std::ptrdiff_t;
        using pointer = char const*;
        using reference = char const&;

        char const* at;
        char const** reached;

        reference operator*() const { return *at; }
        cursor& operator++() {
            *reached = ++at;
            return *this;
        }
        cursor operator++(int) {
            cursor const before = *this;
            ++*this;
            return before;
        }
        bool operator==(cursor const& other) const { return at == other.at; }
        bool operator!=(cursor const& other) const { return at != other.at; }
    };

    std::string path_, text_;
    json root_;
    key_places keys_;
    std::vector<key_places> links_;
};

/// One object of the file; remembers which keys were asked for.
class object {
public:
    object(json const& from, document const& file, key_places const& places)
        : from_(from), file_(file), places_(places) {}

    double number(std::string const& key, double otherwise, bool above_zero = false) {
        known_.insert(key);
        auto const found = from_.find(key);
        return found == from_.end() ? otherwise : checked(*found, key, above_zero);
    }

    std::vector<double> numbers(std::string const& key, double otherwise, std::size_t count) {
        known_.insert(key);
        auto const found = from_.find(key);
        if (found == from_.end()) return std::vector(count, otherwise);
        if (!found->is_array()) return std::vector(count, checked(*found, key, false));
        std::vector<double> values;
        for (json const& each : *found) values.push_back(checked(each, key, false));
        if (values.size() != count)
            fail(key, " must be one number or " + std::to_string(count) + ", not " + std::to_string(values.size()));
        return values;
    }

    json list(std::string const& key) {
        known_.insert(key);
        auto const found = from_.find(key);
        if (found == from_.end()) return json::array();
        if (!found->is_array()) fail(key, " must be a list");
        return *found;
    }

    int rank(std::string const& key, int ranks) {
        double const value = number(key, -1);
        if (value < 0 || value >= ranks || value != std::floor(value))
            fail(key, " must be a rank from 0 to " + std::to_string(ranks - 1));
        return static_cast<int>(value);
    }

    /// Call last: a key that nobody asked for is a mistake.
    void nothing_else() const {
        for (auto const& [key, value] : from_.items())
            if (!known_.contains(key)) file_.fail(places_.at(key), "there is no key " + json(key).dump());
    }

    /// Throws `usage_error` with the place of the key.
    [[noreturn]] void fail(std::string const& key, std::string const& why) const {
        auto const found = places_.find(key);
        file_.fail(found == places_.end() ? places_.at("") : found->second, json(key).dump() + why);
    }

private:
    double checked(json const& value, std::string const& key, bool above_zero) const {
        double const number = value.is_number() ? value.get<double>() : -1;
        if (!(number >= 0) || (above_zero && number == 0))
            fail(key, std::string(" must be a number ") + (above_zero ? "above 0" : "of at least 0"));
        return number;
    }

    json const& from_;
    document const& file_;
    key_places const& places_;
    std::set<std::string> known_;
};

} // namespace

std::string contents_of(std::string const& path) {
    if (path == "-") return {std::istreambuf_iterator<char>{std::cin}, {}};
    std::error_code unknown;
    if (std::filesystem::is_directory(path, unknown)) throw usage_error(path + ": this is a folder");
    std::ifstream file{path, std::ios::binary};
    std::string text{std::istreambuf_iterator<char>{file}, {}};
    if (!file.is_open() || file.bad()) throw usage_error(path + ": cannot read this file");
    return text;
}

copipe::cost_table read_costs(std::string const& path, copipe::placement const& where, int micro_batches) {
    document const read{path};
    if (!read.root().is_object()) read.fail(0, "expected an object in braces");
    object file{read.root(), read, read.keys()};
    auto const stages = static_cast<std::size_t>(where.stages());
    auto const per_stage = static_cast<std::size_t>(where.micro_batches_per_stage(micro_batches));
    auto const forward = file.numbers("forward", 1, stages), input = file.numbers("backward_input", 1, stages);
    auto const weight = file.numbers("weight", 1, stages), bytes = file.numbers("message_bytes", 0, stages);
    double const no_limit = std::numeric_limits<double>::infinity();

    copipe::cost_table costs{.where = where, .stages = {}};
    for (std::size_t i = 0; i < stages; ++i) costs.stages.push_back({forward[i], input[i], weight[i], bytes[i]});
    costs.micro_batches = file.numbers("micro_batches", 1, per_stage);
    costs.overlap = file.number("overlap_factor", 1);
    costs.every.latency = file.number("latency", 0);
    costs.every.bandwidth = file.number("bandwidth", no_limit, true);
    for (json const& each : file.list("links")) {
        if (!each.is_object()) file.fail("links", " must be a list of objects in braces");
        object link{each, read, read.link_keys(costs.links.size())};
        costs.links.push_back({.from = link.rank("from", where.ranks),
                               .to = link.rank("to", where.ranks),
                               .latency = link.number("latency", costs.every.latency),
                               .bandwidth = link.number("bandwidth", costs.every.bandwidth, true)});
        link.nothing_else();
        auto const neighbours = peers(where, costs.links.back().from);
        if (std::find(neighbours.begin(), neighbours.end(), costs.links.back().to) == neighbours.end())
            link.fail("to", ": rank " + std::to_string(costs.links.back().from) + " sends nothing to rank " +
                                std::to_string(costs.links.back().to));
    }
    file.nothing_else();
    return costs;
}
