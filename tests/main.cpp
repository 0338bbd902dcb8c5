// SPDX-License-Identifier: Apache-2.0
// The main function of the tests, for a Catch2 2 whose package brings none.
#define CATCH_CONFIG_MAIN
#include <catch2/catch.hpp>
