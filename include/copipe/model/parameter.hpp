// SPDX-License-Identifier: Apache-2.0
// A trainable tensor of a layer with its gradient and optimizer state, and how its first values are drawn.
#pragma once

#include "copipe/model/tensor.hpp"

#include <cmath>
#include <cstdint>
#include <numbers>
#include <string>
#include <vector>

namespace copipe {

/// Numbers that depend only on (seed, stream, index): the same on every rank and under every partition. SplitMix64 of a
/// counter (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
class counter_random {
public:
    constexpr counter_random(std::uint64_t seed, std::uint64_t stream) noexcept : key_(mix(seed ^ mix(stream))) {}
    [[nodiscard]] constexpr auto bits(std::uint64_t index) const noexcept -> std::uint64_t {
        return mix(key_ + 0x9e3779b97f4a7c15ULL * (index + 1));
    }
    /// In (0, 1).
    [[nodiscard]] constexpr auto uniform(std::uint64_t index) const noexcept -> double {
        return (static_cast<double>(bits(index) >> 11) + 0.5) * 0x1p-53;
    }
    /// Standard normal, by Box and Muller's transform.
    [[nodiscard]] auto normal(std::uint64_t index) const -> double {
        double const radius = std::sqrt(-2.0 * std::log(uniform(2 * index)));
        return radius * std::cos(2.0 * std::numbers::pi * uniform(2 * index + 1));
    }

private:
    static constexpr auto mix(std::uint64_t z) noexcept -> std::uint64_t {
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
        return z ^ (z >> 31);
    }
    std::uint64_t key_;
};

/// The first values of a parameter: `mean` plus `deviation` times a standard normal.
struct initial {
    double mean = 0;
    double deviation = 0;
};
[[nodiscard]] constexpr auto constant(double value) noexcept -> initial { return {.mean = value}; }
[[nodiscard]] constexpr auto normal(double deviation) noexcept -> initial { return {.deviation = deviation}; }

/// A layer's parameter: 32-bit floats. The layer declares name, sizes and first values; the pipeline gives it memory
/// and draws the values when the layer is placed on a rank. `backward_weight` adds to `gradient`.
///
/// Parameters of different layers with the same non-empty `tie` are one parameter with several uses (an embedding and
/// its output head): they start equal, their gradients are summed in layer order before the update, and so they stay
/// equal.
struct parameter {
    std::string name;
    extents sizes;
    initial first{};
    std::string tie{};

    tensor value{};
    tensor gradient{};
    std::vector<tensor> state{}; ///< the optimizer's, in its order; same sizes as value

    [[nodiscard]] auto count() const noexcept -> std::size_t { return static_cast<std::size_t>(sizes.count()); }
};

} // namespace copipe
