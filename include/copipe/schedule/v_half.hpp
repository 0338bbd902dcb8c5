// SPDX-License-Identifier: Apache-2.0
// V-Half: a V-shaped zero-bubble schedule in about half of 1F1B's memory (Qi et al., 2024).
#pragma once

#include "copipe/schedule/zero_bubble.hpp"

namespace copipe {

/// Two chunks per rank in a V. A small bubble buys the memory.
struct v_half {
    static constexpr std::string_view name = "v_half";
    static constexpr stable_pattern patterns[] = {
        {.hop = {1, 2, 1, 2}, .turn = {}}, {.hop = {1, 2, 1, 2}, .turn = {0, 1, 0}}, {.hop = {3, 1, 3, 1}, .turn = {}}};
    uniform_costs costs = {};

    [[nodiscard]] constexpr std::string_view refusal(shape) const { return cost_refusal(costs); }
    [[nodiscard]] constexpr placement placed(shape size) const { return placement::v(size.ranks); }
    /// Live chunks at most, each half of a 1F1B stage: P/2+1 of 1F1B's activations.
    [[nodiscard]] constexpr int memory(shape size) const { return (size.ranks + 2) / 2 * 2; }
    template <class = void> [[nodiscard]] constexpr std::vector<program> programs(shape size) const {
        return plan_zero_bubble(placed(size), size.micro_batches, memory(size), costs, patterns);
    }
};
static_assert(schedule_policy<v_half>);

} // namespace copipe
