// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "copipe/train/utf8.hpp"

using namespace copipe;

TEST_CASE("every code point survives, but no half of a surrogate pair") {
    // Three boundaries of length, both sides of the surrogates, and the last code point, against their known bytes.
    struct known {
        std::uint32_t code;
        std::string bytes;
    };
    for (auto const& [code, bytes] :
         {known{0x00, std::string(1, '\0')}, known{0x7f, "\x7f"}, known{0x80, "\xc2\x80"}, known{0x7ff, "\xdf\xbf"},
          known{0x800, "\xe0\xa0\x80"}, known{0xd7ff, "\xed\x9f\xbf"}, known{0xe000, "\xee\x80\x80"},
          known{0xffff, "\xef\xbf\xbf"}, known{0x10000, "\xf0\x90\x80\x80"}, known{0x10ffff, "\xf4\x8f\xbf\xbf"}}) {
        std::string text;
        append_utf8(text, code);
        CHECK(text == bytes);
        CHECK(is_utf8(text));
    }
    for (std::uint32_t code = 0; code < 0x110000; ++code) {
        std::string text;
        append_utf8(text, code);
        if (is_utf8(text) != (code < 0xd800 || code > 0xdfff)) FAIL("code point " << code);
    }
}

TEST_CASE("what only looks like UTF-8 is refused") {
    for (std::string const text : {"\x80", "\xbf", "\xc2", "\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xf0\x8f\xbf\xbf",
                                   "\xf4\x90\x80\x80", "\xf8\x88\x80\x80\x80", "\xff", "a\xe2\x82", "\xe2\x28\xa1"})
        CHECK_FALSE(is_utf8(text));
    CHECK(is_utf8(""));
    CHECK(is_utf8("gr\u00fc\u00df \u20ac \U0001F600"));
}
