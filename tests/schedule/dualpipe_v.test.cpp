// SPDX-License-Identifier: Apache-2.0
#include "brute_force.hpp"
#include "catch.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/evaluate.hpp"
#include "copipe/schedule/verify.hpp"

using namespace copipe;

static_assert(verify(dualpipe_v{}, shape{3, 7}));

namespace {
double makespan(shape size, double pair) {
    return evaluate(programs(dualpipe_v{}, size), placement::v(size.ranks), size.micro_batches,
                    uniform_costs{.overlapped = pair})
        .makespan;
}
} // namespace

TEST_CASE("DualPipeV's published order for 2 ranks") {
    CHECK(brute_force::rows(programs(dualpipe_v{}, {2, 4})) ==
          "0F0,0F1,0F2,3F0,3I0,3W0,3F1,(0F3;3B1)OVERLAP_F_B,(3F2;0B0)OVERLAP_F_B,3B2,"
          "(3F3;0B1)OVERLAP_F_B,3B3,0I2,0W2,0I3,0W3\n"
          "1F0,2F0,1F1,2F1,1F2,2B0,(2F2;1B0)OVERLAP_F_B,(1F3;2B1)OVERLAP_F_B,"
          "(2F3;1B1)OVERLAP_F_B,2B2,1B2,2I3,1I3,2W3,1W3\n");
}

TEST_CASE("DualPipeV's published order on a rank before the middle of 4") {
    CHECK(brute_force::rows({dualpipe_v{}.program({4, 10}, 2)}) ==
          "2F0,2F1,2F2,5F0,2F3,5F1,2F4,5F2,5I0,5W0,5F3,(2F5;5B1)OVERLAP_F_B,(5F4;2B0)OVERLAP_F_B,(2F6;5B2)OVERLAP_F_B,"
          "(5F5;2B1)OVERLAP_F_B,(2F7;5B3)OVERLAP_F_B,(5F6;2B2)OVERLAP_F_B,(2F8;5B4)OVERLAP_F_B,(5F7;2B3)OVERLAP_F_B,"
          "(2F9;5B5)OVERLAP_F_B,(5F8;2B4)OVERLAP_F_B,5B6,(5F9;2B5)OVERLAP_F_B,"
          "5B7,2B6,5B8,2I7,5I9,2I8,2W7,2I9,5W9,2W8,2W9\n");
}

TEST_CASE("DualPipeV's published makespans, without and with a gain from overlapping") {
    CHECK(makespan({2, 4}, 3) == 26);
    CHECK(makespan({2, 4}, 2) == 22);
    CHECK(makespan({4, 10}, 3) == 66);
    CHECK(makespan({4, 10}, 2) == 52);
}

TEST_CASE("DualPipeV replays on any number of ranks and holds at most 2P+1 chunks") {
    for (int ranks = 1; ranks <= 9; ++ranks)
        for (int const m : {2 * ranks, 2 * ranks + 1, 3 * ranks + 2, 5 * ranks}) {
            auto const all = programs(dualpipe_v{}, {ranks, m});
            auto const slow = brute_force::replay(all, placement::v(ranks), m);
            INFO(ranks << " ranks, " << m << " micro-batches");
            CHECK(slow.sound);
            CHECK(slow.makespan == makespan({ranks, m}, 3));
            auto const found = verify(all, placement::v(ranks), m);
            CHECK(found.why() == "");
            CHECK(found.peak == slow.peak);
            CHECK(*std::max_element(found.peak.begin(), found.peak.end()) <= 2 * ranks + 1);
        }
}
