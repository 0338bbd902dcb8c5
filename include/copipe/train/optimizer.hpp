// SPDX-License-Identifier: Apache-2.0
// What the trainer asks of an optimizer, and of a stream in order to clip gradients by their norm.
#pragma once

#include "copipe/device/host_stream.hpp"
#include "copipe/model/parameter.hpp"

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>

namespace copipe {

/// An optimizer on a device whose streams are `Stream`s.
///
/// - `Optimizer::state_names`: an array of the names of what it keeps per parameter; the trainer gives
///   `parameter.state` one 32-bit tensor for each, of the parameter's sizes, zero at first. They are part of
///   checkpoints.
/// - `optimizer.update(stream, parameter, step, learning_rate, gradient_scale)`: enqueues the update of value and
///   state from gradient times `gradient_scale`. `step` counts from 1. Must not wait, nor keep anything of its own:
///   all that one step leaves to the next is in the state.
///
/// See `adamw` for a conforming example.
template <class O, class Stream>
concept optimizer = std::is_copy_constructible_v<O> &&
                    requires(O const& update, Stream& stream, parameter& p, std::uint64_t step) {
    { O::state_names.size() } -> std::convertible_to<std::size_t>;
    { *O::state_names.begin() } -> std::convertible_to<std::string_view>;
    update.update(stream, p, step, 1e-3, 1.0);
};

/// Enqueues `*out` = the sum of the squares of the parameter's gradient, in 64-bit arithmetic and an order that
/// depends on the number of elements alone. A device brings an overload for its own streams.
template <class = void> void square_sum(host_stream& stream, parameter const& p, double* out) {
    stream.launch([x = p.gradient.data(), count = p.gradient.count(), out] {
        // Sixteen running sums instead of one let the compiler use vector instructions without reordering anything.
        std::array<double, 16> sums{};
        std::size_t i = 0;
        for (; i + sums.size() <= count; i += sums.size())
            for (std::size_t lane = 0; lane < sums.size(); ++lane)
                sums[lane] += static_cast<double>(x[i + lane]) * static_cast<double>(x[i + lane]);
        for (std::size_t lane = 0; i + lane < count; ++lane)
            sums[lane] += static_cast<double>(x[i + lane]) * static_cast<double>(x[i + lane]);
        for (std::size_t half = sums.size() / 2; half > 0; half /= 2)
            for (std::size_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
        *out = sums[0];
    });
}

} // namespace copipe
