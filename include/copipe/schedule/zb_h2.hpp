// SPDX-License-Identifier: Apache-2.0
// ZB-H2: twice 1F1B's activations buy a rank's own span without any bubble (Qi et al., 2023).
#pragma once

#include "copipe/schedule/zero_bubble.hpp"

namespace copipe {

/// One stage per rank. Between its first and its last action a rank idles (P-1)(F+I-2W), nothing where F = I = W.
struct zb_h2 {
    static constexpr std::string_view name = "zb_h2";
    static constexpr stable_pattern patterns[] = {{.hop = {1, 5}, .turn = {}}, {.hop = {5, 1}, .turn = {}}};
    uniform_costs costs = {};

    [[nodiscard]] constexpr std::string_view refusal(shape) const { return cost_refusal(costs); }
    [[nodiscard]] constexpr placement placed(shape size) const { return placement::single(size.ranks); }
    /// Live activations at most.
    [[nodiscard]] constexpr int memory(shape size) const { return 2 * size.ranks - 1; }
    template <class = void> [[nodiscard]] constexpr std::vector<program> programs(shape size) const {
        return plan_zero_bubble(placed(size), size.micro_batches, memory(size), costs, patterns);
    }
};
static_assert(schedule_policy<zb_h2>);

} // namespace copipe
