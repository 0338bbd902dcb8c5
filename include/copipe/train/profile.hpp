// SPDX-License-Identifier: Apache-2.0
// Measures each layer once before the run, and predicts from that what a schedule will cost: time, bubble, memory.
#pragma once

#include "copipe/model/partition.hpp"
#include "copipe/model/stage.hpp"
#include "copipe/pipeline/dataset.hpp"
#include "copipe/schedule/evaluate.hpp"
#include "copipe/schedule/verify.hpp"
#include "copipe/train/layer_profile.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <vector>

namespace copipe {

/// Runs micro-batch 0 through all layers on one device, `repeats` times after a warm-up, and takes the fastest of each.
/// Once more, all of them recomputed, for `checkpoint_bytes`. The device must hold the whole model once. Throws what a
/// layer throws.
template <device Device, dataset Data>
[[nodiscard]] auto profile_layers(model<Device> const& layers, Data const& data, int repeats = 3)
    -> std::vector<layer_profile> {
    host_array input, target; // outlive the device, which reads them
    Device dev;
    auto& stream = dev.open_stream("profile");
    stage<Device> all{layers, 0, static_cast<int>(layers.size()), 1, 0, stream};
    data.load(0, input, target);
    auto const upload = [&](host_array const& from) {
        tensor to{*stream.memory(), from.sizes(), from.type()};
        stream.copy(to.data(), from.data(), from.bytes());
        return to;
    };
    std::vector<layer_profile> found(layers.size());
    for (std::size_t i = 0; i < found.size(); ++i) {
        for (parameter const* p : all.layers()[i].parameters()) {
            found[i].parameter_bytes += p->value.bytes();
            stream.zero(p->gradient.data(), p->gradient.bytes());
        }
    }
    // Of a pass: the fastest so far, and the most memory that it needed besides what was in use before.
    auto const measure = [&](layer_profile& of, double& best, bool counts) {
        dev.reset_peak_memory();
        return [&, counts, before = dev.memory_in_use(), started = stream.record(timing::on)](std::size_t kept) {
            typename Device::event const ended = stream.record(timing::on);
            stream.synchronize();
            if (!counts) return;
            best = std::min(best > 0 ? best : std::numeric_limits<double>::max(), ended.time() - started.time());
            of.working_bytes = std::max(of.working_bytes, dev.peak_memory() - before - kept);
        };
    };
    auto const pass = [&](bool counts, std::size_t layer_profile::* saved) -> task<> {
        context<Device> work{.stream = stream, .target = upload(target), .run = 1};
        tensor value = upload(input);
        for (std::size_t i = 0; i < found.size(); ++i) {
            std::size_t const before = dev.memory_in_use();
            auto const stop = measure(found[i], found[i].forward, counts);
            value = co_await all.layers()[i].forward(work, 0, std::move(value));
            found[i].*saved = std::max(dev.memory_in_use(), before) - before;
            stop(found[i].*saved);
        }
        value = {};
        for (std::size_t i = found.size(); i-- > 0;) {
            auto const stop_input = measure(found[i], found[i].backward_input, counts);
            value = co_await all.layers()[i].backward_input(work, 0, std::move(value));
            stop_input(0);
            auto const stop_weight = measure(found[i], found[i].backward_weight, counts);
            co_await all.layers()[i].backward_weight(work, 0);
            stop_weight(0);
            all.layers()[i].drop(0);
        }
    };
    executor exec;
    run(exec, pass(false, &layer_profile::derived_bytes)); // the first time, what stays is among what is kept
    for (int i = 0; i < repeats; ++i) run(exec, pass(true, &layer_profile::saved_bytes));
    for (layer_profile& each : found) each.derived_bytes -= std::min(each.derived_bytes, each.saved_bytes);
    for (auto& each : all.layers()) each.recompute(true);
    run(exec, pass(false, &layer_profile::checkpoint_bytes));
    return found;
}

/// Costs per stage, as the evaluator wants them. Communication is taken as free and an overlapped pair as the sum of
/// its halves: true of ranks on CPU threads.
class stage_costs {
public:
    template <class = void>
    stage_costs(std::vector<layer_profile> const& layers, partition const& cut, placement const& where)
        : parts_(where.model_stages()) {
        for (int stage = 0; stage < cut.stages(); ++stage) {
            std::array<double, 3>& sum = seconds_.emplace_back();
            for (int layer = cut.first(stage); layer < cut.last(stage); ++layer) {
                layer_profile const& each = layers.at(static_cast<std::size_t>(layer));
                sum[0] += each.forward;
                sum[1] += each.backward_input;
                sum[2] += each.backward_weight;
            }
        }
    }
    template <class = void> [[nodiscard]] auto seconds(action const& work) const -> double {
        double sum = 0;
        for (chunk const& each : work.chunks()) {
            auto const& [f, i, w] = seconds_[static_cast<std::size_t>(each.stage % parts_)];
            sum += each.what == op::forward          ? f
                   : each.what == op::backward       ? i + w
                   : each.what == op::backward_input ? i
                                                     : w;
        }
        return sum;
    }
    [[nodiscard]] static constexpr auto occupancy(message const&) noexcept -> double { return 0; }
    [[nodiscard]] static constexpr auto latency(message const&) noexcept -> double { return 0; }

private:
    int parts_;
    std::vector<std::array<double, 3>> seconds_{};
};
static_assert(cost_model<stage_costs>);

/// What a rank's device will hold at most, in bytes: parameters with gradient and `states` optimizer tensors each, what
/// layers make of them, and the activations of its chunks in flight, as the schedule has them.
template <class = void>
[[nodiscard]] auto predicted_memory(std::vector<layer_profile> const& layers, partition const& cut,
                                           placement const& where, program const& own, int rank, std::size_t states)
    -> std::size_t {
    std::size_t parameters = 0, derived = 0;
    std::vector<std::size_t> saved(static_cast<std::size_t>(where.stages()));
    for (int stage : where.stages_of(rank)) {
        int const part = where.model_stage(stage);
        for (int layer = cut.first(part); layer < cut.last(part); ++layer) {
            parameters += layers.at(static_cast<std::size_t>(layer)).parameter_bytes;
            derived += layers[static_cast<std::size_t>(layer)].derived_bytes;
            saved[static_cast<std::size_t>(stage)] += layers[static_cast<std::size_t>(layer)].saved_bytes;
        }
    }
    std::size_t live = 0;
    std::size_t peak = 0;
    for (action const& each : own) {
        for (chunk const& c : each.chunks()) live += c.what == op::forward ? saved[c.stage] : 0;
        peak = std::max(peak, live);
        for (chunk const& c : each.chunks())
            live -= c.what == op::backward || c.what == op::backward_weight ? saved[c.stage] : 0;
    }
    return parameters * (2 + states) + derived + peak;
}

} // namespace copipe
