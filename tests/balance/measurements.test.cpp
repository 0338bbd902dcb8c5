// SPDX-License-Identifier: Apache-2.0
#include "copipe/balance/measurements.hpp"

#include "catch.hpp"
#include "counting_new.hpp"

#include <algorithm>
#include <array>
#include <vector>

using namespace copipe;
using enum stage_order;

namespace {

/// What layers cost and how slow ranks are, fed to a window of 10 steps.
struct run {
    stage_map where;
    row<pass_times> costs;
    row<double> slowness;
    bool probes = false;
    measurement_window seen{costs.count(), where, 4, 10};
    std::uint64_t step = 0;

    /// The stage that a layer is in; layers spread evenly.
    [[nodiscard]] int stage_of(int layer) const { return layer * where.stages() / costs.count(); }

    void steps(int count, double factor = 1) {
        for (int k = 0; k < count; ++k) {
            for (int copy = 0; copy < where.copies(); ++copy)
                for (int layer = 0; layer < costs.count(); ++layer) {
                    int const rank = where.rank_of(stage_of(layer), copy);
                    double const times = factor * slowness[rank];
                    for (int m = 0; m < 4; ++m) {
                        seen.record(rank, layer, pass::forward, times * costs[layer].forward);
                        seen.record(rank, layer, pass::backward_input, times * costs[layer].backward_input);
                        if (costs[layer].backward_weight > 0)
                            seen.record(rank, layer, pass::backward_weight, times * costs[layer].backward_weight);
                    }
                }
            for (int rank = 0; probes && rank < where.ranks; ++rank) seen.probe(rank, 1e-3 * factor * slowness[rank]);
            seen.end_step(++step, factor * 10);
        }
    }
    /// Costs and slowness found are those fed.
    void agrees() {
        auto const found = seen.summary();
        REQUIRE(found);
        double const fastest = *std::ranges::min_element(slowness);
        for (int rank = 0; rank < where.ranks; ++rank)
            CHECK(found->slowness[rank] == Approx(slowness[rank] / fastest));
        for (auto const* half : {&found->layers, &found->held_out})
            for (int i = 0; i < costs.count(); ++i) {
                CHECK((*half)[i].forward == Approx(costs[i].forward * fastest));
                CHECK((*half)[i].backward_input == Approx(costs[i].backward_input * fastest));
                CHECK((*half)[i].backward_weight == Approx(costs[i].backward_weight * fastest));
            }
    }
};

row<pass_times> uneven(int layers) {
    row<pass_times> found;
    for (int i = 0; i < layers; ++i) found.push_back({1.0 + i, 1.5 + i % 3, 2.0 + i % 2});
    return found;
}

} // namespace

TEST_CASE("measurements tell each layer's passes, and nothing before the window is full") {
    run one{{single, 3}, uneven(6), {1, 1, 1}};
    one.steps(9);
    CHECK_FALSE(one.seen.summary());
    one.steps(1);
    one.agrees();
    auto const found = one.seen.summary();
    CHECK(found->step == 10);
    CHECK(found->micro_batches == 4);
    CHECK(found->where == stage_map{single, 3});
    CHECK(found->step_seconds == 10);
}

TEST_CASE("outlier steps change nothing that is measured, probes among them included") {
    for (bool const probes : {false, true}) {
        run one{{single, 2}, uneven(4), {1, 1.75}};
        one.probes = true;
        one.steps(10);
        one.agrees();
        one.probes = probes;
        one.steps(4);
        one.steps(2, 50);
        one.steps(2);
        one.steps(1, 1000);
        one.steps(1);
        one.agrees();
    }
}

TEST_CASE("held-out costs come from other steps than those that the costs come from") {
    run one{{single, 2}, uneven(4), {1, 1}};
    for (int k = 0; k < 5; ++k) {
        one.costs[3].forward = 4;
        one.steps(1);
        one.costs[3].forward = 6;
        one.steps(1);
    }
    auto const found = one.seen.summary();
    CHECK(found->layers[3].forward == 4);
    CHECK(found->held_out[3].forward == 6);
}

TEST_CASE("probes tell slow ranks from costly layers from the start") {
    run one{{loop, 2, 2}, uneven(8), {3, 2}};
    one.probes = true;
    one.steps(10);
    one.agrees();
    one.slowness = {2, 4};
    one.costs[5].forward *= 7;
    one.steps(10);
    one.agrees();
}

TEST_CASE("without probes, a rank whose layers all change by one factor has changed itself") {
    run one{{single, 3}, uneven(6), {1, 1, 1}};
    one.steps(10);
    one.agrees();
    one.slowness[1] = 2;
    one.steps(10);
    one.agrees();
    one.slowness[1] = 1;
    one.slowness[2] = 1.5;
    one.steps(10);
    one.agrees();
}

TEST_CASE("without probes, layers that change otherwise than all others on their rank have changed themselves") {
    run one{{single, 3}, uneven(6), {1, 1, 1}};
    one.steps(10);
    one.agrees();
    one.costs[2].forward *= 3; // one layer of two in one pass
    one.costs[4].backward_weight = 0;
    one.costs[5].backward_weight = 0; // all layers of a rank are frozen
    one.steps(10);
    one.agrees();
}

TEST_CASE("two ranks with copies of the same layers are told apart without probes, and from layers that change") {
    run one{{bidirectional, 4}, uneven(4), {1, 1, 2, 1}};
    one.steps(10);
    one.agrees();
    one.slowness = {3, 1, 2, 1};
    one.steps(10);
    one.agrees();
    for (auto* const each : {&one.costs[1].forward, &one.costs[1].backward_input, &one.costs[1].backward_weight})
        *each *= 4;
    one.steps(10); // both copies of the layer on ranks 1 and 2 take four times as long
    one.agrees();
}

TEST_CASE("after layers have moved the window fills anew, and ranks stay as slow as they were") {
    run one{{single, 2}, uneven(4), {1, 1}};
    one.steps(10);
    one.agrees();
    one.slowness[1] = 2;
    one.steps(10);
    one.agrees();
    one.seen.moved();
    one.steps(9);
    CHECK_FALSE(one.seen.summary());
    for (int k = 0; k < 10; ++k) { // all but the last layer on rank 0
        for (int layer = 0; layer < 4; ++layer)
            for (pass const what : {pass::forward, pass::backward_input, pass::backward_weight}) {
                auto const& [f, i, w] = one.costs[layer];
                double const cost = std::array{f, i, w}[static_cast<std::size_t>(what)];
                one.seen.record(layer / 3, layer, what, cost * (layer == 3 ? 2 : 1));
            }
        one.seen.end_step(100, 1);
    }
    one.agrees();
}

TEST_CASE("recording a step allocates nothing") {
    run one{{v, 4}, uneven(16), {1, 1, 2, 1}};
    one.probes = true;
    one.steps(10);
    auto const before = heap_allocations.load();
    one.steps(30);
    CHECK(heap_allocations == before);
}
