// SPDX-License-Identifier: Apache-2.0
#include "brute_force.hpp"
#include "catch.hpp"
#include "copipe/schedule/sequential.hpp"
#include "copipe/schedule/verify.hpp"

using namespace copipe;

static_assert(verify(sequential{}, shape{1, 5}));

TEST_CASE("sequential runs the backward of each micro-batch right after its forward") {
    CHECK(brute_force::rows(programs(sequential{}, {1, 3})) == "0F0,0B0,0F1,0B1,0F2,0B2\n");
    CHECK(verify(sequential{}, shape{1, 100}).peak == std::vector{1});
}
