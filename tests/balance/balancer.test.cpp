// SPDX-License-Identifier: Apache-2.0
#include "copipe/balance/balancer.hpp"

#include "catch.hpp"
#include "says.hpp"

using namespace copipe;

TEST_CASE("a static partition is even unless one is given, and never proposes another") {
    static_partition even;
    CHECK(even.start(7, 3).bounds() == std::vector{0, 3, 5, 7});
    CHECK(even.check_every() == 0);
    CHECK_FALSE(even.propose({}, even.start(7, 3)));
    static_partition const given{partition::given({0, 1, 7}, 7)};
    CHECK(given.start(7, 2).bounds() == std::vector{0, 1, 7});
}

TEST_CASE("a static partition reads a layout string, each letter of which is a layer") {
    CHECK(static_partition("Et*3|(tt|)*2,m|L").start(10, 5).bounds() == std::vector{0, 4, 6, 8, 9, 10});
    CHECK(static_partition("Et*3|(tt|)*29,m|L").start(64, 32).bounds().at(31) == 63);
}

TEST_CASE("a partition that does not fit the model, the schedule or the rules is refused in words") {
    CHECK_THROWS_WITH(static_partition("Et|tL").start(4, 3), says("2 stages") && says("into 3"));
    CHECK_THROWS_WITH(static_partition("Et|tL").start(5, 2), says("4") && says("5 layers"));
    CHECK_THROWS_AS(static_partition("Et||L"), partition_error); // an empty stage
    CHECK_THROWS_AS(static_partition("Etx|L"), layout_error);
    CHECK_THROWS_AS(static_partition().start(2, 3), partition_error);
}
