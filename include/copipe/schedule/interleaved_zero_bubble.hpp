// SPDX-License-Identifier: Apache-2.0
// Interleaved zero bubble: interleaved chunks whose weight gradients fill the cool-down (in PyTorch's order).
#pragma once

#include "copipe/schedule/loop_walk.hpp"

namespace copipe {

/// Bubble (P-1)(F+I-W) of a chunk; vP chunks live on every rank. Rank r delays its weight gradients by r backwards.
template <int Chunks = 2>
struct interleaved_zero_bubble {
    static constexpr std::string_view name = "interleaved_zero_bubble";
    int chunks = Chunks; ///< stages on each rank

    [[nodiscard]] constexpr std::string_view refusal(shape size) const { return loop_walk::refusal(size, chunks); }
    [[nodiscard]] constexpr placement placed(shape size) const { return placement::loop(size.ranks, chunks); }

    [[nodiscard]] constexpr copipe::program program(shape size, int rank) const {
        loop_walk const walk(size, chunks, rank);
        int const warm_up = walk.warm_up(1);
        copipe::program order;
        order.reserve(3 * static_cast<std::size_t>(walk.length()));
        for (int k = 0; k < warm_up; ++k) order.push_back(walk.forward(k));
        for (int k = 0; k < walk.length() + rank; ++k) {
            if (k + warm_up < walk.length()) order.push_back(walk.forward(k + warm_up));
            if (k < walk.length()) order.push_back(walk.backward(k, op::backward_input));
            if (k >= rank) order.push_back(walk.backward(k - rank, op::backward_weight));
        }
        return order;
    }
};
static_assert(schedule_policy<interleaved_zero_bubble<>>);

} // namespace copipe
