// SPDX-License-Identifier: Apache-2.0
#include "brute_force.hpp"
#include "catch.hpp"
#include "copipe/schedule/evaluate.hpp"
#include "copipe/schedule/gpipe.hpp"
#include "copipe/schedule/verify.hpp"

using namespace copipe;

static_assert(verify(gpipe{}, shape{4, 8}));

TEST_CASE("gpipe runs all forwards and then all backwards") {
    CHECK(brute_force::rows(programs(gpipe{}, {2, 3})) == "0F0,0F1,0F2,0B0,0B1,0B2\n"
                                                          "1F0,1F1,1F2,1B0,1B1,1B2\n");
}

TEST_CASE("gpipe idles (P-1)(F+B) on every rank and holds every activation") {
    for (int ranks = 1; ranks <= 8; ++ranks)
        for (int const m : {1, 2, 5, 8, 19}) {
            auto const all = programs(gpipe{}, {ranks, m});
            auto const told = evaluate(all, placement::single(ranks), m, uniform_costs{});
            CHECK(told.makespan == 3 * (m + ranks - 1));
            CHECK(told.bubble == std::vector<double>(static_cast<std::size_t>(ranks), 3 * (ranks - 1)));
            CHECK(verify(gpipe{}, shape{ranks, m}).peak == std::vector<int>(static_cast<std::size_t>(ranks), m));
            CHECK(brute_force::replay(all, placement::single(ranks), m).sound);
        }
}
