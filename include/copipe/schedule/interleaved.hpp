// SPDX-License-Identifier: Apache-2.0
// Interleaved 1F1B: several chunks on each rank, so that a bubble lasts only a chunk (Narayanan et al., 2021).
#pragma once

#include "copipe/schedule/loop_walk.hpp"

namespace copipe {

/// Bubble (P-1)(F+B) of a chunk, 1/v of 1F1B's; more activations than 1F1B and v times its messages.
template <int Chunks = 2>
struct interleaved {
    static constexpr std::string_view name = "interleaved";
    int chunks = Chunks; ///< stages on each rank

    [[nodiscard]] constexpr std::string_view refusal(shape size) const { return loop_walk::refusal(size, chunks); }
    [[nodiscard]] constexpr placement placed(shape size) const { return placement::loop(size.ranks, chunks); }

    [[nodiscard]] constexpr copipe::program program(shape size, int rank) const {
        loop_walk const walk(size, chunks, rank);
        int const warm_up = walk.warm_up(2);
        copipe::program order;
        order.reserve(2 * static_cast<std::size_t>(walk.length()));
        for (int k = 0; k < warm_up; ++k) order.push_back(walk.forward(k));
        for (int k = 0; k < walk.length(); ++k) {
            if (k + warm_up < walk.length()) order.push_back(walk.forward(k + warm_up));
            order.push_back(walk.backward(k));
        }
        return order;
    }
};
static_assert(schedule_policy<interleaved<>>);

/// The same with one more forward to warm up, so that each later forward can overlap with a backward (Megatron-LM's
/// overlap of expert-parallel communication, 2025).
template <int Chunks = 2>
struct interleaved_overlapped {
    static constexpr std::string_view name = "interleaved_overlapped";
    int chunks = Chunks; ///< stages on each rank

    [[nodiscard]] constexpr std::string_view refusal(shape size) const { return loop_walk::refusal(size, chunks); }
    [[nodiscard]] constexpr placement placed(shape size) const { return placement::loop(size.ranks, chunks); }

    [[nodiscard]] constexpr copipe::program program(shape size, int rank) const {
        loop_walk const walk(size, chunks, rank);
        int const ahead = walk.warm_up(2) + 1;
        copipe::program order;
        order.reserve(2 * static_cast<std::size_t>(walk.length()));
        for (int k = 0; k < ahead && k < walk.length(); ++k) order.push_back(walk.forward(k));
        for (int k = 0; k < walk.length(); ++k) {
            if (k + ahead < walk.length())
                order.emplace_back(walk.forward(k + ahead), walk.backward(k));
            else
                order.push_back(walk.backward(k));
        }
        return order;
    }
};
static_assert(schedule_policy<interleaved_overlapped<>>);

} // namespace copipe
