// SPDX-License-Identifier: Apache-2.0
#include "copipe/balance/partition_problem.hpp"

#include "catch.hpp"

using namespace copipe;

namespace {

std::string why(partition_problem const& problem) {
    try {
        require_solvable(problem);
        return "solvable";
    } catch (partition_problem_error const& refused) {
        CHECK(std::string(refused.what()).starts_with("`" + refused.field + "` "));
        return refused.what();
    }
}

} // namespace

TEST_CASE("stages lie on ranks as the order says") {
    partition_problem problem{.order = stage_order::loop, .ranks = 3, .stages_per_rank = 2};
    CHECK(problem.stages() == 6);
    CHECK(problem.rank_of(4) == 1);
    problem.order = stage_order::v;
    CHECK(problem.stages() == 6);
    CHECK(problem.rank_of(4) == 1);
    CHECK(problem.rank_of(5) == 0);
    problem.order = stage_order::bidirectional;
    problem.ranks = 4;
    problem.slow = {1, 5, 2, 3};
    CHECK(problem.stages() == 4);
    CHECK(problem.rank_of(3) == 0);
    CHECK(problem.slowness(0) == 3);
    CHECK(problem.slowness(2) == 5);
}

TEST_CASE("a problem that contradicts itself names the member at fault") {
    partition_problem const sound{.ranks = 2, .weights = {1, 2, 3}};
    auto with = [&](auto change) {
        auto problem = sound;
        change(problem);
        return why(problem);
    };
    CHECK(why(sound) == "solvable");
    CHECK(with([](auto& p) { p.ranks = 0; }) == "`ranks` must be at least 1.");
    CHECK(with([](auto& p) { p.weights.clear(); }) == "`weights` must have at least one layer.");
    CHECK(with([](auto& p) { p.ranks = 1, p.order = stage_order::bidirectional; }) ==
          "`ranks` must be even where stages are bidirectional.");
    CHECK(with([](auto& p) { p.weights[1] = -1; }) == "`weights` has a number that is too small.");
    CHECK(with([](auto& p) { p.slow = {1, 0}; }) == "`slow` has a number that is too small.");
    CHECK(with([](auto& p) { p.slow = {1}; }) == "`slow` has the wrong length.");
    CHECK(with([](auto& p) { p.transfer = {0, 1, 1, 0}; }) == "`link` is missing, and another option needs it.");
    CHECK(with([](auto& p) { p.transfer = {0, 1, 1, 0}, p.link = {1}; }) == "solvable");
    CHECK(with([](auto& p) { p.capacity = {9, 9}; }) == "`parameters` is missing, and another option needs it.");
    CHECK(with([](auto& p) { p.lock_step = true; }) == "`lock_step` does not go with this order of stages.");
    CHECK(with([](auto& p) { p.order = stage_order::loop, p.link = {1}; }) ==
          "`link` does not go with this order of stages.");
    CHECK(with([](auto& p) { p.order = stage_order::bidirectional, p.lock_step = true, p.forward = {1, 3, 1}; }) ==
          "`forward` must not exceed `weights`.");
    CHECK(with([](auto& p) { p.weights[0] = never / 2; }) ==
          "`weights` or bytes make sums beyond 64 bits; use a coarser unit.");
    CHECK(with([](auto& p) { p.order = stage_order::replicated, p.ranks = 64; }) ==
          "`weights` or bytes make sums beyond 64 bits; use a coarser unit.");
}

TEST_CASE("the ideal shares work out by speed") {
    partition_problem problem{.ranks = 3, .weights = {10, 20, 30, 40}};
    CHECK(ideal_time(problem) == Approx(100 / 3.0));
    problem.slow = {1, 2, 2};
    CHECK(ideal_time(problem) == Approx(50));
    problem.order = stage_order::v;
    CHECK(ideal_time(problem) == Approx(50));
    CHECK(ideal_time({.order = stage_order::bidirectional, .ranks = 2, .weights = {4, 6}}) == Approx(10));
    CHECK(ideal_time({.order = stage_order::replicated, .ranks = 3, .weights = {4, 5}}) == Approx(6 * 3));
}

TEST_CASE("any number of replicas up to the ranks divides the common share") {
    CHECK(common_share(1) == 1);
    CHECK(common_share(6) == 60);
    for (ticks r = 1; r <= 40; ++r) CHECK(common_share(40) % r == 0);
}
