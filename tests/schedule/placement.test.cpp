// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "copipe/schedule/placement.hpp"

using namespace copipe;

static_assert(placement::v(4).rank_of(3) == 3 && placement::v(4).rank_of(4) == 3 && placement::v(4).rank_of(7) == 0);
static_assert(placement::loop(4, 3).rank_of(9) == 1);

TEST_CASE("every stage lies on exactly the rank that lists it") {
    for (int const ranks : {1, 2, 3, 4, 7, 8})
        for (auto const& where : {placement::single(ranks), placement::loop(ranks, 3), placement::v(ranks),
                                  placement::bidirectional(ranks)}) {
            std::vector<int> found(static_cast<std::size_t>(where.stages()), 0);
            for (int rank = 0; rank < ranks; ++rank) {
                auto const held = where.stages_of(rank);
                REQUIRE(held.size() == static_cast<std::size_t>(where.per_rank));
                for (int const stage : held) {
                    CHECK(where.rank_of(stage) == rank);
                    ++found[static_cast<std::size_t>(stage)];
                }
            }
            CHECK(found == std::vector<int>(found.size(), 1));
        }
}

TEST_CASE("a v goes down the ranks and comes back up") {
    auto const where = placement::v(4);
    CHECK(where.stages() == 8);
    CHECK(where.stages_of(0) == std::vector{0, 7});
    CHECK(where.stages_of(3) == std::vector{3, 4});
    CHECK((where.is_first(0) && where.is_last(7)));
    CHECK_FALSE((where.is_last(3) || where.is_first(4)));
    CHECK(where.model_stages() == 8);
    CHECK(where.micro_batches_per_stage(10) == 10);
    CHECK(where.global_micro_batch(7, 9, 10) == 9);
}

TEST_CASE("a bidirectional placement holds two chains over two copies of one model") {
    auto const where = placement::bidirectional(4);
    CHECK(where.stages() == 8);
    CHECK(where.model_stages() == 4);
    CHECK((where.is_first(0) && where.is_last(3) && where.is_first(4) && where.is_last(7)));
    CHECK_FALSE((where.is_first(3) || where.is_last(4)));
    CHECK(where.rank_of(4) == 3);
    CHECK(where.model_stage(5) == 1);
    CHECK((where.direction(3) == 0 && where.direction(4) == 1));
    CHECK(where.micro_batches_per_stage(10) == 5);
    CHECK(where.global_micro_batch(1, 2, 10) == 2);
    CHECK(where.global_micro_batch(5, 2, 10) == 7);
}

TEST_CASE("replicas repeat a layout: ranks, stages and micro-batches follow one after the other") {
    placement const where{layout::bidirectional, 8, 2, 2};
    CHECK(where.stages() == 16);
    CHECK(where.model_stages() == 4);
    CHECK(where.copies() == 4);
    CHECK((where.is_first(8) && where.is_last(11) && where.is_first(12) && where.is_last(15)));
    CHECK_FALSE((where.is_first(9) || where.is_last(8) || where.is_last(12)));
    CHECK(where.stages_of(4) == std::vector{8, 15});
    CHECK((where.rank_of(11) == 7 && where.rank_of(12) == 7));
    CHECK((where.model_stage(13) == 1 && where.direction(13) == 3));
    CHECK(where.micro_batches_per_stage(12) == 3);
    CHECK(where.global_micro_batch(13, 2, 12) == 11);
}
