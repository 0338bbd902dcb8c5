// SPDX-License-Identifier: Apache-2.0
// AdamW: Adam whose weight decay is decoupled from the gradient.
#pragma once

#include "copipe/device/host_stream.hpp"
#include "copipe/model/parameter.hpp"
#include "copipe/train/optimizer.hpp"

#include <array>
#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace copipe {

/// One parameter's update as a kernel sees it: device addresses of `count` floats each, and the step's constants.
struct adamw_arguments {
    float* value;
    float const* gradient;
    float* exp_avg;
    float* exp_avg_sq;
    std::size_t count;
    float gradient_scale;
    float kept; ///< of the value: 1 - learning rate * weight decay
    float beta1;
    float rest1; ///< 1 - beta1
    float beta2;
    float rest2;
    float step_size; ///< learning rate / (1 - beta1^step)
    float root_size; ///< 1 / sqrt(1 - beta2^step)
    float epsilon;
};

/// Enqueues the update; a device brings an overload for its own streams. On the host g++ and clang make the loop four
/// times as fast when told -fno-math-errno, with the same bits.
template <class = void> void adamw_update(host_stream& stream, adamw_arguments const& with) {
    stream.launch([with] {
        adamw_arguments const a = with;
        for (std::size_t i = 0; i < a.count; ++i) {
            float const gradient = a.gradient[i] * a.gradient_scale;
            float const mean = a.beta1 * a.exp_avg[i] + a.rest1 * gradient;
            float const square = a.beta2 * a.exp_avg_sq[i] + a.rest2 * (gradient * gradient);
            a.exp_avg[i] = mean;
            a.exp_avg_sq[i] = square;
            a.value[i] = a.value[i] * a.kept - a.step_size * mean / (std::sqrt(square) * a.root_size + a.epsilon);
        }
    });
}

/// Loshchilov and Hutter, "Decoupled weight decay regularization", 2019. State and arithmetic in 32 bits. Weights
/// decay, biases and gains do not: only parameters of two dimensions or more.
struct adamw {
    static constexpr std::array<std::string_view, 2> state_names{"exp_avg", "exp_avg_sq"};

    double beta1 = 0.9;
    double beta2 = 0.999;
    double epsilon = 1e-8;
    double weight_decay = 0.01;

    /// Enqueues update number `step`, counting from 1.
    template <class Stream>
        requires requires(Stream& stream, adamw_arguments const& with) { adamw_update(stream, with); }
    void update(Stream& stream, parameter& p, std::uint64_t step, double learning_rate, double gradient_scale) const {
        assert(p.state.size() == state_names.size() && step >= 1);
        double const decay = p.sizes.rank() >= 2 ? learning_rate * weight_decay : 0;
        auto const power = static_cast<double>(step);
        adamw_update(stream, {.value = p.value.data(),
                              .gradient = p.gradient.data(),
                              .exp_avg = p.state[0].data(),
                              .exp_avg_sq = p.state[1].data(),
                              .count = p.count(),
                              .gradient_scale = static_cast<float>(gradient_scale),
                              .kept = static_cast<float>(1 - decay),
                              .beta1 = static_cast<float>(beta1),
                              .rest1 = static_cast<float>(1 - beta1),
                              .beta2 = static_cast<float>(beta2),
                              .rest2 = static_cast<float>(1 - beta2),
                              .step_size = static_cast<float>(learning_rate / (1 - std::pow(beta1, power))),
                              .root_size = static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, power))),
                              .epsilon = static_cast<float>(epsilon)});
    }
};
static_assert(optimizer<adamw, host_stream>);

} // namespace copipe
