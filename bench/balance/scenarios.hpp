// SPDX-License-Identifier: Apache-2.0
// What layers and devices really cost, step by step, in the runs that bench/balance makes: small models of why
// pipelines fall out of balance. A layer's passes take a unit each; noise comes on top.
#pragma once

#include "copipe/balance/measurements.hpp"
#include "copipe/model/parameter.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace bench {

using copipe::pass_times;
using copipe::row;

/// Costs and speeds as functions of the step, and the shape of the run.
struct scenario {
    std::string name;
    int ranks, layers, micro_batches, steps;
    std::function<double(int step, int layer)> load = [](int, int) { return 1.0; }; ///< factor on all passes
    std::function<bool(int step, int layer)> frozen = [](int, int) { return false; }; ///< forwards only
    std::function<double(int step, int rank)> slowness = [](int, int) { return 1.0; };

    [[nodiscard]] pass_times cost(int step, int layer) const {
        double const one = load(step, layer), back = frozen(step, layer) ? 0 : one;
        return {one, back, back};
    }
};

inline double normal(std::uint64_t key, int step, int which) {
    return copipe::counter_random{key, static_cast<std::uint64_t>(step)}.normal(static_cast<std::uint64_t>(which));
}

/// What changes in a run, in parts of its length, so that long and short runs tell the same story.
inline std::vector<scenario> changing(int ranks, int layers, int micro_batches, int steps) {
    scenario const calm{"stable", ranks, layers, micro_batches, steps};
    auto const named = [&](char const* name) {
        auto made = calm;
        made.name = name;
        return made;
    };
    auto slow = named("one device 2x slower for 40 % of the time");
    slow.slowness = [=](int step, int rank) {
        return rank == 3 && step >= steps * 29 / 100 && step < steps * 69 / 100 ? 2.0 : 1.0;
    };
    auto flapping = named("one device throttles 20 steps of 40");
    flapping.slowness = [=](int step, int rank) {
        bool const ever = step >= steps / 5 && step < steps * 4 / 5;
        return rank == 3 && ever && step / 20 % 2 == 1 ? 2.0 : 1.0;
    };
    auto freezing = named("three layers more frozen every 100 steps");
    freezing.frozen = [=](int step, int layer) { return layer < 3 * (step / 100); };
    auto drifting = named("expert load drifts");
    auto walks = std::make_shared<row<row<double>>>(1, row<double>(layers, 1.0));
    for (int step = 1; step < steps; ++step) {
        walks->push_back(walks->back());
        for (int layer = 1; layer < layers; layer += 2)
            walks->back()[layer] *= std::exp(0.015 * normal(1, step, layer));
    }
    drifting.load = [walks](int step, int layer) { return (*walks)[step][layer]; };
    auto jittering = named("expert load jitters by 20 %");
    jittering.load = [](int step, int layer) {
        return layer % 2 == 1 ? std::max(0.3, 1 + 0.2 * normal(2, step, layer)) : 1.0;
    };
    return {slow, flapping, freezing, drifting, jittering, calm};
}

/// Nodes of eight devices, every other one of half the speed; layers alike.
inline scenario two_types(int ranks, int layers, int micro_batches, int steps) {
    scenario made{"two device types 1:2", ranks, layers, micro_batches, steps};
    made.slowness = [](int, int rank) { return rank / 8 % 2 == 1 ? 2.0 : 1.0; };
    return made;
}

} // namespace bench
