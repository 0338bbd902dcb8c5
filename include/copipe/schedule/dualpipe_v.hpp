// SPDX-License-Identifier: Apache-2.0
// DualPipeV: DualPipe cut in half, one copy of the parameters in a V over the ranks (DeepSeek and Sea AI Lab, 2025).
#pragma once

#include "copipe/schedule/dual_walk.hpp"

namespace copipe {

/// Rank r holds stage r on the way down and stage 2P-1-r on the way back. Bubble (P-1)(FB+B-3W) of a chunk where
/// F = I >= W; at most 2P+1 chunks live on a rank.
struct dualpipe_v {
    static constexpr std::string_view name = "dualpipe_v";

    [[nodiscard]] constexpr std::string_view refusal(shape size) const {
        return size.micro_batches >= 2 * size.ranks ? ""
                                                    : "DualPipeV needs at least twice as many micro-batches as ranks.";
    }
    [[nodiscard]] constexpr placement placed(shape size) const { return placement::v(size.ranks); }

    [[nodiscard]] constexpr copipe::program program(shape size, int rank) const {
        return dual_walk::of({.near_stage = rank,
                              .far_stage = 2 * size.ranks - 1 - rank,
                              .reach = size.ranks,
                              .depth = rank,
                              .steady = size.micro_batches - 2 * size.ranks + rank + 1});
    }
};
static_assert(schedule_policy<dualpipe_v>);

} // namespace copipe
