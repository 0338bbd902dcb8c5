// SPDX-License-Identifier: Apache-2.0
// 1F1B: one forward, one backward (PipeDream-Flush; Narayanan et al., 2021).
#pragma once

#include "copipe/schedule/policy.hpp"

namespace copipe {

/// One stage per rank. GPipe's bubble, (P-1)(F+B), but rank r holds at most P-r activations: it runs that many forwards
/// to warm up, then a backward frees an activation before a forward takes one.
struct one_f_one_b {
    static constexpr std::string_view name = "one_f_one_b";

    [[nodiscard]] constexpr std::string_view refusal(shape) const { return ""; }
    [[nodiscard]] constexpr placement placed(shape size) const { return placement::single(size.ranks); }

    [[nodiscard]] constexpr copipe::program program(shape size, int rank) const {
        int const warm_up = size.ranks - rank;
        copipe::program order;
        for (int m = 0; m < warm_up && m < size.micro_batches; ++m) order.push_back({op::forward, rank, m});
        for (int m = 0; m < size.micro_batches; ++m) {
            order.push_back({op::backward, rank, m});
            if (m + warm_up < size.micro_batches) order.push_back({op::forward, rank, m + warm_up});
        }
        return order;
    }
};
static_assert(schedule_policy<one_f_one_b>);

} // namespace copipe
