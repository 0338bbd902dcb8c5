// SPDX-License-Identifier: Apache-2.0
// What measurements say of a model and its ranks, in the terms of the partition solver; and what a partition then
// takes.
#pragma once

#include "copipe/balance/measurements.hpp"
#include "copipe/balance/rank_costs.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace copipe {

/// What the measurements say of a model and its ranks, as a problem for solve_partition; costs from `layers`, in
/// billionths of their sum, slowness in thousandths.
template <class = void>
[[nodiscard]] partition_problem problem_of(measurements const& seen, row<pass_times> const& layers) {
    auto found = seen.memory;
    found.order = seen.where.order;
    found.ranks = seen.where.ranks;
    found.stages_per_rank = seen.where.stages_per_rank;
    found.loop_limit = 1 << 14; // while training waits
    if (!found.capacity.empty() && found.parameters.empty())
        found.parameters.assign(seen.bytes.begin(), seen.bytes.end());
    double sum = 0;
    for (auto const& each : layers) sum += each.total();
    auto const share = [&](double seconds) { return std::llround(sum > 0 ? seconds / sum * 1e9 : 0); };
    found.weights.clear();
    found.forward.clear();
    for (auto const& each : layers) found.weights.push_back(share(each.total()));
    if (!found.checkpoint.empty())
        for (auto const& each : layers) found.forward.push_back(share(each.forward));
    found.slow.clear();
    for (double const each : seen.slowness) found.slow.push_back(std::max(1LL, std::llround(1e3 * each)));
    return found;
}

/// [ranks] the time of each rank's stages for one micro-batch, what must be recomputed included, mirrored ranks as one;
/// and what a step of them takes: its slowest rank's work, and where nothing else is known to fill the pipeline
/// meanwhile, everyone's once.
template <class = void> [[nodiscard]] row<double> rank_times(partition_problem const& problem, row<int> const& bounds) {
    rank_costs const costs(problem);
    bool const pairs = problem.mirrored();
    int const stages = problem.stages();
    row<double> times;
    for (int rank = 0; rank < (pairs ? stages / 2 : problem.ranks); ++rank) {
        int const end = pairs ? stages - rank : rank + 1;
        ticks const time = problem.order == stage_order::loop
                               ? costs.looped(rank, bounds)
                               : costs.floor(rank, bounds[rank], bounds[rank + 1], bounds[pairs ? end - 1 : end],
                                             bounds[end]);
        times.push_back(static_cast<double>(time));
    }
    return times;
}
template <class = void>
[[nodiscard]] double step_time(partition_problem const& problem, row<int> const& bounds, int micro_batches) {
    auto const times = rank_times(problem, bounds);
    double const slowest = times.max();
    bool const fills = problem.order == stage_order::single;
    return (micro_batches - 1) * slowest + (fills ? std::accumulate(times.begin(), times.end(), 0.0) : slowest);
}

/// The bytes that the busiest rank sends or receives if layers of these `bytes` move from one partition to another.
template <class = void>
[[nodiscard]] double busiest_transfer(stage_map const& where, row<int> const& from, row<int> const& to,
                                      row<std::size_t> const& bytes) {
    row<double> sent(where.ranks), received(where.ranks);
    for (int copy = 0; copy < where.copies(); ++copy)
        for (int layer = 0, a = 0, b = 0; layer < bytes.count(); ++layer) {
            while (from[a + 1] <= layer) ++a;
            while (to[b + 1] <= layer) ++b;
            int const giver = where.rank_of(a, copy), taker = where.rank_of(b, copy);
            if (giver == taker) continue;
            sent[giver] += static_cast<double>(bytes[layer]);
            received[taker] += static_cast<double>(bytes[layer]);
        }
    return std::max(sent.max(), received.max());
}

} // namespace copipe
