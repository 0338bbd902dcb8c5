// SPDX-License-Identifier: Apache-2.0
// The trainer in virtual time, with layers and devices that behave as a scenario says.
#pragma once

#include "scenarios.hpp"

#include "copipe/device/simulated.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/train/simulated_update.hpp"
#include "copipe/train/trainer.hpp"

#include <array>
#include <functional>
#include <memory>

namespace bench {

using copipe::partition;
using copipe::simulated_device;
using copipe::tensor;

/// Seconds: a pass of a layer at load 1, a layer on its way to another rank.
inline constexpr double pass_seconds = 1e-3, layer_seconds = 40e-3;
inline constexpr double layer_bytes = 3e6; ///< with the optimizer's state; an activation has 4
/// Relative standard deviation of the noise on each layer and on each device, drawn anew for each step.
inline constexpr double layer_noise = 0.02, device_noise = 0.005;

/// The step under way in a scenario: what each pass takes and how slow each device is, noise included.
class world {
public:
    explicit world(scenario const& made) : of(&made) { begin(0); }
    void begin(int next) {
        step = next;
        seconds.clear();
        slowness.clear();
        auto const noise = [&](std::uint64_t what, int which, double deviation) {
            return 1 + deviation * std::clamp(normal(100 + what, step, which), -4.0, 4.0);
        };
        for (int layer = 0; layer < of->layers; ++layer) {
            auto const cost = of->cost(step, layer);
            seconds.push_back(pass_seconds * cost.forward * noise(0, layer, layer_noise));
            seconds.push_back(pass_seconds * cost.backward_input * noise(1, layer, layer_noise));
            seconds.push_back(pass_seconds * cost.backward_weight * noise(2, layer, layer_noise));
        }
        for (int rank = 0; rank < of->ranks; ++rank)
            slowness.push_back(of->slowness(step, rank) * noise(3, rank, device_noise));
    }

    scenario const* of;
    int step = 0;
    row<double> seconds;  ///< [layers x passes]
    row<double> slowness; ///< [ranks]
};

/// Takes the time that its world says. Its parameter stands for all that moves with it.
struct timed_layer {
    world const* in;
    int number;
    copipe::parameter all{.name = "all", .sizes = {250'000}};

    struct saved {};
    auto parameters() -> std::array<copipe::parameter*, 1> { return {&all}; }
    auto forward(copipe::context<simulated_device>& c, tensor, saved&) -> tensor { return work(c, 0); }
    auto backward_input(copipe::context<simulated_device>& c, tensor, saved&) -> tensor { return work(c, 1); }
    void backward_weight(copipe::context<simulated_device>& c, saved&) { work(c, 2); }
    auto work(copipe::context<simulated_device>& c, int pass) const -> tensor {
        double const seconds = in->seconds[3 * number + pass];
        if (seconds > 0) c.stream.launch(seconds);
        return c.make({1});
    }
};

struct nothing {
    static auto size() -> std::uint64_t { return 1; }
    static void load(std::uint64_t, copipe::host_array& input, copipe::host_array& target) {
        input.resize<float>({1}, copipe::dtype::f32);
        target.resize<float>({1}, copipe::dtype::f32);
    }
};

/// What a run came to.
struct outcome {
    double seconds = 0; ///< of all steps, and of moves unless they are free
    int moves = 0;
    double last_step = 0;   ///< seconds
    double utilisation = 0; ///< in the last step: time that ranks work over the time of the step, the mean of all ranks
};

/// Trains under a balancer. With `knows`, layers are before each step where that says, for free.
template <copipe::balancer Balancer>
outcome train(scenario const& of, partition start, Balancer decides,
              std::function<partition(scenario const&, int step)> const& knows = {}) {
    world now(of);
    copipe::simulation clock;
    copipe::model<simulated_device> layers;
    for (int layer = 0; layer < of.layers; ++layer) layers.add(timed_layer{&now, layer});
    auto const device = [&](int rank) {
        return std::make_unique<simulated_device>(
            clock, copipe::simulated_behaviour{.seconds_per_byte = layer_seconds / layer_bytes,
                                               .stretch = [&now, rank](double, double seconds) {
                                                   return seconds * now.slowness[rank];
                                               }});
    };
    copipe::trainer<copipe::one_f_one_b, simulated_device, Balancer> trainer(
        layers,
        {.ranks = of.ranks, .micro_batches = of.micro_batches, .layers = start, .exec = &clock, .make_device = device},
        {}, std::move(decides));

    outcome done;
    for (int step = 0; step < of.steps; ++step) {
        now.begin(step);
        if (knows) {
            auto const next = knows(of, step);
            if (next != trainer.layers()) trainer.repartition(next);
        }
        auto const report = trainer.step(nothing{});
        done.last_step = report.seconds;
        done.seconds += report.seconds + (report.moved ? report.moved->seconds : 0);
        done.moves += report.moved.has_value();
        double busy = 0;
        for (auto const& rank : report.measured.ranks) busy += rank.busy;
        done.utilisation = busy / report.seconds / of.ranks;
    }
    return done;
}

} // namespace bench
