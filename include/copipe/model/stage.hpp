// SPDX-License-Identifier: Apache-2.0
// A stage: consecutive layers placed on one rank, with memory for their parameters.
#pragma once

#include "copipe/model/layer.hpp"

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace copipe {

/// Draws the first values of a parameter. They depend on the seed, the layer's number in the model and the parameter's
/// place in it (or, if tied, on the tie alone), never on the rank or the partition.
template <class = void> void draw(parameter const& p, std::uint64_t seed, std::size_t layer, std::size_t index,
                 std::vector<float>& values) {
    std::uint64_t name = (layer << 16U) + index;
    if (!p.tie.empty()) {
        name = 0xcbf29ce484222325ULL; // FNV-1a
        for (char each : p.tie) name = (name ^ static_cast<unsigned char>(each)) * 0x100000001b3ULL;
    }
    counter_random const random{seed, name};
    values.assign(p.count(), static_cast<float>(p.first.mean));
    if (p.first.deviation == 0) return;
    for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = static_cast<float>(p.first.mean + p.first.deviation * random.normal(i));
    }
}

/// Layer `number` of a model with memory for its parameters and gradients, their values undefined.
template <device Device>
[[nodiscard]] auto place_layer(model<Device> const& layers, int number, std::size_t micro_batches,
                               typename Device::stream& stream) -> any_layer<Device> {
    any_layer<Device> placed = layers.make(static_cast<std::size_t>(number));
    placed.reserve(micro_batches);
    placed.recompute(layers.is_recomputed(static_cast<std::size_t>(number)));
    for (parameter* each : placed.parameters()) {
        each->value = tensor{*stream.memory(), each->sizes};
        each->gradient = tensor{*stream.memory(), each->sizes};
    }
    return placed;
}

/// Layers first() to first()+size()-1 of a model, on one rank.
template <device Device>
class stage {
public:
    /// Builds the layers and their parameters on `stream`'s device and draws first values from `seed`; `micro_batches`
    /// may be in flight at once.
    stage(model<Device> const& layers, int first, int last, std::size_t micro_batches, std::uint64_t seed,
          typename Device::stream& stream)
        : first_(first) {
        std::vector<float> values;
        for (int number = first; number < last; ++number) {
            layers_.push_back(place_layer(layers, number, micro_batches, stream));
            std::size_t index = 0;
            for (parameter* each : layers_.back().parameters()) {
                draw(*each, seed, static_cast<std::size_t>(number), index++, values);
                stream.copy(each->value.data(), values.data(), each->value.bytes());
                stream.synchronize();
            }
        }
    }
    /// From layers placed already; the first one is layer `first` of the model.
    stage(int first, std::vector<any_layer<Device>> layers) noexcept : first_(first), layers_(std::move(layers)) {}

    [[nodiscard]] auto first() const noexcept -> int { return first_; }
    [[nodiscard]] auto size() const noexcept -> int { return static_cast<int>(layers_.size()); }
    /// Layer `number` of the model; it must be one of this stage's.
    [[nodiscard]] auto layer_at(int number) -> any_layer<Device>& {
        return layers_.at(static_cast<std::size_t>(number - first_));
    }
    [[nodiscard]] auto layers() noexcept -> std::vector<any_layer<Device>>& { return layers_; }

    // Each pass marks its begin and the end of each layer's, a backward with weights twice per layer.

    [[nodiscard]] auto forward(context<Device>& c, std::size_t slot, tensor x) -> task<tensor> {
        c.mark();
        c.layer = first_;
        for (auto& each : layers_) {
            x = co_await each.forward(c, slot, std::move(x));
            c.mark();
            if (!c.training) each.drop(slot);
            ++c.layer;
        }
        co_return x;
    }

    /// The input gradient of all layers, and with `weights` each layer's weight gradient as soon as it can be had.
    [[nodiscard]] auto backward(context<Device>& c, std::size_t slot, tensor dy, bool weights) -> task<tensor> {
        c.mark();
        c.layer = first_ + size();
        for (auto each = layers_.rbegin(); each != layers_.rend(); ++each) {
            --c.layer;
            dy = co_await each->backward_input(c, slot, std::move(dy));
            c.mark();
            if (!weights) continue;
            co_await each->backward_weight(c, slot);
            c.mark();
            each->drop(slot);
        }
        co_return dy;
    }

    [[nodiscard]] auto backward_weight(context<Device>& c, std::size_t slot) -> task<> {
        c.mark();
        c.layer = first_ + size();
        for (auto each = layers_.rbegin(); each != layers_.rend(); ++each) {
            --c.layer;
            co_await each->backward_weight(c, slot);
            c.mark();
            each->drop(slot);
        }
    }

    /// Forgets everything saved by micro-batches in flight, after a failed step.
    void drop_all(std::size_t micro_batches) noexcept {
        for (auto& each : layers_) {
            for (std::size_t slot = 0; slot < micro_batches; ++slot) each.drop(slot);
        }
    }

private:
    int first_;
    std::vector<any_layer<Device>> layers_{};
};

} // namespace copipe
