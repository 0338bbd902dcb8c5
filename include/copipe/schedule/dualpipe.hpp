// SPDX-License-Identifier: Apache-2.0
// DualPipe: micro-batches enter from both ends of the pipeline and overlap where they meet (DeepSeek-V3, 2024).
#pragma once

#include "copipe/schedule/dual_walk.hpp"

namespace copipe {

/// Two stages per rank, two copies of the parameters; rank r and rank P-1-r run mirror images of one program. Bubble
/// (P/2-1)(FB+B-3W) where F = I >= W; P+1 activations live on every rank.
struct dualpipe {
    static constexpr std::string_view name = "dualpipe";

    [[nodiscard]] constexpr std::string_view refusal(shape size) const {
        if (size.ranks % 2 != 0) return "DualPipe needs an even number of ranks.";
        if (size.micro_batches % 2 != 0) return "DualPipe needs an even number of micro-batches, half each way.";
        if (size.micro_batches < 2 * size.ranks) return "DualPipe needs at least twice as many micro-batches as ranks.";
        return "";
    }
    [[nodiscard]] constexpr placement placed(shape size) const { return placement::bidirectional(size.ranks); }

    [[nodiscard]] constexpr copipe::program program(shape size, int rank) const {
        int const from_end = size.ranks - 1 - rank;
        int const depth = rank < from_end ? rank : from_end;
        int const down = rank, up = size.ranks + from_end;
        return dual_walk::of({.near_stage = rank < from_end ? down : up,
                              .far_stage = rank < from_end ? up : down,
                              .reach = size.ranks / 2,
                              .depth = depth,
                              .steady = size.micro_batches / 2 - size.ranks + depth + 1});
    }
};
static_assert(schedule_policy<dualpipe>);

} // namespace copipe
