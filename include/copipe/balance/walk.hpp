// SPDX-License-Identifier: Apache-2.0
// The cheapest walk through a small graph, each of whose edges takes some layers: what partitioning is, whether stages
// are cut off one by one or in pairs from both ends, in a given order of ranks or in the best.
#pragma once

#include "copipe/balance/bottleneck.hpp"
#include "copipe/balance/row.hpp"

#include <algorithm>
#include <utility>

namespace copipe {

/// States are numbered so that edges lead upwards. A walk leads from state 0 to the last one.
struct walk_edge {
    int from, to, device;
};
struct walk_graph {
    int states;
    row<walk_edge> edges; ///< sorted by `to`
};

/// One stage after the other, stage s on device s.
template <class = void> walk_graph straight_walk(int stages) {
    walk_graph graph{stages + 1, {}};
    for (int stage = 0; stage < stages; ++stage) graph.edges.push_back({stage, stage + 1, stage});
    return graph;
}

/// Dynamic programming over states and positions; a position says which layers remain.
template <class = void> class walk_search {
public:
    struct step {
        int device, from, to; ///< from one position to another
    };

    walk_search(walk_graph graph, int positions)
        : graph_(std::move(graph)), first_(graph_.states + 1), known_(positions) {}

    [[nodiscard]] walk_graph const& graph() const noexcept { return graph_; }

    /// Whether there is a walk from `start`. `extend(edge, position, take)` calls `take(position, price)` for each
    /// position that the edge leads to.
    template <class Extend>
    bool run(int start, Extend extend) {
        cells_ = {{start, -1, -1, 0}};
        for (int state = 1, e = 0; state < graph_.states; ++state) {
            int const first = first_[state] = cells_.count();
            for (; e < graph_.edges.count() && graph_.edges[e].to == state; ++e) {
                auto const edge = graph_.edges[e];
                for (int from = first_[edge.from]; from < first_[edge.from + 1]; ++from) {
                    cell const at = cells_[from];
                    extend(edge, at.position, [&](int position, ticks price) {
                        reach({position, edge.device, from, at.price + price}, first);
                    });
                }
            }
            first_[state + 1] = cells_.count();
        }
        int const end = first_[graph_.states - 1];
        if (end == cells_.count()) return false;
        auto const cheapest = std::min_element(cells_.begin() + end, cells_.end(),
                                               [](cell const& a, cell const& b) { return a.price < b.price; });
        last_ = static_cast<int>(cheapest - cells_.begin());
        return true;
    }

    /// The price and the steps of the cheapest walk found by the last run.
    [[nodiscard]] ticks price() const { return cells_[last_].price; }
    [[nodiscard]] row<step> steps() const {
        row<step> found;
        for (int at = last_; cells_[at].before >= 0; at = cells_[at].before)
            found.push_back({cells_[at].device, cells_[cells_[at].before].position, cells_[at].position});
        std::reverse(found.begin(), found.end());
        return found;
    }

private:
    struct cell {
        int position, device, before;
        ticks price;
    };

    void reach(cell const& next, int first) {
        int& known = known_[next.position];
        if (known < first || known >= cells_.count() || cells_[known].position != next.position) {
            known = cells_.count();
            cells_.push_back(next);
        } else if (next.price < cells_[known].price) {
            cells_[known] = next;
        }
    }

    walk_graph graph_;
    row<int> first_, known_; ///< the first cell of each state; the last cell of each position
    row<cell> cells_;
    int last_ = 0;
};

} // namespace copipe
