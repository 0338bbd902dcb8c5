// SPDX-License-Identifier: Apache-2.0
// Reads the JSON files that `copipe partition` and `copipe experts` solve, and says in one line what is wrong with one.
#pragma once

#include "copipe/balance/bottleneck.hpp"
#include "copipe/balance/row.hpp"
#include "copipe/error.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>

namespace command {

using json = nlohmann::ordered_json;

/// A file, option or value that cannot be used; the sentence begins with where it is.
class input_error : public copipe::error {
public:
    input_error(std::string const& where, std::string const& sentence) : error(where + ": " + sentence) {}
};

/// The contents of a file. Throws input_error.
inline std::string read_text(std::string const& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file || std::filesystem::is_directory(path)) throw input_error(path, "cannot be read; give a file of JSON.");
    return {std::istreambuf_iterator<char>(file), {}};
}

/// The contents of a file of JSON. Throws input_error, with the line and column of what is no JSON.
inline json read_json(std::string const& path) {
    auto const text = read_text(path);
    try {
        return json::parse(text);
    } catch (json::parse_error const& wrong) {
        std::string_view const before = std::string_view(text).substr(0, wrong.byte > 0 ? wrong.byte - 1 : 0);
        auto const line = std::count(before.begin(), before.end(), '\n') + 1;
        auto const column = before.size() - (before.rfind('\n') + 1) + 1;
        std::string why = wrong.what();
        why = why.substr(why.find(": ") + 2); // without nlohmann's own position
        throw input_error(path + ":" + std::to_string(line) + ":" + std::to_string(column),
                          "not JSON: " + why.substr(0, why.find("; last read")) + ".");
    } catch (json::out_of_range const& wrong) {
        std::string const why = wrong.what();
        throw input_error(path, "the number " + why.substr(why.find('\'')) + " is too large.");
    }
}

/// `1 rank`, `2 ranks`.
inline std::string counted(int count, std::string const& what) {
    return std::to_string(count) + " " + what + (count == 1 ? "" : "s");
}

/// A value of a file, with its path in it; throws input_error unless it is what is asked for.
class input {
public:
    input(std::string file, json const& value, std::string path = "")
        : file_(std::move(file)), value_(&value), path_(std::move(path)) {}

    [[nodiscard]] json const& value() const noexcept { return *value_; }
    [[noreturn]] void refuse(std::string const& sentence) const {
        throw input_error(file_, (path_.empty() ? "" : path_ + ": ") + sentence);
    }

    [[nodiscard]] bool has(char const* name) const {
        if (!value_->is_object()) refuse("must be an object, in braces.");
        return value_->contains(name);
    }
    [[nodiscard]] input operator[](char const* name) const {
        if (!has(name)) refuse("lacks `" + std::string(name) + "`.");
        return {file_, (*value_)[name], path_.empty() ? name : path_ + "." + name};
    }
    /// An array, of `length` elements unless that is -1.
    [[nodiscard]] copipe::row<input> elements(int length = -1) const {
        if (!value_->is_array()) refuse("must be an array, in brackets.");
        copipe::row<input> found;
        for (auto const& element : *value_)
            found.emplace_back(file_, element, path_ + "[" + std::to_string(found.size()) + "]");
        if (length >= 0 && found.count() != length)
            refuse("has " + counted(found.count(), "element") + " where " + std::to_string(length) + " belong.");
        return found;
    }
    [[nodiscard]] copipe::ticks whole(copipe::ticks least, copipe::ticks most = 1'000'000'000'000'000'000) const {
        bool const fits = value_->is_number_integer() && value_->get<double>() < 2e18;
        auto const number = fits ? value_->get<copipe::ticks>() : least - 1;
        if (number < least || number > most)
            refuse_type("a whole number from " + std::to_string(least) + " to " + std::to_string(most));
        return number;
    }
    [[nodiscard]] int count(int least) const { return static_cast<int>(whole(least, 1'000'000)); }
    [[nodiscard]] copipe::row<copipe::ticks> wholes(int length, copipe::ticks least = 0) const {
        copipe::row<copipe::ticks> numbers;
        for (auto const& element : elements(length)) numbers.push_back(element.whole(least));
        return numbers;
    }
    [[nodiscard]] double number() const {
        if (!value_->is_number()) refuse_type("a number");
        return value_->get<double>();
    }
    [[nodiscard]] bool flag() const {
        if (!value_->is_boolean()) refuse_type("true or false");
        return value_->get<bool>();
    }
    [[nodiscard]] std::string text() const {
        if (!value_->is_string()) refuse_type("a string");
        return value_->get<std::string>();
    }

private:
    /// Says what was expected, and what is there unless that can be of any length.
    [[noreturn]] void refuse_type(std::string const& expected) const {
        std::string const found = value_->is_structured() ? value_->type_name() : value_->dump();
        refuse("must be " + expected + ", not " + found + ".");
    }

    std::string file_;
    json const* value_;
    std::string path_;
};

/// The cases of a file: `{"cases": [...]}`, or one case alone.
inline copipe::row<input> cases_of(json const& contents, std::string const& file) {
    input const whole(file, contents);
    return whole.has("cases") ? whole["cases"].elements() : copipe::row<input>{whole};
}

/// The `id` of a case, or else its number in the file.
inline json id_of(input const& one, int number) {
    if (!one.has("id")) return number;
    if (one["id"].value().is_structured()) one["id"].refuse("must be a number or a string.");
    return one["id"].value();
}

} // namespace command
