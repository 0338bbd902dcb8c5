// SPDX-License-Identifier: Apache-2.0
// ZB-V: two chunks per rank in a V, no bubble within a rank's own span at 1F1B's memory (Qi et al., 2023).
#pragma once

#include "copipe/schedule/zero_bubble.hpp"

namespace copipe {

/// No idle time between a rank's first and last action where F = I = W; elsewhere it is small as long as W+2I >= 2F and
/// W+2F >= 2I.
struct zb_v {
    static constexpr std::string_view name = "zb_v";
    static constexpr stable_pattern patterns[] = {
        {.hop = {6, 0, 6, 0}, .turn = {-3, 1, -3}}, {.hop = {2, 4, 2, 4}, .turn = {}}};
    uniform_costs costs = {};

    [[nodiscard]] constexpr std::string_view refusal(shape) const { return cost_refusal(costs); }
    [[nodiscard]] constexpr placement placed(shape size) const { return placement::v(size.ranks); }
    /// Live chunks at most, each half of a 1F1B stage.
    [[nodiscard]] constexpr int memory(shape size) const { return 2 * size.ranks; }
    template <class = void> [[nodiscard]] constexpr std::vector<program> programs(shape size) const {
        return plan_zero_bubble(placed(size), size.micro_batches, memory(size), costs, patterns);
    }
};
static_assert(schedule_policy<zb_v>);

} // namespace copipe
