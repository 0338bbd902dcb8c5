// SPDX-License-Identifier: Apache-2.0
#include "copipe/plan/cost_table.hpp"
#include "catch.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/evaluate.hpp"
#include "copipe/schedule/one_f_one_b.hpp"

using namespace copipe;

namespace {
double makespan(cost_table const& costs, int micro_batches) {
    auto const all = programs(one_f_one_b{}, {costs.where.ranks, micro_batches});
    return evaluate(all, costs.where, micro_batches, costs).makespan;
}
} // namespace

TEST_CASE("a slow stage, a heavy micro-batch and a slow link each show in the makespan") {
    cost_table costs{.where = placement::single(2), .stages = {{1, 1, 1}, {1, 1, 1}}};
    CHECK(makespan(costs, 2) == 9); // as uniform costs: 2 micro-batches and one hop, 3 each
    costs.stages[1] = {2, 2, 2};
    CHECK(makespan(costs, 2) == 1 + 2 * 6 + 2); // rank 1 without a break, then rank 0's last backward
    costs.stages[1] = {1, 1, 1};
    costs.micro_batches = {1, 3};
    CHECK(makespan(costs, 2) == 19); // 0F1 ends at 4, 1F1 at 7, 1B1 at 13, 0B1 at 19
    costs.micro_batches = {};
    costs.links = {{.from = 1, .to = 0, .latency = 5}};
    CHECK(makespan(costs, 1) == 6 + 5);
    CHECK(makespan({.where = placement::single(2), .stages = costs.stages, .every = {.latency = 5}}, 1) == 6 + 10);
}

TEST_CASE("messages share a link's bandwidth") {
    cost_table costs{.where = placement::single(2),
                     .stages = {{.forward = 0, .input = 0, .weight = 0, .message_bytes = 10},
                                {.forward = 0, .input = 0, .weight = 0, .message_bytes = 0}},
                     .every = {.latency = 1, .bandwidth = 5}};
    CHECK(makespan(costs, 1) == 2 + 1 + 1); // 10 bytes and two latencies
    costs.micro_batches = {1, 2, 1};
    std::vector<program> forwards;
    for (auto const& own : programs(one_f_one_b{}, {2, 3})) forwards.push_back(forward_only(own));
    CHECK(evaluate(forwards, costs.where, 3, costs).makespan == 2 + 4 + 2 + 1); // one after the other, the last 1 later
}

TEST_CASE("an overlapped pair takes its share of the sum of its halves") {
    std::vector<cost_table::stage_cost> const stages(8, {.forward = 1, .input = 1, .weight = 1});
    auto const all = programs(dualpipe{}, {4, 10});
    auto const where = placement::bidirectional(4);
    cost_table const costs{.where = where, .stages = stages, .overlap = 2.0 / 3};
    CHECK(evaluate(all, where, 10, costs).makespan == Approx(26));
    CHECK(evaluate(all, where, 10, cost_table{.where = where, .stages = stages}).makespan == 32);
}
