// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "copipe/schedule/action.hpp"

#include <type_traits>

using namespace copipe;

static_assert(std::is_trivially_copyable_v<action>);
static_assert(!action(op::forward, 1, 2).overlapped());
static_assert(action(chunk{op::forward, 1, 2}, chunk{op::backward, 0, 1}).overlapped());
static_assert(action(op::forward, 1, 2) == action(chunk{op::forward, 1, 2}));
static_assert(action(op::forward, 1, 2) != action(op::backward, 1, 2));

TEST_CASE("an action yields its one chunk, or the forward and then the backward of its pair") {
    action const single(op::backward_input, 7, 300000);
    REQUIRE(single.chunks().size() == 1);
    CHECK(single.chunks()[0] == chunk{op::backward_input, 7, 300000});

    action const pair(chunk{op::forward, 3, 1}, chunk{op::backward, 4, 0});
    REQUIRE(pair.chunks().size() == 2);
    CHECK(pair.chunks()[0] == chunk{op::forward, 3, 1});
    CHECK(pair.chunks()[1] == chunk{op::backward, 4, 0});
    CHECK(pair.front() == chunk{op::forward, 3, 1});
}

TEST_CASE("actions print in the grammar of pipeline schedule files") {
    CHECK(text(action(op::forward, 0, 0)) == "0F0");
    CHECK(text(action(op::backward, 12, 3)) == "12B3");
    CHECK(text(action(op::backward_input, 65535, 4)) == "65535I4");
    CHECK(text(action(op::backward_weight, 1, 100)) == "1W100");
    CHECK(text(action(chunk{op::forward, 3, 1}, chunk{op::backward, 4, 0})) == "(3F1;4B0)OVERLAP_F_B");
}
