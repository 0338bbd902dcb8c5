// SPDX-License-Identifier: Apache-2.0
// Collects what the ranks of a process report, for the summary of a step or a timeline of several.
#pragma once

#include "copipe/schedule/span.hpp"

#include <atomic>
#include <cassert>
#include <cstddef>
#include <vector>

namespace copipe {

/// An observer that keeps every span, each rank's in a buffer of its own, in the order of recording.
///
/// Thread rules: `record` may be called by several ranks at once, each for its own spans; everything else only while no
/// step is running. Buffers keep their capacity, so after the longest step recording allocates nothing.
///
///     recorder spans{ranks};
///     // a step runs, observed by `spans`
///     summary.add(summarize(spans));
///     if (wanted(step)) spans.append_to(timeline);
///     spans.clear();
class recorder {
public:
    /// For ranks 0 to ranks-1 of the pipeline; those of other processes stay empty.
    template <class = void>
    explicit recorder(int ranks, std::size_t spans_per_rank = 1024) : buffers_(static_cast<std::size_t>(ranks)) {
        for (buffer& each : buffers_) each.spans.reserve(spans_per_rank);
    }

    template <class = void> void record(span const& measured) noexcept {
        assert(measured.rank >= 0 && measured.rank < ranks());
        try {
            buffers_[static_cast<std::size_t>(measured.rank)].spans.push_back(measured);
        } catch (...) {
            lost_.fetch_add(1, std::memory_order_relaxed);
        }
    }

    [[nodiscard]] int ranks() const noexcept { return static_cast<int>(buffers_.size()); }
    [[nodiscard]] std::vector<span> const& of(int rank) const {
        return buffers_.at(static_cast<std::size_t>(rank)).spans;
    }
    /// Spans for which there was no memory.
    [[nodiscard]] std::size_t lost() const noexcept { return lost_.load(std::memory_order_relaxed); }

    /// Copies what was recorded since the last `clear` to the end of a timeline, rank after rank.
    template <class = void> void append_to(std::vector<span>& timeline) const {
        for (buffer const& each : buffers_) timeline.insert(timeline.end(), each.spans.begin(), each.spans.end());
    }
    void clear() noexcept {
        for (buffer& each : buffers_) each.spans.clear();
    }

private:
    struct alignas(64) buffer { // ranks write to lines of their own
        std::vector<span> spans;
    };

    std::vector<buffer> buffers_;
    std::atomic<std::size_t> lost_{0};
};

} // namespace copipe
