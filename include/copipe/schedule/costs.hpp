// SPDX-License-Identifier: Apache-2.0
// What chunks and messages cost: the concept that predictions are made from, and its simplest model.
#pragma once

#include "copipe/schedule/action.hpp"
#include "copipe/schedule/messages.hpp"

#include <concepts>

namespace copipe {

/// What a step costs, in seconds (or any unit, if all use it), none negative:
///
/// - `costs.seconds(action)`: how long it takes its rank; of an overlapped pair, both halves together.
/// - `costs.occupancy(message)`: how long it keeps the link of its two ranks from the next message (bytes / bandwidth).
/// - `costs.latency(message)`: how much later it arrives.
template <class Costs>
concept cost_model = requires(Costs const costs, action const& work, message const& sent) {
    { costs.seconds(work) } -> std::same_as<double>;
    { costs.occupancy(sent) } -> std::same_as<double>;
    { costs.latency(sent) } -> std::same_as<double>;
};

/// Every stage and micro-batch costs the same; links have no limit. A full backward takes `input + weight`.
struct uniform_costs {
    double forward = 1;
    double input = 1;
    double weight = 1;
    double overlapped = sum_of_parts; ///< an overlapped pair
    double communication = 0;         ///< how long a message is under way

    static constexpr double sum_of_parts = -1;

    [[nodiscard]] constexpr double seconds(action const& work) const {
        if (work.overlapped()) return overlapped < 0 ? forward + input + weight : overlapped;
        switch (work.front().what) {
        case op::forward: return forward;
        case op::backward: return input + weight;
        case op::backward_input: return input;
        default: return weight;
        }
    }
    [[nodiscard]] constexpr double occupancy(message const&) const { return 0; }
    [[nodiscard]] constexpr double latency(message const&) const { return communication; }

    friend constexpr bool operator==(uniform_costs const&, uniform_costs const&) = default;
};
static_assert(cost_model<uniform_costs>);

} // namespace copipe
