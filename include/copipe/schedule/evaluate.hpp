// SPDX-License-Identifier: Apache-2.0
// Predicts a step from what chunks and messages cost: when every action starts and ends, and how long ranks stand idle.
#pragma once

#include "copipe/schedule/costs.hpp"
#include "copipe/schedule/policy.hpp"
#include "copipe/schedule/replay.hpp"
#include "copipe/schedule/span.hpp"

#include <concepts>
#include <vector>

namespace copipe {

/// How long a step takes. Vectors are per rank.
struct forecast {
    double makespan = 0; ///< from the start to the end of the last action on any rank
    double longest = 0;  ///< the longest time from a rank's first start to its last end (the zero-bubble papers' cost)
    std::vector<double> busy;
    std::vector<double> bubble; ///< makespan - busy
};

/// Predicts the step and hands every span to `record`: each rank's compute (two spans for an overlapped pair) and its
/// waits, in order. A rank starts an action as soon as it is free and the inputs are there; messages cost no compute;
/// the messages from one rank to another share a link in the order of sending. For verified programs only.
template <cost_model Costs, std::invocable<span const&> Record>
constexpr forecast evaluate(std::vector<program> const& all, placement const& where, int micro_batches,
                            Costs const& costs, Record&& record) {
    auto const ranks = static_cast<std::size_t>(where.ranks);
    std::vector<double> first(ranks, -1), free(ranks, 0), busy(ranks, 0), link_free(2 * ranks, 0);

    auto const run = [&](int rank, action const& work, double ready) {
        auto const r = static_cast<std::size_t>(rank);
        double const start = ready > free[r] ? ready : free[r];
        double const seconds = costs.seconds(work);
        double const end = start + seconds;
        if (start > free[r]) record(span{free[r], start, work.front(), rank, span_kind::wait, wait_reason::input});
        for (chunk const& one : work.chunks())
            record(span{start, end, one, rank, kind_of(one.what, work.overlapped()), wait_reason::none});
        if (first[r] < 0) first[r] = start;
        busy[r] += seconds;
        return free[r] = end;
    };
    auto const deliver = [&](message const& sent, int from, int to, double produced) {
        // Neighbours in a chain are neighbours on the ring of ranks: a rank has at most one link each way.
        bool const down = to == from + 1 || to < from - 1;
        double& link = link_free[2 * static_cast<std::size_t>(from) + (down ? 1 : 0)];
        double const departure = link > produced ? link : produced;
        link = departure + costs.occupancy(sent);
        return link + costs.latency(sent);
    };
    replay<>(all, where, micro_batches).run(run, deliver);

    forecast found;
    found.busy = busy;
    for (std::size_t r = 0; r < ranks; ++r) {
        if (free[r] > found.makespan) found.makespan = free[r];
        if (first[r] >= 0 && free[r] - first[r] > found.longest) found.longest = free[r] - first[r];
    }
    for (double const each : busy) found.bubble.push_back(found.makespan - each);
    return found;
}

/// The same without a record.
template <cost_model Costs>
[[nodiscard]] constexpr forecast evaluate(std::vector<program> const& all, placement const& where, int micro_batches,
                                          Costs const& costs) {
    return evaluate(all, where, micro_batches, costs, [](span const&) {});
}

/// The planned timeline: per rank its spans in order.
template <cost_model Costs>
[[nodiscard]] constexpr std::vector<std::vector<span>> timeline(std::vector<program> const& all, placement const& where,
                                                                int micro_batches, Costs const& costs) {
    std::vector<std::vector<span>> spans(all.size());
    evaluate(all, where, micro_batches, costs,
             [&](span const& each) { spans[static_cast<std::size_t>(each.rank)].push_back(each); });
    return spans;
}

} // namespace copipe
