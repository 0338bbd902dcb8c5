// SPDX-License-Identifier: Apache-2.0
// Costs that differ per stage, per micro-batch and per link between two ranks.
#pragma once

#include "copipe/schedule/costs.hpp"
#include "copipe/schedule/placement.hpp"

#include <limits>
#include <vector>

namespace copipe {

/// A model of what a step costs, in seconds and bytes.
struct cost_table {
    struct stage_cost {
        double forward = 1, input = 1, weight = 1;
        double message_bytes = 0; ///< what the stage sends for one micro-batch, each way
    };
    struct link {
        int from = 0, to = 0; ///< ranks
        double latency = 0;
        double bandwidth = std::numeric_limits<double>::infinity(); ///< bytes per second
    };

    placement where;
    std::vector<stage_cost> stages;         ///< index: stage
    std::vector<double> micro_batches = {}; ///< index: micro-batch of a stage; scales its times and bytes; empty: all 1
    double overlap = 1;                     ///< what an overlapped pair takes of the sum of its parts
    link every = {};                        ///< the links that are not among `links`
    std::vector<link> links = {};

    [[nodiscard]] constexpr double seconds(action const& work) const {
        double sum = 0;
        for (chunk const& one : work.chunks()) sum += seconds(one);
        return work.overlapped() ? overlap * sum : sum;
    }
    [[nodiscard]] constexpr double occupancy(message const& sent) const {
        return stages[sent.from_stage].message_bytes * scale(sent.micro_batch) / link_of(sent).bandwidth;
    }
    [[nodiscard]] constexpr double latency(message const& sent) const { return link_of(sent).latency; }

private:
    constexpr double scale(int micro_batch) const {
        return micro_batches.empty() ? 1 : micro_batches[static_cast<std::size_t>(micro_batch)];
    }
    constexpr double seconds(chunk const& one) const {
        stage_cost const& at = stages[one.stage];
        double const once = one.what == op::forward           ? at.forward
                            : one.what == op::backward_input  ? at.input
                            : one.what == op::backward_weight ? at.weight
                                                              : at.input + at.weight;
        return once * scale(one.micro_batch);
    }
    constexpr link const& link_of(message const& sent) const {
        for (link const& each : links)
            if (each.from == where.rank_of(sent.from_stage) && each.to == where.rank_of(sent.to_stage)) return each;
        return every;
    }
};
static_assert(cost_model<cost_table>);

} // namespace copipe
