// SPDX-License-Identifier: Apache-2.0
// The order in which a rank of an interleaved pipeline goes over its chunks; the interleaved policies share it.
#pragma once

#include "copipe/schedule/policy.hpp"

namespace copipe {

/// Rank r holds stages r, P+r, 2P+r and so on. Micro-batches advance in rounds: a round runs through the rank's first
/// stage, then through its second, and so forth; backwards take the stages in reverse.
class loop_walk {
public:
    constexpr loop_walk(shape size, int chunks, int rank)
        : size_(size), chunks_(chunks), rank_(rank), round_(size.micro_batches / rounds(size)) {}

    static constexpr std::string_view refusal(shape size, int chunks) {
        if (chunks < 1) return "An interleaved schedule needs at least one chunk on each rank.";
        if (size.micro_batches % rounds(size) == 0) return "";
        return "An interleaved schedule needs equal rounds: micro-batches in a multiple of (micro-batches div ranks).";
    }

    /// How many forwards, and how many backwards, the rank runs.
    [[nodiscard]] constexpr int length() const { return chunks_ * size_.micro_batches; }

    /// Forwards before the first backward: all but the last stage of one round, and `per_hop` for each later rank.
    [[nodiscard]] constexpr int warm_up(int per_hop) const {
        int const forwards = (chunks_ - 1) * round_ + per_hop * (size_.ranks - 1 - rank_);
        return forwards < length() ? forwards : length();
    }

    /// The rank's k-th forward.
    [[nodiscard]] constexpr chunk forward(int k) const { return at(k, op::forward); }
    /// The rank's k-th backward, full or one of its halves.
    [[nodiscard]] constexpr chunk backward(int k, op what = op::backward) const { return at(k, what); }

private:
    static constexpr int rounds(shape of) { return of.micro_batches < of.ranks ? 1 : of.micro_batches / of.ranks; }

    constexpr chunk at(int k, op what) const {
        int const pass = k / round_; // one round through one stage
        int const held = what == op::forward ? pass % chunks_ : chunks_ - 1 - pass % chunks_;
        return {what, held * size_.ranks + rank_, pass / chunks_ * round_ + k % round_};
    }

    shape size_;
    int chunks_; ///< stages on each rank
    int rank_;
    int round_; ///< micro-batches of a round
};

} // namespace copipe
