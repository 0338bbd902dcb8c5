// SPDX-License-Identifier: Apache-2.0
// Partitions into stages that are cut off the chain of layers one by one.
#pragma once

#include "copipe/balance/rank_costs.hpp"
#include "copipe/balance/walk.hpp"

namespace copipe {

/// Probes bounds on the time of the slowest stage.
template <class = void> class chain_search {
public:
    /// A stage has at least `fewest` layers, 0 or 1.
    chain_search(rank_costs const& costs, walk_graph graph, int layers, int fewest)
        : costs_(costs), walk_(std::move(graph), layers + 1), layers_(layers), fewest_(fewest),
          near_(walk_.graph().edges.count(), layers) {}

    /// Whether the bound can be kept as far as `floor` goes, with stages that may be empty: necessary, and fast. Finds
    /// from which layer on each state can still serve all the others.
    probe_result corridor(ticks bound) {
        refused_ = never;
        int const nowhere = layers_ + 1;
        auto const& graph = walk_.graph();
        first_.assign(static_cast<std::size_t>(graph.states), nowhere);
        first_.back() = layers_;
        for (int e = graph.edges.count() - 1; e >= 0; --e) {
            auto const [from, to, device] = graph.edges[e];
            int const end = first_[to];
            if (end == nowhere) continue;
            int& first = near_[e] = std::min(near_[e], end);
            while (first < end && !within(costs_.floor(device, first, end), bound)) ++first;
            if (first == end && !within(costs_.floor(device, end, end), bound)) continue;
            while (first > 0 && within(costs_.floor(device, first - 1, end), bound)) --first;
            first_[from] = std::min(first_[from], first);
        }
        return {first_[0] == 0, first_[0] == 0 ? bound : refused_};
    }

    /// The partition within the bound whose `price(device, begin, end)` over all stages sums to the least.
    template <class Price>
    probe_result cheapest(ticks bound, Price price) {
        if (auto const possible = corridor(bound); !possible.found) return possible;
        bool const found = walk_.run(0, [&](walk_edge const& edge, int begin, auto take) {
            for (int end = std::max(begin + fewest_, first_[edge.to]); end <= layers_; ++end) {
                if (!within(costs_.floor(edge.device, begin, end), bound)) break;
                if (within(costs_.time(edge.device, begin, end), bound)) take(end, price(edge.device, begin, end));
            }
        });
        if (!found) return {false, refused_};
        ticks slowest = 0;
        for (auto const& [device, begin, end] : walk_.steps())
            slowest = std::max(slowest, costs_.time(device, begin, end));
        return {true, slowest};
    }

    /// The partition found last: steps from the first layer of each stage to the first of the next.
    [[nodiscard]] walk_search<> const& found() const noexcept { return walk_; }

private:
    bool within(ticks time, ticks bound) {
        if (time > bound) refused_ = std::min(refused_, time);
        return time <= bound;
    }

    rank_costs const& costs_;
    walk_search<> walk_;
    int layers_, fewest_;
    ticks refused_ = never; ///< the least time that a bound has refused
    row<int> first_, near_; ///< the first layer of each state; of each edge, as the last probe left it
};

} // namespace copipe
