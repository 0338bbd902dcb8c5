// SPDX-License-Identifier: Apache-2.0
// CHECK_THROWS_WITH(f(), says("this") && says("that")): the message contains the words.
#pragma once

#include "catch.hpp"

#include <string>

inline auto says(std::string const& words) {
#if __has_include(<catch2/catch_all.hpp>)
    return Catch::Matchers::ContainsSubstring(words);
#else
    return Catch::Matchers::Contains(words);
#endif
}
