// SPDX-License-Identifier: Apache-2.0
// Where the time of a step went: per rank how long it was busy, how long idle, in which phase, and what it waited for.
#pragma once

#include "copipe/schedule/span.hpp"

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <vector>

namespace copipe {

/// How many wait reasons there are.
inline constexpr std::size_t wait_reasons = static_cast<std::size_t>(wait_reason::reduction) + 1;

/// One rank's share of a step; seconds. `busy + bubble` is the step's makespan.
struct rank_summary {
    double busy = 0;       ///< at least one chunk was running
    double overlapped = 0; ///< of `busy`: in overlapped pairs
    double bubble = 0;     ///< no chunk was running
    double warm_up = 0;    ///< of `bubble`: before the rank's first backward began (in evaluation, its first forward)
    double cool_down = 0;  ///< of `bubble`: after that and after its last forward
    /// `bubble` once more, by reason (index: `wait_reason`). A moment that several coroutines wait through is counted
    /// once, for the reason nearest to the cause; in `none` nobody waits, such as after the last chunk.
    std::array<double, wait_reasons> waiting{};
    double update = 0; ///< not in the makespan: from its end to that of the rank's last span (reduction, optimizer)

    [[nodiscard]] double steady() const noexcept { return bubble - warm_up - cool_down; }
    [[nodiscard]] double waiting_for(wait_reason why) const noexcept { return waiting[static_cast<std::size_t>(why)]; }
    [[nodiscard]] double bubble_ratio() const noexcept { return bubble > 0 ? bubble / (busy + bubble) : 0; }

    rank_summary& operator+=(rank_summary const& other) noexcept {
        busy += other.busy;
        overlapped += other.overlapped;
        bubble += other.bubble;
        warm_up += other.warm_up;
        cool_down += other.cool_down;
        for (std::size_t i = 0; i < waiting.size(); ++i) waiting[i] += other.waiting[i];
        update += other.update;
        return *this;
    }
};

/// One step, or the sum of several. The makespan reaches from the start of the first chunk to the end of the last, over
/// all ranks, in seconds, as in a `forecast`.
struct step_summary {
    double makespan = 0;
    std::vector<rank_summary> ranks;

    template <class = void> [[nodiscard]] std::vector<double> bubble_ratios() const {
        std::vector<double> ratios;
        for (rank_summary const& each : ranks) ratios.push_back(each.bubble_ratio());
        return ratios;
    }
    [[nodiscard]] double mean_bubble_ratio() const noexcept {
        double sum = 0;
        for (rank_summary const& each : ranks) sum += each.bubble_ratio();
        return ranks.empty() ? 0 : sum / static_cast<double>(ranks.size());
    }
};

[[nodiscard]] constexpr bool is_chunk(span_kind kind) noexcept { return kind <= span_kind::overlapped_backward; }
[[nodiscard]] constexpr bool is_overlapped(span_kind kind) noexcept {
    return kind == span_kind::overlapped_forward || kind == span_kind::overlapped_backward;
}
[[nodiscard]] constexpr bool is_forward(span_kind kind) noexcept {
    return kind == span_kind::forward || kind == span_kind::overlapped_forward;
}

/// A stretch of time, empty until something is added.
struct stretch {
    double start = 0;
    double end = 0;
    bool empty = true;

    constexpr void add(span const& part) noexcept {
        start = empty ? part.start : std::min(start, part.start);
        end = empty ? part.end : std::max(end, part.end);
        empty = false;
    }
};

/// One rank's spans of a step, in any order, within the step's stretch of chunks.
template <class = void> class rank_sweep {
public:
    rank_sweep(std::vector<span> const& spans, stretch const& step) {
        stretch forwards, others, all;
        for (span const& each : spans) {
            all.add(each);
            if (each.kind == span_kind::wait) {
                mark(each, static_cast<std::size_t>(each.reason));
            } else if (is_chunk(each.kind)) {
                mark(each, busy);
                if (is_overlapped(each.kind)) mark(each, overlapped);
                (is_forward(each.kind) ? forwards : others).add(each);
            }
        }
        if (others.empty) others = forwards;
        edges_.push_back({step.start, within, 1});
        edges_.push_back({step.end, within, -1});
        edges_.push_back({others.empty ? step.end : others.start, phase, 1});
        edges_.push_back({others.empty ? step.end : std::max(forwards.end, others.start), phase, 1});
        std::sort(edges_.begin(), edges_.end(), [](edge const& a, edge const& b) { return a.time < b.time; });
        found_.update = all.empty ? 0 : std::max(0.0, all.end - step.end);
    }

    [[nodiscard]] rank_summary run() {
        double now = edges_.front().time;
        for (edge const& next : edges_) {
            if (open_[within] > 0) spend(next.time - now);
            now = next.time;
            open_[next.what] += next.change;
        }
        return found_;
    }

private:
    // What can be going on at a moment: a wait (numbered by its reason), a chunk, a half of a pair, the step itself.
    static constexpr std::size_t busy = wait_reasons, overlapped = busy + 1, within = busy + 2, phase = busy + 3;
    struct edge {
        double time;
        std::size_t what;
        int change;
    };

    void mark(span const& each, std::size_t what) {
        edges_.push_back({each.start, what, 1});
        edges_.push_back({each.end, what, -1});
    }
    void spend(double seconds) noexcept {
        if (open_[busy] > 0) {
            found_.busy += seconds;
            if (open_[overlapped] > 0) found_.overlapped += seconds;
            return;
        }
        found_.bubble += seconds;
        found_.waiting[static_cast<std::size_t>(cause())] += seconds;
        if (open_[phase] == 0) found_.warm_up += seconds;
        if (open_[phase] == 2) found_.cool_down += seconds;
    }
    /// While a chunk waits for its input, those behind it wait for their turn or for memory: the input is the cause.
    [[nodiscard]] wait_reason cause() const noexcept {
        for (auto const why : {wait_reason::input, wait_reason::reduction, wait_reason::device, wait_reason::host,
                               wait_reason::memory, wait_reason::turn})
            if (open_[static_cast<std::size_t>(why)] > 0) return why;
        return wait_reason::none;
    }

    std::vector<edge> edges_;
    std::array<int, phase + 1> open_{};
    rank_summary found_;
};

/// Summarizes the spans of one step, in any order: `of(rank)` are a rank's. Ranks of other processes have none and
/// count as idle.
template <class Of> [[nodiscard]] step_summary summarize(int ranks, Of const& of) {
    stretch step;
    for (int rank = 0; rank < ranks; ++rank)
        for (span const& each : of(rank))
            if (is_chunk(each.kind)) step.add(each);
    step_summary found{.makespan = step.end - step.start, .ranks = {}};
    for (int rank = 0; rank < ranks; ++rank) found.ranks.push_back(rank_sweep{of(rank), step}.run());
    return found;
}
/// Of a planned timeline.
template <class = void> [[nodiscard]] step_summary summarize(std::vector<std::vector<span>> const& ranks) {
    return summarize(static_cast<int>(ranks.size()),
                     [&](int rank) -> auto const& { return ranks[static_cast<std::size_t>(rank)]; });
}
/// Of anything that knows `ranks()` and `of(rank)`, such as a `recorder`.
template <class Recorder>
    requires requires(Recorder const& spans) { spans.of(spans.ranks() - 1); }
[[nodiscard]] step_summary summarize(Recorder const& spans) {
    return summarize(spans.ranks(), [&](int rank) -> auto const& { return spans.of(rank); });
}

} // namespace copipe
