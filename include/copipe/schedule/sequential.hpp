// SPDX-License-Identifier: Apache-2.0
// No pipeline: one rank, one stage, plain gradient accumulation. The reference that every other policy must equal.
#pragma once

#include "copipe/schedule/policy.hpp"

namespace copipe {

/// Forward and backward of one micro-batch after the other, on one rank.
struct sequential {
    static constexpr std::string_view name = "sequential";

    [[nodiscard]] constexpr std::string_view refusal(shape size) const {
        return size.ranks == 1 ? "" : "The sequential policy runs on exactly one rank.";
    }
    [[nodiscard]] constexpr placement placed(shape size) const { return placement::single(size.ranks); }

    [[nodiscard]] constexpr copipe::program program(shape size, int rank) const {
        copipe::program order;
        for (int m = 0; m < size.micro_batches; ++m) {
            order.push_back({op::forward, rank, m});
            order.push_back({op::backward, rank, m});
        }
        return order;
    }
};
static_assert(schedule_policy<sequential>);

} // namespace copipe
