// SPDX-License-Identifier: Apache-2.0
// Partitions for interleaved schedules, where stage s is on rank s mod P. That is NP-hard: a depth-first search, exact
// until a probe has tried the problem's `loop_limit` stages.
#pragma once

#include "copipe/balance/rank_costs.hpp"

namespace copipe {

/// Probes bounds on the time of the slowest rank.
template <class = void> class loop_search {
public:
    loop_search(rank_costs const& costs, partition_problem const& problem)
        : costs_(costs), layers_(problem.layers()), limit_(problem.loop_limit), room_(problem.ranks),
          cuts_(problem.stages() + 1), bounds_(cuts_) {}

    /// The partition within the bound whose `price(rank, begin, end)` over all stages sums to the least.
    template <class Price>
    probe_result cheapest(ticks bound, Price price) {
        tried_ = 0;
        price_ = never;
        ticks open = 0, slowest = 0;
        for (int rank = 0; rank < room_.count(); ++rank) open += room_[rank] = costs_.room(rank, bound);
        extend(0, open, 0, price);
        exact_ = exact_ && tried_ < limit_;
        row<ticks> time(room_.count());
        for (int stage = 0; stage + 1 < bounds_.count(); ++stage) {
            int const rank = stage % room_.count();
            slowest = std::max(slowest, time[rank] += costs_.floor(rank, bounds_[stage], bounds_[stage + 1]));
        }
        return {price_ != never, price_ != never ? slowest : bound + 1};
    }

    /// The bounds of the stages found last, also after probes that found none.
    [[nodiscard]] row<int> const& bounds() const noexcept { return bounds_; }
    /// Whether no probe was given up.
    [[nodiscard]] bool exact() const noexcept { return exact_; }

private:
    /// `open` is what the ranks that get another stage can still do. Even shares come first.
    template <class Price>
    void extend(int stage, ticks open, ticks so_far, Price price) {
        int const begin = cuts_[stage], later = cuts_.count() - 2 - stage, rank = stage % room_.count();
        if (so_far >= price_ || tried_ >= limit_ || costs_.work()(begin, layers_) > open) return;
        ++tried_;
        if (later < 0) {
            price_ = so_far;
            bounds_ = cuts_;
            return;
        }
        auto const fits = [&](int end, ticks room) {
            return end + later <= layers_ && costs_.work()(begin, end) <= room;
        };
        auto const take = [&](int end) {
            ticks const room = room_[rank], done = costs_.work()(begin, end);
            room_[rank] -= done;
            cuts_[stage + 1] = end;
            extend(stage + 1, open - (later < room_.count() ? room : done), so_far + price(rank, begin, end), price);
            room_[rank] = room;
        };
        int const first = later == 0 ? layers_ : begin + 1;
        int even = first;
        while (fits(even, room_[rank] / (later / room_.count() + 1))) ++even;
        for (int end = even - 1; end >= first; --end) take(end);
        for (int end = even; fits(end, room_[rank]); ++end) take(end);
    }

    rank_costs const& costs_;
    int layers_, limit_;
    row<ticks> room_;
    row<int> cuts_, bounds_;
    ticks price_ = never;
    int tried_ = 0;
    bool exact_ = true;
};

} // namespace copipe
