// SPDX-License-Identifier: Apache-2.0
// GPipe: all forwards, then all backwards (Huang et al., 2019).
#pragma once

#include "copipe/schedule/policy.hpp"

namespace copipe {

/// One stage per rank. Bubble (P-1)(F+B) per rank; all M activations live at once.
struct gpipe {
    static constexpr std::string_view name = "gpipe";

    [[nodiscard]] constexpr std::string_view refusal(shape) const { return ""; }
    [[nodiscard]] constexpr placement placed(shape size) const { return placement::single(size.ranks); }

    [[nodiscard]] constexpr copipe::program program(shape size, int rank) const {
        copipe::program order;
        for (op const what : {op::forward, op::backward})
            for (int m = 0; m < size.micro_batches; ++m) order.push_back({what, rank, m});
        return order;
    }
};
static_assert(schedule_policy<gpipe>);

} // namespace copipe
