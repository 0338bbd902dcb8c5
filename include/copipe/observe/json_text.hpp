// SPDX-License-Identifier: Apache-2.0
// The few pieces of JSON that copipe writes, appended to a string.
#pragma once

#include <array>
#include <charconv>
#include <cmath>
#include <string>
#include <string_view>

namespace copipe {

/// Appends a string in quotes, with what JSON forbids in it escaped.
inline void append_json(std::string& out, std::string_view text) {
    constexpr std::string_view hex = "0123456789abcdef";
    out += '"';
    for (char const c : text) {
        if (c == '"' || c == '\\') {
            (out += '\\') += c;
        } else if (auto const code = static_cast<unsigned char>(c); code < 0x20) {
            ((out += "\\u00") += hex[code >> 4]) += hex[code & 15];
        } else {
            out += c;
        }
    }
    out += '"';
}

/// Appends the shortest number that reads back as the same double; null for infinities and NaN, which JSON lacks.
inline void append_json(std::string& out, double value) {
    if (!std::isfinite(value)) {
        out += "null";
        return;
    }
    std::array<char, 32> digits;
    auto const end = std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr;
    out.append(digits.data(), end);
}

} // namespace copipe
