// SPDX-License-Identifier: Apache-2.0
// Partitions for ranks that hold two stages, one from each end of the model (DualPipe, DualPipeV): pairs of stages are
// cut off from the outside in, each at once.
#pragma once

#include "copipe/balance/rank_costs.hpp"
#include "copipe/balance/walk.hpp"

namespace copipe {

/// Probes bounds on the time of the slowest pair of stages. A position of the walk says which layers remain.
template <class = void> class pair_search {
public:
    /// A stage has at least `fewest` layers, 0 or 1.
    pair_search(rank_costs const& costs, int pairs, int layers, int fewest)
        : costs_(costs), walk_(straight_walk(pairs), (layers + 1) * (layers + 1)), pairs_(pairs), layers_(layers),
          fewest_(fewest) {}

    /// The partition within the bound whose `price(pair, begin, end)` over all stages sums to the least.
    template <class Price>
    probe_result cheapest(ticks bound, Price price) {
        row<ticks> inner(pairs_); // what the pairs inside of each can do
        for (int pair = pairs_ - 1; pair > 0; --pair) inner[pair - 1] = inner[pair] + costs_.room(pair, bound);
        refused_ = never;
        bool const found = walk_.run(layers_, [&](walk_edge const& edge, int remaining, auto take) {
            auto const taken = [&, pair = edge.device](int l, int r) {
                take(l * (layers_ + 1) + r, price(pair, left(remaining), l) + price(pair, r, right(remaining)));
            };
            extend(edge.device, remaining, inner[edge.device], bound, taken);
        });
        ticks slowest = 0;
        for (auto const& [pair, outer, rest] : found ? walk_.steps() : row<walk_search<>::step>{})
            slowest = std::max(slowest, costs_.floor(pair, left(outer), left(rest), right(rest), right(outer)));
        return {found, found ? slowest : refused_};
    }

    [[nodiscard]] walk_search<> const& found() const noexcept { return walk_; }
    /// The layers that remain at a position: those from `left` to `right`.
    [[nodiscard]] int left(int position) const noexcept { return position / (layers_ + 1); }
    [[nodiscard]] int right(int position) const noexcept { return position % (layers_ + 1); }

private:
    /// All ways to take a pair's layers that leave no more work than the pairs inside can do.
    template <class Take>
    void extend(int pair, int remaining, ticks inner, ticks bound, Take take) {
        int const begin = left(remaining), end = right(remaining), needed = 2 * fewest_ * (pairs_ - 1 - pair);
        auto const within = [&](ticks time) {
            if (time > bound && time != never) refused_ = bound + 1;
            return time <= bound;
        };
        for (int l = begin + fewest_, r = l; l + needed + fewest_ <= end; ++l) {
            if (!within(costs_.floor(pair, begin, l, end, end))) return;
            int const most = pair + 1 == pairs_ ? l : end - fewest_;
            for (r = std::max(r, l); r < most && costs_.work()(l, r + 1) <= inner;) ++r;
            if (r < most) refused_ = bound + 1;
            for (int far = r; far >= l + needed && within(costs_.floor(pair, begin, l, far, end)); --far) take(l, far);
        }
    }

    rank_costs const& costs_;
    walk_search<> walk_;
    int pairs_, layers_, fewest_;
    ticks refused_ = never; ///< a larger bound that may succeed
};

} // namespace copipe
