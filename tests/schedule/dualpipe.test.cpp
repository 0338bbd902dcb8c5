// SPDX-License-Identifier: Apache-2.0
#include "brute_force.hpp"
#include "catch.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/evaluate.hpp"
#include "copipe/schedule/verify.hpp"

using namespace copipe;

static_assert(verify(dualpipe{}, shape{4, 10}));
static_assert(verify(dualpipe{}, shape{4, 10}).peak == std::vector{5, 5, 5, 5});
static_assert(evaluate(programs(dualpipe{}, {4, 10}), placement::bidirectional(4), 10, uniform_costs{.overlapped = 2})
                  .makespan == 26);

namespace {
double makespan(shape size, double pair) {
    return evaluate(programs(dualpipe{}, size), placement::bidirectional(size.ranks), size.micro_batches,
                    uniform_costs{.overlapped = pair})
        .makespan;
}
} // namespace

TEST_CASE("DualPipe's published order for 2 and 4 ranks") {
    CHECK(brute_force::rows(programs(dualpipe{}, {2, 4})) == "0F0,3F0,0F1,3B0,(3F1;0B0)OVERLAP_F_B,3B1,0I1,0W1\n"
                                                             "2F0,1F0,2F1,1B0,(1F1;2B0)OVERLAP_F_B,1B1,2I1,2W1\n");
    CHECK(brute_force::rows(programs(dualpipe{}, {4, 10})) ==
          "0F0,0F1,0F2,7F0,7I0,7W0,7F1,(0F3;7B1)OVERLAP_F_B,(7F2;0B0)OVERLAP_F_B,(0F4;7B2)OVERLAP_F_B,"
          "(7F3;0B1)OVERLAP_F_B,7B3,(7F4;0B2)OVERLAP_F_B,7B4,0I3,0W3,0I4,0W4\n"
          "1F0,6F0,1F1,6F1,1F2,6B0,(6F2;1B0)OVERLAP_F_B,(1F3;6B1)OVERLAP_F_B,(6F3;1B1)OVERLAP_F_B,(1F4;6B2)OVERLAP_F_B,"
          "(6F4;1B2)OVERLAP_F_B,6B3,1B3,6I4,1I4,6W4,1W4\n"
          "5F0,2F0,5F1,2F1,5F2,2B0,(2F2;5B0)OVERLAP_F_B,(5F3;2B1)OVERLAP_F_B,(2F3;5B1)OVERLAP_F_B,(5F4;2B2)OVERLAP_F_B,"
          "(2F4;5B2)OVERLAP_F_B,2B3,5B3,2I4,5I4,2W4,5W4\n"
          "4F0,4F1,4F2,3F0,3I0,3W0,3F1,(4F3;3B1)OVERLAP_F_B,(3F2;4B0)OVERLAP_F_B,(4F4;3B2)OVERLAP_F_B,"
          "(3F3;4B1)OVERLAP_F_B,3B3,(3F4;4B2)OVERLAP_F_B,3B4,4I3,4W3,4I4,4W4\n");
}

TEST_CASE("DualPipe's published makespans, without and with a gain from overlapping") {
    CHECK(makespan({2, 4}, 3) == 12);
    CHECK(makespan({2, 4}, 2) == 11);
    CHECK(makespan({4, 10}, 3) == 32);
    CHECK(makespan({4, 10}, 2) == 26);
    CHECK(makespan({8, 20}, 3) == 66);
    CHECK(makespan({8, 20}, 2) == 52);
}

TEST_CASE("DualPipe replays for every even number of ranks and holds at most P+1 activations") {
    for (int ranks = 2; ranks <= 12; ranks += 2)
        for (int const m : {2 * ranks, 2 * ranks + 2, 3 * ranks + 2, 6 * ranks}) {
            auto const all = programs(dualpipe{}, {ranks, m});
            auto const where = placement::bidirectional(ranks);
            auto const slow = brute_force::replay(all, where, m);
            INFO(ranks << " ranks, " << m << " micro-batches");
            CHECK(slow.sound);
            CHECK(slow.makespan == makespan({ranks, m}, 3));
            auto const found = verify(all, where, m);
            CHECK(found.why() == "");
            CHECK(found.peak == slow.peak);
            CHECK(*std::max_element(found.peak.begin(), found.peak.end()) == ranks + 1);
        }
}

TEST_CASE("DualPipe's two ends run mirror images of one program") {
    auto const all = programs(dualpipe{}, {6, 20});
    for (std::size_t rank = 0; rank < 6; ++rank) {
        auto const& near = all[rank];
        auto const& far = all[5 - rank];
        REQUIRE(near.size() == far.size());
        for (std::size_t i = 0; i < near.size(); ++i)
            for (std::size_t half = 0; half < near[i].chunks().size(); ++half) {
                auto const a = near[i].chunks()[half], b = far[i].chunks()[half];
                CHECK(chunk{a.what, (a.stage + 6) % 12, a.micro_batch} == b);
            }
    }
}
