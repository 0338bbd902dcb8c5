// SPDX-License-Identifier: Apache-2.0
// Catch2, whichever major version is installed, under the names that both share.
#pragma once

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using Catch::Approx;
#else
#include <catch2/catch.hpp>
#endif
