// SPDX-License-Identifier: Apache-2.0
#include "brute_force.hpp"
#include "catch.hpp"
#include "copipe/schedule/v_half.hpp"
#include "copipe/schedule/v_min.hpp"
#include "copipe/schedule/verify.hpp"
#include "copipe/schedule/zb_h1.hpp"
#include "copipe/schedule/zb_h2.hpp"
#include "copipe/schedule/zb_v.hpp"

#include <algorithm>
#include <limits>
#include <random>

using namespace copipe;

static_assert(verify(zb_h1{}, shape{2, 4}));
static_assert(verify(zb_v{}, shape{2, 4}));

namespace {

struct outcome {
    double makespan, longest;
    int peak;
};

/// What the policy's plan costs, by a brute-force replay that must find it sound.
template <class Policy>
outcome outcome_of(Policy const& policy, shape size) {
    auto const all = programs(policy, size);
    auto const& c = policy.costs;
    auto const where = policy.placed(size);
    auto const slow = brute_force::replay(
        all, where, size.micro_batches,
        {.forward = c.forward, .input = c.input, .weight = c.weight, .pair = 0, .communication = c.communication});
    INFO(Policy::name << ", " << size.ranks << " ranks, " << size.micro_batches << " micro-batches");
    REQUIRE(slow.sound);
    auto const told = evaluate(all, where, size.micro_batches, c);
    CHECK(told.makespan == slow.makespan);
    return {told.makespan, told.longest, *std::max_element(slow.peak.begin(), slow.peak.end())};
}

/// Published: the makespan, the longest rank's span and the peak of live chunks.
template <class Policy>
void reaches(shape size, double makespan, double longest, int peak) {
    auto const found = outcome_of(Policy{}, size);
    INFO(Policy::name << ", " << size.ranks << " ranks, " << size.micro_batches << " micro-batches");
    CHECK(found.makespan <= makespan);
    CHECK(found.longest <= longest);
    CHECK(found.peak <= peak);
}

} // namespace

TEST_CASE("the zero-bubble family reaches the published makespans within the published memory") {
    reaches<zb_h1>({4, 8}, 27, 27, 4);
    reaches<zb_h2>({4, 8}, 27, 24, 7);
    reaches<zb_v>({4, 8}, 51, 48, 8);
    reaches<v_half>({4, 8}, 53, 53, 6);
    reaches<v_min>({4, 8}, 59, 59, 4);
    reaches<v_half>({8, 16}, 96 + 17, 96 + 17, 10);
    reaches<v_min>({8, 16}, 96 + 27, 96 + 27, 8);
}

TEST_CASE("the bubbles that the papers derive hold on any number of ranks where F = I = W") {
    for (int ranks = 1; ranks <= 10; ++ranks) {
        shape const size{ranks, 2 * ranks + 1};
        double const busy = 3 * size.micro_batches;
        CHECK(outcome_of(zb_h1{}, size).makespan == busy + ranks - 1);
        CHECK(outcome_of(zb_h2{}, size).longest == busy);
        CHECK(outcome_of(zb_v{}, size).longest == 2 * busy);
        CHECK(outcome_of(zb_v{}, size).makespan == 2 * busy + ranks - 1);
    }
}

TEST_CASE("ZB-H1's bubble is (P-1)(F+I-W) for other costs too") {
    zb_h1 const policy{.costs = {.forward = 2, .input = 2, .weight = 1}};
    CHECK(outcome_of(policy, {4, 12}).makespan == 5 * 12 + 3 * (2 + 2 - 1));
}

TEST_CASE("with ZB-H2 the longest rank idles (P-1)(F+I-2W) between its first and last action for other costs too") {
    for (uniform_costs const costs : {uniform_costs{1, 1.1, 1}, uniform_costs{1, 0.9, 0.9}, uniform_costs{1, 1.2, 0.8},
                                      uniform_costs{2, 2, 1}, uniform_costs{1, 1, 0.5}})
        for (shape const size : {shape{2, 4}, shape{4, 12}, shape{4, 17}, shape{6, 12}, shape{8, 24}}) {
            INFO(size.ranks << " ranks, " << size.micro_batches << " micro-batches, weight " << costs.weight);
            double const busy = size.micro_batches * (costs.forward + costs.input + costs.weight);
            double const idle = (size.ranks - 1) * (costs.forward + costs.input - 2 * costs.weight);
            CHECK(outcome_of(zb_h2{.costs = costs}, size).longest == Approx(busy + std::max(idle, 0.0)));
        }
}

TEST_CASE("zero-bubble plans are sound and within memory for any shape and any costs") {
    unsigned const seed = 11;
    CAPTURE(seed);
    std::mt19937 random(seed);
    std::uniform_real_distribution<double> any(0, 2);
    auto const check = [&](auto policy, shape size) {
        CHECK(outcome_of(policy, size).peak <= policy.memory(size));
        double const forward = any(random), input = any(random), weight = any(random), communication = any(random) / 4;
        policy.costs = {.forward = forward, .input = input, .weight = weight, .communication = communication};
        auto const planned = outcome_of(policy, size);
        CHECK(planned.peak <= policy.memory(size));
        auto const blind = programs(decltype(policy){}, size);
        auto const unplanned = evaluate(blind, policy.placed(size), size.micro_batches, policy.costs).makespan;
        CHECK(planned.makespan <= unplanned * (1 + 1e-9));
    };
    for (int ranks = 1; ranks <= 8; ++ranks)
        for (int const m : {1, ranks - 1, ranks, 2 * ranks, 2 * ranks + 3})
            if (m > 0) {
                check(zb_h1{}, {ranks, m});
                check(zb_h2{}, {ranks, m});
                check(zb_v{}, {ranks, m});
                check(v_half{}, {ranks, m});
                check(v_min{}, {ranks, m});
            }
}

TEST_CASE("a step longer than the trial keeps the plan's bubble") {
    CHECK(outcome_of(zb_v{}, {4, 40}).longest == 6 * 40);
    CHECK(outcome_of(v_half{}, {4, 40}).makespan <= 6 * 40 + 5);
}

TEST_CASE("costs that are no costs are refused") {
    CHECK_THROWS_WITH(programs(zb_v{.costs = {.forward = -1}}, {2, 4}),
                      "zb_v cannot run 4 micro-batches on 2 ranks: Costs to plan for must be numbers of at least 0.");
    zb_h1 const unknown{.costs = {.weight = std::numeric_limits<double>::quiet_NaN()}};
    CHECK_THROWS_AS(programs(unknown, {2, 4}), shape_error);
}
