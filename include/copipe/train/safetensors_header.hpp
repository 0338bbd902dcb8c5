// SPDX-License-Identifier: Apache-2.0
// Reads the header of a safetensors file: a strict reader of the little JSON that it may be.
#pragma once

#include "copipe/train/safetensors_entry.hpp"
#include "copipe/train/utf8.hpp"

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace copipe {

/// What a header says, in its own order.
struct safetensors_header {
    std::vector<tensor_entry> entries{};
    std::map<std::string, std::string> metadata{};
};

/// Reads a header. A hand-written reader sees what general ones let pass: names that occur twice, fields that are
/// missing or too many, numbers that are not plain counts.
template <class = void> class safetensors_header_reader {
public:
    safetensors_header_reader(std::string const& file, std::string_view text) : file_(file), text_(text) {}

    /// Throws `safetensors_error`.
    [[nodiscard]] safetensors_header read() {
        safetensors_header header;
        members([&](std::string name) {
            if (name == "__metadata__") {
                if (std::exchange(has_metadata_, true)) fail("__metadata__ occurs twice");
                members([&](std::string key) {
                    std::string value = string();
                    if (!header.metadata.emplace(std::move(key), std::move(value)).second) fail("a key occurs twice");
                });
            } else {
                header.entries.push_back(entry(std::move(name)));
            }
        });
        space();
        if (at_ != text_.size()) fail("there is more after its end");
        return header;
    }

private:
    [[noreturn]] void fail(std::string const& why) const {
        std::string const place = "at byte " + std::to_string(at_) + " of its header ";
        throw safetensors_error(file_, "", "is not a safetensors file: " + place + why);
    }

    tensor_entry entry(std::string name) {
        tensor_entry found{.name = std::move(name), .dtype = {}};
        std::vector<std::uint64_t> offsets;
        int seen = 0;
        auto const once = [&](int field) {
            if (seen & field) fail("a field of tensor " + found.name + " occurs twice");
            seen |= field;
        };
        members([&](std::string const& field) {
            if (field == "dtype") {
                once(1);
                found.dtype = string();
            } else if (field == "shape") {
                once(2);
                found.shape = counts();
            } else if (field == "data_offsets") {
                once(4);
                offsets = counts();
            } else {
                fail("tensor " + found.name + " has an unknown field " + field);
            }
        });
        if (seen != 7) fail("tensor " + found.name + " lacks one of dtype, shape and data_offsets");
        if (offsets.size() != 2) fail("the data_offsets of tensor " + found.name + " are not two numbers");
        found.begin = offsets[0];
        found.end = offsets[1];
        return found;
    }

    /// An object: calls `take(name)` for each member, which reads its value.
    template <class Take>
    void members(Take const& take) {
        expect('{');
        if (skip('}')) return;
        do {
            space();
            std::string name = string();
            expect(':');
            take(std::move(name));
        } while (skip(','));
        expect('}');
    }

    std::vector<std::uint64_t> counts() {
        std::vector<std::uint64_t> found;
        expect('[');
        if (skip(']')) return found;
        do {
            space();
            found.push_back(count());
        } while (skip(','));
        expect(']');
        return found;
    }

    std::uint64_t count() {
        std::uint64_t value = 0;
        char const* const begin = text_.data() + at_;
        auto const [end, failure] = std::from_chars(begin, text_.data() + text_.size(), value);
        if (failure == std::errc::result_out_of_range) fail("a number is too large");
        if (failure != std::errc{} || (*begin == '0' && end - begin > 1)) fail("a count is expected");
        at_ += static_cast<std::size_t>(end - begin);
        return value;
    }

    std::string string() {
        expect('"');
        std::string found;
        for (;;) {
            if (at_ == text_.size() || static_cast<unsigned char>(text_[at_]) < 0x20) fail("a string does not end");
            char const c = text_[at_++];
            if (c == '"') break;
            if (c == '\\') escape(found);
            else found += c;
        }
        if (!is_utf8(found)) fail("a string before this is not UTF-8");
        return found;
    }

    void escape(std::string& to) {
        constexpr std::string_view letters = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
        char const letter = at_ < text_.size() ? text_[at_++] : '\0';
        if (auto const plain = letters.find(letter); plain != std::string_view::npos) {
            to += meanings[plain];
        } else if (letter == 'u') {
            std::uint32_t code = hex4();
            if (code >= 0xd800 && code < 0xdc00 && text_.substr(at_, 2) == "\\u") {
                at_ += 2;
                std::uint32_t const low = hex4();
                if (low < 0xdc00 || low >= 0xe000) fail("the other half of a surrogate pair is missing");
                code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
            }
            append_utf8(to, code);
        } else {
            fail("an escape is unknown");
        }
    }

    std::uint32_t hex4() {
        std::uint32_t code = 0;
        char const* const begin = text_.data() + at_;
        char const* const end = begin + std::min<std::size_t>(4, text_.size() - at_);
        if (end - begin != 4 || std::from_chars(begin, end, code, 16).ptr != end) fail("four hex digits are expected");
        at_ += 4;
        return code;
    }

    void space() {
        at_ = std::min(text_.find_first_not_of(" \t\n\r", at_), text_.size());
    }
    bool skip(char wanted) {
        space();
        bool const found = at_ < text_.size() && text_[at_] == wanted;
        at_ += found ? 1 : 0;
        return found;
    }
    void expect(char wanted) {
        if (!skip(wanted)) fail(std::string("there is no ") + wanted);
    }

    std::string const& file_;
    std::string_view text_;
    std::size_t at_ = 0;
    bool has_metadata_ = false;
};

} // namespace copipe
