// SPDX-License-Identifier: Apache-2.0
#include "brute_force.hpp"
#include "catch.hpp"
#include "copipe/schedule/evaluate.hpp"
#include "copipe/schedule/interleaved_zero_bubble.hpp"
#include "copipe/schedule/verify.hpp"

using namespace copipe;

static_assert(verify(interleaved_zero_bubble<2>{}, shape{4, 8}).peak == std::vector{8, 8, 8, 8});

TEST_CASE("the interleaved zero-bubble schedule's published order on its second rank") {
    CHECK(brute_force::rows({interleaved_zero_bubble<2>{}.program({4, 8}, 1)}) ==
          "1F0,1F1,1F2,1F3,5F0,5F1,5F2,5I0,5F3,5I1,5W0,1F4,5I2,5W1,1F5,5I3,5W2,1F6,1I0,5W3,1F7,1I1,1W0,5F4,1I2,1W1,"
          "5F5,1I3,1W2,5F6,5I4,1W3,5F7,5I5,5W4,5I6,5W5,5I7,5W6,1I4,5W7,1I5,1W4,1I6,1W5,1I7,1W6,1W7\n");
}

TEST_CASE("the interleaved zero-bubble schedule idles (P-1)(F+I-W) of a chunk") {
    for (int ranks = 2; ranks <= 8; ranks += 2)
        for (int chunks = 2; chunks <= 4; ++chunks) {
            int const m = 2 * ranks;
            auto const all = programs(interleaved_zero_bubble<>{.chunks = chunks}, {ranks, m});
            auto const told = evaluate(all, placement::loop(ranks, chunks), m, uniform_costs{});
            CHECK(told.makespan == 3 * m * chunks + (ranks - 1));
        }
}

TEST_CASE("interleaved zero-bubble schedules replay for every shape that they accept") {
    for (int ranks = 1; ranks <= 6; ++ranks)
        for (int m = 1; m <= 14; ++m)
            for (int chunks = 1; chunks <= 4; ++chunks) {
                interleaved_zero_bubble<> const policy{.chunks = chunks};
                if (!refusal(policy, {ranks, m}).empty()) continue;
                INFO(ranks << " ranks, " << m << " micro-batches, " << chunks << " chunks");
                CHECK(brute_force::replay(programs(policy, {ranks, m}), placement::loop(ranks, chunks), m).sound);
            }
}
