// SPDX-License-Identifier: Apache-2.0
// How the learning rate changes over the steps of a run.
#pragma once

#include <cmath>
#include <concepts>
#include <cstdint>
#include <numbers>

namespace copipe {

/// A learning-rate schedule: `schedule(step)` is the rate of the update after `step` earlier ones. Pure, so that a
/// resumed run goes on exactly. Any callable will do, a lambda for instance.
template <class S>
concept learning_rate_schedule = std::copy_constructible<S> && requires(S const& schedule, std::uint64_t step) {
    { schedule(step) } -> std::convertible_to<double>;
};

/// The same rate at every step.
struct constant_rate {
    double rate;

    [[nodiscard]] constexpr double operator()(std::uint64_t) const noexcept { return rate; }
};

/// Rises in a straight line over `warm_up` steps, the last of which has the peak, then falls along half a cosine to
/// `floor` at the last of `steps`, and stays there. Loshchilov and Hutter, "SGDR: Stochastic gradient descent with
/// warm restarts", 2017, without the restarts.
struct cosine_rate {
    double peak;
    std::uint64_t steps;
    std::uint64_t warm_up = 0;
    double floor = 0;

    [[nodiscard]] double operator()(std::uint64_t step) const noexcept {
        double const number = static_cast<double>(step) + 1, rise = static_cast<double>(warm_up);
        if (step < warm_up) return peak * number / rise;
        if (number >= static_cast<double>(steps)) return floor;
        double const fallen = (number - rise) / (static_cast<double>(steps) - rise);
        return floor + (peak - floor) * 0.5 * (1 + std::cos(std::numbers::pi * fallen));
    }
};

static_assert(learning_rate_schedule<constant_rate> && learning_rate_schedule<cosine_rate>);

} // namespace copipe
