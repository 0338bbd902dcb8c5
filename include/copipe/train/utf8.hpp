// SPDX-License-Identifier: Apache-2.0
// UTF-8, in which the names in a safetensors file are written (RFC 3629).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace copipe {

/// Appends a code point below 0x110000.
template <class = void> void append_utf8(std::string& to, std::uint32_t code) {
    if (code < 0x80) {
        to += static_cast<char>(code);
        return;
    }
    int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    to += static_cast<char>((0xff00U >> (more + 1)) | (code >> (6 * more)));
    while (more-- > 0) to += static_cast<char>(0x80 | ((code >> (6 * more)) & 0x3f));
}

/// Every code point in its shortest form, none of them half of a surrogate pair or beyond Unicode.
template <class = void> [[nodiscard]] bool is_utf8(std::string_view text) noexcept {
    constexpr std::uint32_t least[] = {0, 0x80, 0x800, 0x10000};
    for (std::size_t at = 0; at < text.size();) {
        auto const first = static_cast<unsigned char>(text[at++]);
        if ((first >= 0x80 && first < 0xc0) || first >= 0xf8) return false;
        std::size_t const more = first < 0x80 ? 0 : first < 0xe0 ? 1 : first < 0xf0 ? 2 : 3;
        if (text.size() - at < more) return false;
        std::uint32_t code = more == 0 ? first : first & (0x3fU >> more);
        for (std::size_t i = 0; i < more; ++i) {
            auto const next = static_cast<unsigned char>(text[at++]);
            if ((next & 0xc0) != 0x80) return false;
            code = code << 6 | (next & 0x3f);
        }
        if (code < least[more] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return false;
    }
    return true;
}

} // namespace copipe
