// SPDX-License-Identifier: Apache-2.0
// A layer and a dataset that fail where a test says so.
#pragma once

#include "pipeline/toy.hpp"

#include "copipe/schedule/action.hpp"

#include <atomic>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

namespace toy {

/// The place of a failure: in one function of one layer, on one micro-batch of the step.
struct failure {
    enum class in : std::uint8_t { nothing, host, launch };

    in how = in::nothing;
    int layer = 0;
    copipe::op function = copipe::op::forward; ///< forward, backward_input or backward_weight
    std::int64_t micro_batch = 0;
};

/// A dense layer that fails as told. All copies share the order.
struct brittle : dense {
    using dense::saved;
    int number;
    std::shared_ptr<failure const> order;

    brittle(int layer, std::shared_ptr<failure const> told) : number(layer), order(std::move(told)) {}

    void maybe_fail(context<host_device>& c, copipe::op function) const {
        if (order->how == failure::in::nothing || order->layer != number || order->function != function ||
            order->micro_batch != c.micro_batch) {
            return;
        }
        if (order->how == failure::in::host) throw std::runtime_error("broken layer");
        c.stream.launch([] { throw std::runtime_error("broken kernel"); });
    }
    auto forward(context<host_device>& c, tensor x, saved& s) -> tensor {
        maybe_fail(c, copipe::op::forward);
        return dense::forward(c, x, s);
    }
    auto backward_input(context<host_device>& c, tensor dy, saved& s) -> tensor {
        tensor dx = dense::backward_input(c, dy, s);
        maybe_fail(c, copipe::op::backward_input);
        return dx;
    }
    void backward_weight(context<host_device>& c, saved& s) {
        maybe_fail(c, copipe::op::backward_weight);
        dense::backward_weight(c, s);
    }
};

/// `depth` layers that fail as told, and the distance.
inline auto brittle_network(int depth, std::shared_ptr<failure const> const& order) -> copipe::model<host_device> {
    copipe::model<host_device> layers;
    for (int i = 0; i < depth; ++i) layers.add(brittle{i, order});
    layers.add(distance{});
    return layers;
}

/// Numbers whose load of one index, or whose n-th weight, fails.
struct brittle_numbers : numbers {
    std::uint64_t fails_at = ~std::uint64_t{0};
    mutable std::atomic<int> weights_left{1'000'000'000};

    void load(std::uint64_t index, copipe::host_array& input, copipe::host_array& target) const {
        if (index == fails_at) throw std::runtime_error("unreadable");
        numbers::load(index, input, target);
    }
    [[nodiscard]] auto weight(std::uint64_t index) const -> double {
        if (--weights_left == 0) throw std::runtime_error("weightless");
        return numbers::weight(index);
    }
};

} // namespace toy
