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
          cuts_(problem.stages() + 1), bounds_(cuts_), spare_(problem.capacity) {
        ticks work = std::accumulate(problem.weights.begin(), problem.weights.end(), ticks{0});
        work = std::accumulate(problem.forward.begin(), problem.forward.end(), work);
        for (int rank = 0; rank < problem.ranks; ++rank) longest_ = std::max(longest_, problem.slowness(rank) * work);
        for (int rank = 0; rank < spare_.count() && !problem.fixed.empty(); ++rank) spare_[rank] -= problem.fixed[rank];
        for (int stage = 0; stage < problem.stages() && !spare_.empty(); ++stage)
            least_.push_back(costs.least_bytes(stage));
    }

    /// The partition within the bound whose `price(rank, begin, end)` over all stages sums to the least.
    template <class Price>
    probe_result cheapest(ticks bound, Price price) {
        tried_ = 0;
        price_ = never;
        ticks open = 0, slowest = 0;
        for (int rank = 0; rank < room_.count(); ++rank) open += room_[rank] = costs_.room(rank, bound);
        bound_ = bound;
        extend(0, open, 0, price);
        exact_ = exact_ && tried_ < limit_;
        if (price_ == never) return {false, bound < longest_ ? bound + 1 : never};
        for (int rank = 0; rank < room_.count(); ++rank) slowest = std::max(slowest, costs_.looped(rank, bounds_));
        return {true, slowest};
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
        bool const limited = !spare_.empty();
        auto const fits = [&](int end, ticks room) {
            return end + later <= layers_ && costs_.work()(begin, end) <= room;
        };
        auto const take = [&](int end) {
            ticks const room = room_[rank], done = costs_.work()(begin, end);
            ticks const bytes = limited ? least_[stage](begin, end) : 0;
            cuts_[stage + 1] = end;
            if (limited && bytes > spare_[rank]) return;
            if (limited && later < room_.count() && costs_.looped(rank, cuts_) > bound_) return;
            if (limited) spare_[rank] -= bytes;
            room_[rank] -= done;
            extend(stage + 1, open - (later < room_.count() ? room : done), so_far + price(rank, begin, end), price);
            room_[rank] = room;
            if (limited) spare_[rank] += bytes;
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
    row<ticks> spare_;        ///< [ranks] bytes that each has left if it recomputes what it can, where there are limits
    row<running_sums> least_{}; ///< [stages] what layers take of them
    ticks price_ = never, bound_ = 0;
    ticks longest_ = 0; ///< no partition that fits takes longer
    int tried_ = 0;
    bool exact_ = true;
};

} // namespace copipe
