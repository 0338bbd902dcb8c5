// SPDX-License-Identifier: Apache-2.0
// The partition whose slowest rank is fastest, exactly, for every way that stages lie on ranks; among near optima, the
// one that moves the fewest bytes.
#pragma once

#include "copipe/balance/chain.hpp"
#include "copipe/balance/loops.hpp"
#include "copipe/balance/pairs.hpp"

#include <map>
#include <optional>
#include <utility>

namespace copipe {

/// A partition and what it costs.
struct partition_plan {
    ticks objective = 0;   ///< time of the slowest rank, or of the step; `replicated`: times common_share(ranks)
    row<int> bounds{};     ///< [stages + 1] stage s has the layers from bounds[s] to bounds[s + 1]
    row<int> order{};      ///< [stages] the rank of each stage where each rank has one
    row<int> replicas{};   ///< [stages] how many ranks share each stage where they are `replicated`
    row<int> recompute{};  ///< the layers to recompute
    ticks moved = 0;       ///< bytes that ranks get from others on the way from the present partition to this one
    bool exact = true;     ///< proved optimal; not so only where an NP-hard instance exceeds a stated limit
};

/// A partition in use. Of all within (1 + slack) times the optimum, the plan is one that moves the fewest bytes. For
/// the orders `single`, `loop`, `v` and `bidirectional`, without `micro_batches`.
struct present_partition {
    row<int> bounds;
    row<ticks> bytes; ///< [layers] parameters, optimizer state and all else that moves with a layer
    double slack = 0;
};

/// Throws partition_problem_error unless `present` is a partition of the problem and the problem is one that can take
/// it.
template <class = void> void require_comparable(partition_problem const& problem, present_partition const& present) {
    auto const& bounds = present.bounds;
    bool const right = bounds.count() == problem.stages() + 1 && bounds[0] == 0 && bounds.back() == problem.layers() &&
                       std::is_sorted(bounds.begin(), bounds.end()) && present.bytes.count() == problem.layers() &&
                       *std::min_element(present.bytes.begin(), present.bytes.end()) >= 0 && present.slack >= 0;
    if (!right) throw partition_problem_error("present", "is not a partition of these layers into these stages.");
    if (problem.order == stage_order::best || problem.order == stage_order::replicated || problem.micro_batches > 0)
        throw partition_problem_error("present", "does not go with a free order, replicas or `micro_batches`.");
}

/// The layers to recompute so that every rank has enough memory under a partition, as cheaply as can be; nothing if
/// even all of them would not do. For the orders `single`, `loop`, `v` and `bidirectional`.
template <class = void>
[[nodiscard]] std::optional<row<int>> recompute_for(partition_problem const& problem, row<int> const& bounds) {
    rank_costs const costs(problem);
    row<int> found;
    int const stages = problem.stages();
    bool const loop = problem.order == stage_order::loop;
    for (int rank = 0; rank < (problem.mirrored() ? stages / 2 : problem.ranks); ++rank) {
        int const far = problem.mirrored() ? stages - rank : 0;
        auto const choice =
            loop ? costs.recomputed(rank, bounds)
                 : costs.recomputed(rank, bounds[rank], bounds[rank + 1], bounds[std::max(far - 1, 0)], bounds[far]);
        if (choice.extra == never) return {};
        found.insert(found.end(), choice.layers.begin(), choice.layers.end());
    }
    std::sort(found.begin(), found.end());
    return found;
}

/// [ranks] the bytes that each rank needs under a partition if these layers are recomputed. For the same orders.
template <class = void> [[nodiscard]] row<ticks> bytes_of(partition_problem const& problem, row<int> const& bounds,
                                         row<int> const& recomputed) {
    stage_map const where{problem.order, problem.ranks, problem.stages_per_rank};
    bool const loop = problem.order == stage_order::loop;
    row<ticks> needed = problem.fixed.empty() ? row<ticks>(problem.ranks) : problem.fixed;
    row<char> any(problem.ranks);
    for (int copy = 0; copy < where.copies(); ++copy)
        for (int stage = 0; stage < where.stages(); ++stage) {
            int const rank = where.rank_of(stage, copy);
            bool const far = stage != rank && !loop;
            int const at = loop ? stage : rank;
            ticks const held = (far ? problem.in_flight_far : problem.in_flight)[at];
            auto const& restored = far ? problem.restored_far : problem.restored;
            for (int i = bounds[stage]; i < bounds[stage + 1]; ++i) {
                bool const again = std::binary_search(recomputed.begin(), recomputed.end(), i);
                needed[rank] += problem.parameters[i];
                needed[rank] += held * (again ? problem.checkpoint : problem.activations)[i];
                if (again && !restored.empty()) needed[rank] += restored[at] * problem.activations[i];
                if (again && any[rank]++ == 0) needed[rank] += problem.recompute_space;
            }
        }
    return needed;
}

/// `stage_order::best` is exact up to this many sets of ranks, ranks of one speed being alike: 14 different ranks, or
/// 127 of each of two speeds. Beyond, ranks of nearly the same speed count as equally slow.
inline constexpr double order_limit = 1 << 14;

/// Ranks by slowness, rounded up to a multiple of `grain`.
template <class = void> std::map<ticks, row<int>> kinds_of_ranks(partition_problem const& problem, ticks grain = 1) {
    std::map<ticks, row<int>> kinds;
    for (int rank = 0; rank < problem.ranks; ++rank)
        kinds[(problem.slowness(rank) + grain - 1) / grain * grain].push_back(rank);
    return kinds;
}
template <class = void> double sets_of(std::map<ticks, row<int>> const& kinds) {
    double sets = 1;
    for (auto const& [slow, ranks] : kinds) sets *= ranks.count() + 1;
    return sets;
}

/// Solves one problem; `solve_partition` below is the way in.
template <class = void> class partition_solver {
public:
    partition_solver(partition_problem const& problem, present_partition const* present)
        : problem_(problem), present_(present), costs_(problem), fewest_(problem.allow_empty ? 0 : 1) {
        for (int rank = 0; present != nullptr && rank < problem.ranks; ++rank) {
            row<ticks> elsewhere = present->bytes;
            for (int stage = 0; stage < problem.stages(); ++stage)
                if (problem.rank_of(stage) == rank)
                    for (int i = present->bounds[stage]; i < present->bounds[stage + 1]; ++i) elsewhere[i] = 0;
            elsewhere_.push_back(elsewhere);
        }
    }

    std::optional<partition_plan> solve() {
        using enum stage_order;
        bool const found = problem_.mirrored()            ? mirrored()
                           : problem_.order == loop       ? looped()
                           : problem_.order == replicated ? replicas()
                           : problem_.order == best       ? ordered()
                                                          : chained(straight_walk(problem_.ranks));
        if (!found) return {};
        for (int stage = 0; present_ != nullptr && stage < problem_.stages(); ++stage)
            plan_.moved += moved(problem_.rank_of(stage), plan_.bounds[stage], plan_.bounds[stage + 1]) *
                           (problem_.order == bidirectional ? 2 : 1);
        plan_.exact = plan_.exact && costs_.exact();
        if (!problem_.checkpoint.empty()) plan_.recompute = *recompute_for(problem_, plan_.bounds);
        return plan_;
    }

private:
    [[nodiscard]] ticks moved(int rank, int begin, int end) const { return elsewhere_[rank](begin, end); }

    /// Leaves in `search` the partition to be used. False if there is none.
    template <class Search>
    bool settle(Search& search, ticks low) {
        bool at_hand = false;
        ticks const least = least_bound(low, [&](ticks bound) {
            auto const probe = search.cheapest(bound, [](int, int, int) { return ticks{0}; });
            at_hand = probe.found;
            return probe;
        });
        plan_.objective = least;
        if (least == never || (at_hand && present_ == nullptr)) return least != never;
        auto const bound = least + static_cast<ticks>((present_ ? present_->slack : 0) * static_cast<double>(least));
        auto const price = [&](int rank, int begin, int end) { return present_ ? moved(rank, begin, end) : 0; };
        if (auto const cheapest = search.cheapest(bound, price); cheapest.found) plan_.objective = cheapest.bound;
        return true;
    }

    bool chained(walk_graph graph) {
        chain_search search(costs_, std::move(graph), problem_.layers(), fewest_);
        ticks const low = least_bound(ideal(), [&](ticks bound) { return search.corridor(bound); });
        if (low == never || !settle(search, low)) return false;
        if (problem_.micro_batches > 0) shortest_step(search);
        plan_.bounds = {0};
        for (auto const& [device, begin, end] : search.found().steps()) {
            plan_.bounds.push_back(end);
            plan_.order.push_back(device);
        }
        return true;
    }

    /// Sum + (micro_batches - 1) times the slowest: goes on from the partition of least sum to that of least sum among
    /// faster ones, until even the fastest slowest stage could not make up for the sum.
    void shortest_step(chain_search<>& search) {
        auto const time = [&](int rank, int begin, int end) { return costs_.time(rank, begin, end); };
        ticks const others = problem_.micro_batches - 1, fastest = plan_.objective;
        ticks best_bound = plan_.objective = never;
        for (ticks bound = never - 1;;) {
            auto const [found, slowest] = search.cheapest(bound, time);
            if (!found) break;
            ticks const sum = search.found().price();
            if (sum + others * fastest >= plan_.objective) break;
            if (sum + others * slowest < plan_.objective) {
                plan_.objective = sum + others * slowest;
                best_bound = bound;
            }
            bound = slowest - 1;
        }
        search.cheapest(best_bound, time);
    }

    /// A state of the walk is a set of used ranks: how many of each kind, as the digits of a number.
    bool ordered() {
        auto kinds = kinds_of_ranks(problem_);
        walk_graph graph{static_cast<int>(sets_of(kinds)), {}};
        for (int to = 1; to < graph.states; ++to) {
            int unit = 1;
            for (auto const& [slow, ranks] : kinds) {
                if (to / unit % (ranks.count() + 1) > 0) graph.edges.push_back({to - unit, to, ranks[0]});
                unit *= ranks.count() + 1;
            }
        }
        bool const found = chained(std::move(graph));
        for (int& rank : plan_.order) {
            auto& alike = kinds[problem_.slowness(rank)];
            rank = alike.back();
            alike.pop_back();
        }
        return found;
    }

    /// A state of the walk is a number of used ranks; ranks that stay idle are used up before the first stage.
    bool replicas() {
        walk_graph graph{problem_.ranks + 1, {}};
        for (int to = 1; to <= problem_.ranks; ++to)
            for (int count = 1; count <= to; ++count)
                for (int const from : {to - count, 0}) graph.edges.push_back({from, to, count - 1});
        bool const found = chained(std::move(graph));
        for (int const device : std::exchange(plan_.order, {})) plan_.replicas.push_back(device + 1);
        return found;
    }

    bool mirrored() {
        int const stages = problem_.stages();
        pair_search search(costs_, stages / 2, problem_.layers(), fewest_);
        if (!settle(search, ideal())) return false;
        plan_.bounds = row<int>(stages + 1, problem_.layers());
        plan_.bounds[0] = 0;
        for (auto const& [pair, outer, inner] : search.found().steps()) {
            plan_.bounds[pair + 1] = search.left(inner);
            plan_.bounds[stages - pair - 1] = search.right(inner);
        }
        return true;
    }

    bool looped() {
        loop_search search(costs_, problem_);
        bool const found = settle(search, ideal());
        plan_.bounds = search.bounds();
        plan_.exact = search.exact();
        return found;
    }

    [[nodiscard]] ticks ideal() const { return static_cast<ticks>(ideal_time(problem_) * (1 - 1e-9)); }

    partition_problem const& problem_;
    present_partition const* present_;
    rank_costs costs_;
    int fewest_;
    row<running_sums> elsewhere_; ///< [ranks] bytes that are not on the rank at present
    partition_plan plan_;
};

/// The optimal partition, or the one within `present->slack` of it that moves the fewest bytes; nothing if there is
/// none, for want of memory or of layers. Deterministic. Throws partition_problem_error, also where `present` is no
/// partition of the problem.
template <class = void> [[nodiscard]] std::optional<partition_plan> solve_partition(partition_problem const& problem,
                                                                   present_partition const* present = nullptr) {
    require_solvable(problem);
    if (present != nullptr) require_comparable(problem, *present);
    bool const needs_all = !problem.allow_empty && problem.order != stage_order::replicated;
    if (needs_all && problem.layers() < problem.stages()) return {};
    ticks grain = 1;
    while (problem.order == stage_order::best && sets_of(kinds_of_ranks(problem, grain)) > order_limit) grain *= 2;
    if (grain == 1) return partition_solver(problem, present).solve();
    auto rounded = problem;
    for (ticks& slow : rounded.slow) slow = (slow + grain - 1) / grain * grain;
    auto plan = partition_solver(rounded, present).solve();
    plan->exact = false;
    plan->objective = 0;
    running_sums const work(problem.weights);
    for (int stage = 0; stage < plan->order.count(); ++stage)
        plan->objective = std::max(plan->objective, problem.slowness(plan->order[stage]) *
                                                        work(plan->bounds[stage], plan->bounds[stage + 1]));
    return plan;
}

} // namespace copipe
