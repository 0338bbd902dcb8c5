// SPDX-License-Identifier: Apache-2.0
#include "brute_force.hpp"
#include "catch.hpp"
#include "copipe/schedule/evaluate.hpp"
#include "copipe/schedule/interleaved.hpp"
#include "copipe/schedule/verify.hpp"

using namespace copipe;

static_assert(verify(interleaved<2>{}, shape{4, 8}));
static_assert(verify(interleaved<2>{}, shape{4, 8}).peak == std::vector{11, 9, 7, 5});
static_assert(verify(interleaved_overlapped<2>{}, shape{4, 8}).peak == std::vector{12, 10, 8, 6});

TEST_CASE("interleaved 1F1B's published order for 4 ranks of 2 chunks") {
    CHECK(brute_force::rows(programs(interleaved<2>{}, {4, 8})) ==
          "0F0,0F1,0F2,0F3,4F0,4F1,4F2,4F3,0F4,0F5,0F6,4B0,0F7,4B1,4F4,4B2,4F5,4B3,4F6,0B0,4F7,0B1,0B2,0B3,4B4,4B5,"
          "4B6,4B7,0B4,0B5,0B6,0B7\n"
          "1F0,1F1,1F2,1F3,5F0,5F1,5F2,5F3,1F4,5B0,1F5,5B1,1F6,5B2,1F7,5B3,5F4,1B0,5F5,1B1,5F6,1B2,5F7,1B3,5B4,5B5,"
          "5B6,5B7,1B4,1B5,1B6,1B7\n"
          "2F0,2F1,2F2,2F3,6F0,6F1,6F2,6B0,6F3,6B1,2F4,6B2,2F5,6B3,2F6,2B0,2F7,2B1,6F4,2B2,6F5,2B3,6F6,6B4,6F7,6B5,"
          "6B6,6B7,2B4,2B5,2B6,2B7\n"
          "3F0,3F1,3F2,3F3,7F0,7B0,7F1,7B1,7F2,7B2,7F3,7B3,3F4,3B0,3F5,3B1,3F6,3B2,3F7,3B3,7F4,7B4,7F5,7B5,7F6,7B6,"
          "7F7,7B7,3B4,3B5,3B6,3B7\n");
}

TEST_CASE("interleaved 1F1B with overlapped pairs runs one more forward to warm up") {
    auto const last = interleaved_overlapped<2>{}.program({4, 8}, 3);
    CHECK(brute_force::rows({last}) ==
          "3F0,3F1,3F2,3F3,7F0,(7F1;7B0)OVERLAP_F_B,(7F2;7B1)OVERLAP_F_B,(7F3;7B2)OVERLAP_F_B,(3F4;7B3)OVERLAP_F_B,"
          "(3F5;3B0)OVERLAP_F_B,(3F6;3B1)OVERLAP_F_B,(3F7;3B2)OVERLAP_F_B,(7F4;3B3)OVERLAP_F_B,(7F5;7B4)OVERLAP_F_B,"
          "(7F6;7B5)OVERLAP_F_B,(7F7;7B6)OVERLAP_F_B,7B7,3B4,3B5,3B6,3B7\n");
    auto const told = [](double pair) {
        return evaluate(programs(interleaved_overlapped<2>{}, {4, 8}), placement::loop(4, 2), 8,
                        uniform_costs{.overlapped = pair})
            .makespan;
    };
    CHECK(told(3) == 57);
    CHECK(told(2) == 46);
}

TEST_CASE("interleaving divides 1F1B's bubble by the number of chunks") {
    for (int ranks = 2; ranks <= 8; ranks += 2)
        for (int chunks = 2; chunks <= 4; ++chunks) {
            int const m = 2 * ranks;
            auto const all = programs(interleaved<>{.chunks = chunks}, {ranks, m});
            auto const told = evaluate(all, placement::loop(ranks, chunks), m, uniform_costs{});
            CHECK(told.makespan == 3 * m * chunks + 3 * (ranks - 1));
        }
}

TEST_CASE("interleaved schedules replay for every shape and every number of chunks that they accept") {
    int accepted = 0;
    for (int ranks = 1; ranks <= 6; ++ranks)
        for (int m = 1; m <= 14; ++m)
            for (int chunks = 1; chunks <= 4; ++chunks) {
                auto const where = placement::loop(ranks, chunks);
                interleaved<> const policy{.chunks = chunks};
                interleaved_overlapped<> const overlapping{.chunks = chunks};
                bool const equal_rounds = m < ranks || m % (m / ranks) == 0;
                REQUIRE(refusal(policy, {ranks, m}).empty() == equal_rounds);
                REQUIRE(refusal(overlapping, {ranks, m}).empty() == equal_rounds);
                if (!equal_rounds) continue;
                INFO(ranks << " ranks, " << m << " micro-batches, " << chunks << " chunks");
                CHECK(brute_force::replay(programs(policy, {ranks, m}), where, m).sound);
                CHECK(brute_force::replay(programs(overlapping, {ranks, m}), where, m).sound);
                ++accepted;
            }
    CHECK(accepted > 100);
}

TEST_CASE("interleaved schedules refuse unequal rounds and less than one chunk") {
    CHECK_THROWS_WITH(programs(interleaved<2>{}, {4, 9}),
                      "interleaved cannot run 9 micro-batches on 4 ranks: An interleaved schedule needs equal rounds: "
                      "micro-batches in a multiple of (micro-batches div ranks).");
    CHECK_THROWS_AS(programs(interleaved<0>{}, {4, 8}), shape_error);
}
