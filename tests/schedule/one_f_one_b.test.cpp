// SPDX-License-Identifier: Apache-2.0
#include "brute_force.hpp"
#include "catch.hpp"
#include "copipe/schedule/evaluate.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/verify.hpp"

using namespace copipe;

static_assert(verify(one_f_one_b{}, shape{4, 8}));

TEST_CASE("1F1B warms up with as many forwards as ranks follow and then alternates") {
    CHECK(brute_force::rows(programs(one_f_one_b{}, {4, 8})) ==
          "0F0,0F1,0F2,0F3,0B0,0F4,0B1,0F5,0B2,0F6,0B3,0F7,0B4,0B5,0B6,0B7\n"
          "1F0,1F1,1F2,1B0,1F3,1B1,1F4,1B2,1F5,1B3,1F6,1B4,1F7,1B5,1B6,1B7\n"
          "2F0,2F1,2B0,2F2,2B1,2F3,2B2,2F4,2B3,2F5,2B4,2F6,2B5,2F7,2B6,2B7\n"
          "3F0,3B0,3F1,3B1,3F2,3B2,3F3,3B3,3F4,3B4,3F5,3B5,3F6,3B6,3F7,3B7\n");
    CHECK(brute_force::rows(programs(one_f_one_b{}, {3, 1})) == "0F0,0B0\n1F0,1B0\n2F0,2B0\n");
}

TEST_CASE("1F1B idles as long as GPipe but holds at most P-r activations on rank r") {
    for (int ranks = 1; ranks <= 8; ++ranks)
        for (int const m : {1, 2, 5, 8, 19}) {
            auto const all = programs(one_f_one_b{}, {ranks, m});
            CHECK(evaluate(all, placement::single(ranks), m, uniform_costs{}).makespan == 3 * (m + ranks - 1));
            auto const found = verify(one_f_one_b{}, shape{ranks, m});
            for (int rank = 0; rank < ranks; ++rank)
                CHECK(found.peak[static_cast<std::size_t>(rank)] == std::min(ranks - rank, m));
            CHECK(brute_force::replay(all, placement::single(ranks), m).sound);
        }
}
