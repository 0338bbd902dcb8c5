// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "says.hpp"

#include "copipe/model/partition.hpp"

#include <algorithm>

using namespace copipe;

TEST_CASE("an even partition loses no layer, and its stages differ by at most one, the larger first") {
    for (int stages = 1; stages <= 12; ++stages) {
        for (int layers = stages; layers <= 40; ++layers) {
            partition const cut = partition::even(layers, stages);
            REQUIRE(cut.stages() == stages);
            REQUIRE(cut.layers() == layers);
            REQUIRE(cut.first(0) == 0);
            REQUIRE(cut.last(stages - 1) == layers);
            for (int s = 0; s < stages; ++s) {
                int const size = cut.last(s) - cut.first(s);
                REQUIRE(size >= layers / stages);
                REQUIRE(size <= layers / stages + 1);
                if (s > 0) {
                    REQUIRE(cut.first(s) == cut.last(s - 1));
                    REQUIRE(size <= cut.last(s - 1) - cut.first(s - 1));
                }
            }
        }
    }
}

TEST_CASE("fewer layers than stages are refused with both numbers") {
    CHECK_THROWS_AS(partition::even(3, 4), partition_error);
    CHECK_THROWS_WITH(partition::even(3, 4), says("3 layers") && says("4 stages"));
    CHECK_THROWS_AS(partition::even(3, 0), partition_error);
    CHECK_THROWS_AS(partition::even(0, 1), partition_error);
}

TEST_CASE("a given partition is taken as it is") {
    partition const cut = partition::given({0, 1, 5, 6}, 6);
    CHECK(cut.stages() == 3);
    CHECK(cut.first(1) == 1);
    CHECK(cut.last(1) == 5);
    CHECK(cut == partition::given({0, 1, 5, 6}, 6));
    CHECK_FALSE(cut == partition::even(6, 3));
}

TEST_CASE("a given partition that loses, repeats or invents layers, or leaves a stage empty, is refused") {
    CHECK_THROWS_AS(partition::given({}, 6), partition_error);
    CHECK_THROWS_AS(partition::given({0}, 6), partition_error);
    CHECK_THROWS_AS(partition::given({1, 6}, 6), partition_error);
    CHECK_THROWS_WITH(partition::given({0, 3, 3, 6}, 6), says("stage 1 would be empty"));
    CHECK_THROWS_WITH(partition::given({0, 4, 3, 6}, 6), says("stage 1 would be empty"));
    CHECK_THROWS_WITH(partition::given({0, 3, 5}, 6), says("ends at layer 5") && says("6 layers"));
    CHECK_THROWS_WITH(partition::given({0, 3, 7}, 6), says("ends at layer 7"));
}
