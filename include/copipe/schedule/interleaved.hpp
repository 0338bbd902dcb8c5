// SPDX-License-Identifier: Apache-2.0
// Interleaved 1F1B: several chunks on each rank, so that a bubble lasts only a chunk (Narayanan et al., 2021).
#pragma once

#include "copipe/schedule/loop_walk.hpp"

namespace copipe {

/// `interleaved`, and `interleaved_overlapped`, which runs one more forward to warm up so that each later one can
/// overlap with a backward.
template <int Chunks, bool Overlapped>
struct basic_interleaved {
    static constexpr std::string_view name = Overlapped ? "interleaved_overlapped" : "interleaved";
    int chunks = Chunks; ///< stages on each rank

    [[nodiscard]] constexpr std::string_view refusal(shape size) const { return loop_walk::refusal(size, chunks); }
    [[nodiscard]] constexpr placement placed(shape size) const { return placement::loop(size.ranks, chunks); }

    [[nodiscard]] constexpr copipe::program program(shape size, int rank) const {
        loop_walk const walk(size, chunks, rank);
        int const ahead = walk.warm_up(2) + (Overlapped ? 1 : 0);
        copipe::program order;
        order.reserve(2 * static_cast<std::size_t>(walk.length()));
        for (int k = 0; k < ahead && k < walk.length(); ++k) order.push_back(walk.forward(k));
        for (int k = 0; k < walk.length(); ++k) {
            bool const more = k + ahead < walk.length();
            if (more && Overlapped) {
                order.push_back({walk.forward(k + ahead), walk.backward(k)});
            } else {
                if (more) order.push_back(walk.forward(k + ahead));
                order.push_back(walk.backward(k));
            }
        }
        return order;
    }
};

/// Bubble (P-1)(F+B) of a chunk, 1/v of 1F1B's; more activations than 1F1B and v times its messages.
template <int Chunks = 2>
using interleaved = basic_interleaved<Chunks, false>;

/// Interleaved 1F1B in overlapped pairs (Megatron-LM's overlap of expert-parallel communication, 2025).
template <int Chunks = 2>
using interleaved_overlapped = basic_interleaved<Chunks, true>;

static_assert(schedule_policy<interleaved<>> && schedule_policy<interleaved_overlapped<>>);

} // namespace copipe
