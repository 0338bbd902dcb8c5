// SPDX-License-Identifier: Apache-2.0
// V-Min: a V-shaped zero-bubble schedule in about a third of 1F1B's memory (Qi et al., 2024).
#pragma once

#include "copipe/schedule/zero_bubble.hpp"

namespace copipe {

/// Two chunks per rank in a V, every micro-batch on the shortest way through.
struct v_min {
    static constexpr std::string_view name = "v_min";
    static constexpr stable_pattern patterns[] = {
        {.hop = {1, 1, 1, 1}, .turn = {}},
        {.hop = {1, 1, 1, 1}, .turn = {0, 1, 0}},
        {.hop = {1, 1, 1, 1}, .turn = {0, 2, 0}},
        {.hop = {1, 1, 1, 1}, .turn = {0, 3, 0}}};
    uniform_costs costs = {};

    [[nodiscard]] constexpr std::string_view refusal(shape) const { return cost_refusal(costs); }
    [[nodiscard]] constexpr placement placed(shape size) const { return placement::v(size.ranks); }
    /// Live chunks at most, each half of a 1F1B stage: (P+4)/3 of 1F1B's activations.
    [[nodiscard]] constexpr int memory(shape size) const { return (size.ranks + 4) / 3 * 2; }
    template <class = void> [[nodiscard]] constexpr std::vector<program> programs(shape size) const {
        return plan_zero_bubble(placed(size), size.micro_batches, memory(size), costs, patterns);
    }
};
static_assert(schedule_policy<v_min>);

} // namespace copipe
