// SPDX-License-Identifier: Apache-2.0
// ZB-H1: 1F1B with split backwards, weight gradients in the cool-down, 1F1B's memory (Qi et al., 2023).
#pragma once

#include "copipe/schedule/zero_bubble.hpp"

namespace copipe {

/// One stage per rank. Bubble (P-1)(F+I-W), a third of 1F1B's where F = I = W.
struct zb_h1 {
    static constexpr std::string_view name = "zb_h1";
    static constexpr stable_pattern patterns[] = {{.hop = {1, 2}, .turn = {}}};
    uniform_costs costs = {};

    [[nodiscard]] constexpr std::string_view refusal(shape) const { return cost_refusal(costs); }
    [[nodiscard]] constexpr placement placed(shape size) const { return placement::single(size.ranks); }
    /// Live activations at most: as many as 1F1B's first rank holds.
    [[nodiscard]] constexpr int memory(shape size) const { return size.ranks; }
    template <class = void> [[nodiscard]] constexpr std::vector<program> programs(shape size) const {
        return plan_zero_bubble(placed(size), size.micro_batches, memory(size), costs, patterns);
    }
};
static_assert(schedule_policy<zb_h1>);

} // namespace copipe
