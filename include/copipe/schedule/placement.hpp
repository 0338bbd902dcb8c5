// SPDX-License-Identifier: Apache-2.0
// Which rank holds which stage, and how stages follow one another.
#pragma once

#include <cstdint>
#include <vector>

namespace copipe {

/// The four ways that schedules lay stages over P ranks.
enum class layout : std::uint8_t {
    single,        ///< P stages, stage s on rank s
    loop,          ///< vP stages, stage s on rank s mod P (interleaved schedules)
    v,             ///< 2P stages, down the ranks and back up; the last rank hands stage P-1's output to itself
    bidirectional, ///< the ranks of `v`, but two chains: stages 0..P-1 enter at rank 0, stages P..2P-1 at rank P-1, and
                   ///< stage P+s is a second copy of stage s (DualPipe); half of the micro-batches takes each chain
};

/// Stages over ranks. Every question about a stage is answered here in constant time.
///
/// With `replicas`, the layout is repeated: each replica has its share of the ranks, all stages of the model, and its
/// share of the micro-batches, one replica after the other (see data_parallel).
struct placement {
    layout kind;
    int ranks;        ///< of all replicas together
    int per_rank;     ///< stages on each rank
    int replicas = 1; ///< divides `ranks`

    static constexpr placement single(int ranks) noexcept { return {layout::single, ranks, 1}; }
    static constexpr placement loop(int ranks, int per_rank) noexcept { return {layout::loop, ranks, per_rank}; }
    static constexpr placement v(int ranks) noexcept { return {layout::v, ranks, 2}; }
    static constexpr placement bidirectional(int ranks) noexcept { return {layout::bidirectional, ranks, 2}; }

    [[nodiscard]] constexpr int stages() const noexcept { return ranks * per_rank; }
    /// Ranks, and stages, of one replica.
    [[nodiscard]] constexpr int line() const noexcept { return replicas == 1 ? ranks : ranks / replicas; }
    [[nodiscard]] constexpr int line_stages() const noexcept { return line() * per_rank; }

    [[nodiscard]] constexpr int rank_of(int stage) const noexcept {
        if (replicas > 1) return stage / line_stages() * line() + one().rank_of(stage % line_stages());
        return !turns() ? stage % ranks : stage < ranks ? stage : 2 * ranks - 1 - stage;
    }

    /// The `k`-th stage of `rank`, k < `per_rank`, in ascending order.
    [[nodiscard]] constexpr int stage_of(int rank, int k) const noexcept {
        if (replicas > 1) return rank / line() * line_stages() + one().stage_of(rank % line(), k);
        return !turns() || k == 0 ? k * ranks + rank : 2 * ranks - 1 - rank;
    }
    [[nodiscard]] constexpr std::vector<int> stages_of(int rank) const {
        std::vector<int> held;
        for (int k = 0; k < per_rank; ++k) held.push_back(stage_of(rank, k));
        return held;
    }

    /// The stage takes the micro-batch's input; nothing precedes it.
    [[nodiscard]] constexpr bool is_first(int stage) const noexcept {
        if (replicas > 1) return one().is_first(stage % line_stages());
        return stage == 0 || (kind == layout::bidirectional && stage == ranks);
    }
    /// The stage computes the loss; nothing follows it.
    [[nodiscard]] constexpr bool is_last(int stage) const noexcept {
        if (replicas > 1) return one().is_last(stage % line_stages());
        return stage + 1 == stages() || (kind == layout::bidirectional && stage + 1 == ranks);
    }

    /// How many parts the model is cut into; two stages may hold the same part.
    [[nodiscard]] constexpr int model_stages() const noexcept {
        return kind == layout::bidirectional ? line() : line_stages();
    }
    /// How many stages hold each part of it.
    [[nodiscard]] constexpr int copies() const noexcept {
        return kind == layout::bidirectional ? 2 * replicas : replicas;
    }
    /// The part of the model that the stage holds.
    [[nodiscard]] constexpr int model_stage(int stage) const noexcept { return stage % model_stages(); }

    /// Which copy of its part the stage holds: 1 on DualPipe's second chain; replicas count on.
    [[nodiscard]] constexpr int direction(int stage) const noexcept { return stage / model_stages(); }

    /// How many micro-batches each stage sees in a step of `micro_batches`.
    [[nodiscard]] constexpr int micro_batches_per_stage(int micro_batches) const noexcept {
        return micro_batches / copies();
    }
    /// The place in the step's batch of what `stage` calls `micro_batch`.
    [[nodiscard]] constexpr int global_micro_batch(int stage, int micro_batch, int micro_batches) const noexcept {
        return direction(stage) * micro_batches_per_stage(micro_batches) + micro_batch;
    }

    /// The second half of the stages lies on the ranks in reverse.
    [[nodiscard]] constexpr bool turns() const noexcept { return kind >= layout::v; }

    friend constexpr bool operator==(placement const&, placement const&) = default;

private:
    [[nodiscard]] constexpr placement one() const noexcept { return {kind, line(), per_rank}; }
};

} // namespace copipe
