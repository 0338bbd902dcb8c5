// SPDX-License-Identifier: Apache-2.0
// What copipe's kernels in PTX do, for the fake CUDA runtime: the arguments are read as the launch does, by their
// declared types.
#pragma once

#include "copipe/train/adamw.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>

namespace fake {

template <class T>
[[nodiscard]] auto argument(void** arguments, std::size_t index) -> T {
    return *static_cast<T*>(arguments[index]);
}

/// The kernel of that name, its arguments bound.
[[nodiscard]] inline auto kernel(std::string const& name, unsigned blocks, void** arguments) -> std::function<void()> {
    if (name == "copipe_add") {
        auto* const sum = argument<float*>(arguments, 0);
        auto const* const addend = argument<float const*>(arguments, 1);
        auto const count = argument<std::uint64_t>(arguments, 2);
        return [=] {
            for (std::uint64_t i = 0; i < count; ++i) sum[i] += addend[i];
        };
    }
    if (name == "copipe_square_sums") {
        auto* const partial = argument<double*>(arguments, 0);
        auto const* const x = argument<float const*>(arguments, 1);
        auto const count = argument<std::uint64_t>(arguments, 2);
        return [=] {
            for (unsigned b = 0; b < blocks; ++b) partial[b] = 0;
            for (std::uint64_t i = 0; i < count; ++i)
                partial[i / 256 % blocks] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
        };
    }
    if (name == "copipe_total") {
        auto* const total = argument<double*>(arguments, 0);
        auto const* const partial = argument<double const*>(arguments, 1);
        auto const count = argument<unsigned>(arguments, 2);
        return [=] { *total = std::accumulate(partial, partial + count, 0.0); };
    }
    if (name == "copipe_product") {
        auto* const abc = argument<float*>(arguments, 0);
        std::size_t const n = argument<std::uint32_t>(arguments, 1);
        return [=] {
            for (std::size_t i = 0; i < n * n; ++i) {
                float sum = 0;
                for (std::size_t k = 0; k < n; ++k) sum = std::fma(abc[i / n * n + k], abc[(n + k) * n + i % n], sum);
                abc[2 * n * n + i] = sum;
            }
        };
    }
    if (name == "copipe_adamw") {
        auto const a = argument<copipe::adamw_arguments>(arguments, 0);
        return [=] {
            for (std::size_t i = 0; i < a.count; ++i) {
                float const g = a.gradient[i] * a.gradient_scale;
                a.exp_avg[i] = a.beta1 * a.exp_avg[i] + a.rest1 * g;
                a.exp_avg_sq[i] = a.beta2 * a.exp_avg_sq[i] + a.rest2 * (g * g);
                float const down = std::sqrt(a.exp_avg_sq[i]) * a.root_size + a.epsilon;
                a.value[i] = a.value[i] * a.kept - a.step_size * a.exp_avg[i] / down;
            }
        };
    }
    throw std::logic_error("the fake CUDA runtime does not know the kernel " + name);
}

} // namespace fake
