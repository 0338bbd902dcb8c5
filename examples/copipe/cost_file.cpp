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
#include <set>
#include <vector>

namespace {

using nlohmann::json;

json parsed(std::string const& text, std::string const& path) {
    try {
        return json::parse(text);
    } catch (json::parse_error const& wrong) {
        std::size_t const at = std::min(wrong.byte > 0 ? wrong.byte - 1 : 0, text.size());
        auto const here = text.begin() + static_cast<std::ptrdiff_t>(at);
        auto const line = 1 + std::count(text.begin(), here, '\n');
        auto const start = text.rfind('\n', at == 0 ? 0 : at - 1);
        std::size_t const column = at - (at == 0 || start == std::string::npos ? 0 : start + 1) + 1;
        throw usage_error(path + ":" + std::to_string(line) + ":" + std::to_string(column) + ": this is not JSON");
    }
}

/// One object of the file; remembers which keys were asked for.
class object {
public:
    object(json const& from, std::string place) : from_(from), place_(std::move(place)) {
        if (!from.is_object()) throw usage_error(place_ + ": expected an object in braces");
    }

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
            throw usage_error(place_ + ": \"" + key + "\" must be one number or " + std::to_string(count) + ", not " +
                              std::to_string(values.size()));
        return values;
    }

    json list(std::string const& key) {
        known_.insert(key);
        auto const found = from_.find(key);
        if (found == from_.end()) return json::array();
        if (!found->is_array()) throw usage_error(place_ + ": \"" + key + "\" must be a list");
        return *found;
    }

    int rank(std::string const& key, int ranks) {
        double const value = number(key, -1);
        if (value < 0 || value >= ranks || value != std::floor(value))
            throw usage_error(place_ + ": \"" + key + "\" must be a rank from 0 to " + std::to_string(ranks - 1));
        return static_cast<int>(value);
    }

    /// Call last: a key that nobody asked for is a mistake.
    void nothing_else() const {
        for (auto const& [key, value] : from_.items())
            if (!known_.contains(key)) throw usage_error(place_ + ": there is no key \"" + key + "\"");
    }

private:
    double checked(json const& value, std::string const& key, bool above_zero) const {
        double const number = value.is_number() ? value.get<double>() : -1;
        if (!(number >= 0) || (above_zero && number == 0))
            throw usage_error(place_ + ": \"" + key + "\" must be a number " +
                              (above_zero ? "above 0" : "of at least 0"));
        return number;
    }

    json const& from_;
    std::string place_;
    std::set<std::string> known_;
};

} // namespace

std::string contents_of(std::string const& path) {
    if (path == "-") return {std::istreambuf_iterator<char>{std::cin}, {}};
    if (std::filesystem::is_directory(path)) throw usage_error(path + ": this is a folder");
    std::ifstream file{path, std::ios::binary};
    std::string text{std::istreambuf_iterator<char>{file}, {}};
    if (!file.is_open() || file.bad()) throw usage_error(path + ": cannot read this file");
    return text;
}

copipe::cost_table read_costs(std::string const& path, copipe::placement const& where, int micro_batches) {
    json const document = parsed(contents_of(path), path);
    object file{document, path};
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
        object link{each, path + ": in \"links\""};
        costs.links.push_back({.from = link.rank("from", where.ranks),
                               .to = link.rank("to", where.ranks),
                               .latency = link.number("latency", costs.every.latency),
                               .bandwidth = link.number("bandwidth", costs.every.bandwidth, true)});
        link.nothing_else();
    }
    file.nothing_else();
    return costs;
}
