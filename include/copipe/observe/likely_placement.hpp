// SPDX-License-Identifier: Apache-2.0
// Which placement a schedule was made for, when only its programs are known.
#pragma once

#include "copipe/schedule/placement.hpp"
#include "copipe/schedule/policy.hpp"

#include <algorithm>
#include <cstddef>
#include <vector>

namespace copipe {

/// The placement of a kind for as many ranks and stages as the programs have.
template <class = void> [[nodiscard]] placement placement_for(layout kind, std::vector<program> const& all) {
    int const ranks = static_cast<int>(all.size());
    int last = 0;
    for (program const& own : all)
        for (action const& each : own)
            for (chunk const& one : each.chunks()) last = std::max<int>(last, one.stage);
    switch (kind) {
    case layout::single:
        return placement::single(ranks);
    case layout::loop:
        return placement::loop(ranks, last / ranks + 1);
    case layout::v:
        return placement::v(ranks);
    default:
        return placement::bidirectional(ranks);
    }
}

/// The placement that most of the chunks agree with, so that a few wrong ones are found as wrong. Where a `v` and a
/// `bidirectional` placement both fit, the rank in the middle tells: in a V each micro-batch must pass its lower stage
/// first.
template <class = void> [[nodiscard]] placement likely_placement(std::vector<program> const& all) {
    auto const agreeing = [&](placement const& where) {
        int agree = 0;
        for (int rank = 0; rank < where.ranks; ++rank)
            for (action const& each : all[static_cast<std::size_t>(rank)])
                for (chunk const& one : each.chunks())
                    agree += one.stage < where.stages() && where.rank_of(one.stage) == rank;
        return agree;
    };
    placement best = placement_for(layout::single, all);
    for (layout const kind : {layout::loop, layout::v})
        if (placement const other = placement_for(kind, all); agreeing(other) > agreeing(best)) best = other;
    if (best.kind != layout::v) return best;

    std::vector<int> lower_first;
    for (action const& each : all.back())
        for (chunk const& one : each.chunks()) {
            if (one.what != op::forward || one.micro_batch < 0) continue;
            auto const m = static_cast<std::size_t>(one.micro_batch);
            if (m >= lower_first.size()) lower_first.resize(m + 1, 0);
            if (lower_first[m] == 0) lower_first[m] = one.stage < best.ranks ? 1 : -1;
        }
    int votes = 0;
    for (int const vote : lower_first) votes += vote;
    return votes < 0 ? placement::bidirectional(best.ranks) : best;
}

/// How many micro-batches a step of these programs has. At most one for every action, so that a number out of all
/// proportion is found as wrong.
template <class = void> [[nodiscard]] int micro_batches_in(std::vector<program> const& all, placement const& where) {
    int last = 0, actions = 0;
    for (program const& own : all) {
        actions += static_cast<int>(own.size());
        for (action const& each : own)
            for (chunk const& one : each.chunks()) last = std::max<int>(last, one.micro_batch);
    }
    int const seen = std::min(last + 1, std::max(actions, 1));
    return where.kind == layout::bidirectional ? 2 * seen : seen;
}

} // namespace copipe
