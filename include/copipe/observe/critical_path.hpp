// SPDX-License-Identifier: Apache-2.0
// Why a step took as long as it did: the chain of chunks that ends last, and what each rank waited for.
#pragma once

#include "copipe/schedule/messages.hpp"
#include "copipe/schedule/span.hpp"

#include <algorithm>
#include <cstddef>
#include <vector>

namespace copipe {

/// One rank's idle time within a step, in seconds, by cause.
struct idle_causes {
    double fill = 0;          ///< before its first chunk
    double dependency = 0;    ///< its next input was not made yet
    double communication = 0; ///< its next input was made and under way
    double drain = 0;         ///< after its last chunk
};

/// The chunks of one step and who waits for whom.
template <class = void> class step_graph {
public:
    /// One list of spans per rank, each in the order of execution, from an evaluation or from a recorder. Spans other
    /// than chunks are left out.
    step_graph(std::vector<std::vector<span>> const& ranks, placement const& where)
        : where_(where), chunks_(ranks.size()), makers_(2 * static_cast<std::size_t>(where.stages())) {
        for (std::size_t rank = 0; rank < ranks.size(); ++rank)
            for (span const& each : ranks[rank])
                if (each.kind <= span_kind::overlapped_backward) add(each, rank);
    }

    /// The chain that decides when the step ends, from its first chunk to its last: each follows the one before it on
    /// its rank or, where the rank waited, the chunk that made its last input.
    [[nodiscard]] std::vector<span> critical_path() const {
        std::vector<span> path;
        for (place at = end_; at.known();) {
            path.push_back(chunk_at(at));
            place const before = previous(at), source = last_input(at);
            bool const waited = !before.known() || chunk_at(before).end < chunk_at(at).start;
            at = waited && source.known() ? source : before;
        }
        std::reverse(path.begin(), path.end());
        return path;
    }

    /// Per rank, where its time went between 0 and the end of the step when it ran no chunk.
    [[nodiscard]] std::vector<idle_causes> idle() const {
        std::vector<idle_causes> ranks(chunks_.size());
        double const step_end = end_.known() ? chunk_at(end_).end : 0;
        for (std::size_t rank = 0; rank < chunks_.size(); ++rank) {
            double free = 0;
            for (std::size_t i = 0; i < chunks_[rank].size(); ++i) {
                span const& next = chunks_[rank][i];
                if (i == 0) {
                    ranks[rank].fill = next.start;
                } else if (next.start > free) {
                    place const source = last_input({rank, i});
                    double const made =
                        source.known() ? std::clamp(chunk_at(source).end, free, next.start) : next.start;
                    ranks[rank].dependency += made - free;
                    ranks[rank].communication += next.start - made;
                }
                free = std::max(free, next.end);
            }
            ranks[rank].drain = step_end - free;
        }
        return ranks;
    }

private:
    static constexpr std::size_t nowhere = static_cast<std::size_t>(-1);
    struct place {
        std::size_t rank = nowhere, index = 0;
        [[nodiscard]] bool known() const { return rank != nowhere; }
    };

    void add(span const& each, std::size_t rank) {
        chunks_[rank].push_back(each);
        place const here{rank, chunks_[rank].size() - 1};
        if (auto const out = output_of(each.what, where_)) {
            auto& made = makers_[makers_of(*out)];
            auto const m = static_cast<std::size_t>(out->micro_batch);
            if (m >= made.size()) made.resize(m + 1);
            made[m] = here;
        }
        if (!end_.known() || each.end > chunk_at(end_).end) end_ = here;
    }

    [[nodiscard]] span const& chunk_at(place at) const { return chunks_[at.rank][at.index]; }
    static std::size_t makers_of(message const& sent) {
        return 2 * std::size_t{sent.from_stage} + static_cast<std::size_t>(sent.direction);
    }

    /// The chunk that its rank had ended last when this one began.
    [[nodiscard]] place previous(place at) const {
        double const start = chunk_at(at).start;
        while (at.index > 0)
            if (chunk_at({at.rank, --at.index}).end <= start) return at;
        return {};
    }

    /// Who made the last of the inputs that the chunk, or the pair that it is half of, needs.
    [[nodiscard]] place last_input(place at) const {
        place last;
        for (std::size_t i = at.index > 0 ? at.index - 1 : 0; i <= at.index + 1 && i < chunks_[at.rank].size(); ++i) {
            span const& half = chunks_[at.rank][i];
            bool const together =
                i == at.index || (half.start == chunk_at(at).start && half.kind != chunk_at(at).kind &&
                                  half.kind >= span_kind::overlapped_forward);
            auto const in = together ? input_of(half.what, where_) : std::nullopt;
            if (!in || makers_[makers_of(*in)].size() <= static_cast<std::size_t>(in->micro_batch)) continue;
            place const maker = makers_[makers_of(*in)][static_cast<std::size_t>(in->micro_batch)];
            if (maker.known() && (!last.known() || chunk_at(maker).end > chunk_at(last).end)) last = maker;
        }
        return last;
    }

    placement where_;
    std::vector<std::vector<span>> chunks_;  ///< by rank
    std::vector<std::vector<place>> makers_; ///< by producing stage and flow, then by micro-batch
    place end_;
};

} // namespace copipe
