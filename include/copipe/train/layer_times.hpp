// SPDX-License-Identifier: Apache-2.0
// A rank's share in what the trainer measures for its balancer: how long each of its layers took in a step, and now and
// then a fixed job.
#pragma once

#include "copipe/balance/measurements.hpp"
#include "copipe/pipeline/observer.hpp"
#include "copipe/schedule/placement.hpp"

#include <algorithm>
#include <cstddef>
#include <vector>

namespace copipe {

/// A schedule's placement in the balancer's words.
template <class = void> [[nodiscard]] auto stages_on_ranks(placement const& where) -> stage_map {
    if (where.replicas > 1)
        throw error("a balancer moves layers within one replica only: take static_partition for several replicas");
    using enum stage_order;
    stage_order const order = where.kind == layout::single ? single
                              : where.kind == layout::loop ? loop
                              : where.kind == layout::v    ? v
                                                           : bidirectional;
    return {order, where.ranks, where.per_rank};
}

/// The means over a step of all layers' passes on one rank. Written by the rank's thread during a step, read between
/// steps. Allocates nothing after construction.
class layer_times {
public:
    explicit layer_times(std::size_t layers) : sums_(3 * layers) {}

    template <class = void> void record(layer_span const& one) noexcept {
        sum& into = sums_[3 * static_cast<std::size_t>(one.layer) + static_cast<std::size_t>(pass_of(one.what.what))];
        into.seconds += one.seconds();
        ++into.count;
    }
    template <class = void> void clear() noexcept { std::fill(sums_.begin(), sums_.end(), sum{}); }

    /// Tells what was recorded since `clear`; of layers that are `recomputed`, without the second forward.
    template <class = void> void tell(measurement_window& to, int rank, row<int> const& recomputed) const {
        for (std::size_t i = 0; i < sums_.size(); ++i) {
            if (sums_[i].count == 0) continue;
            auto const layer = static_cast<int>(i / 3);
            auto const what = static_cast<pass>(i % 3);
            bool const again = what == pass::backward_input &&
                               std::binary_search(recomputed.begin(), recomputed.end(), layer);
            to.record(rank, layer, what, std::max(0.0, mean(i) - (again ? mean(i - 1) : 0)));
        }
    }

private:
    struct sum {
        double seconds = 0;
        int count = 0;
    };
    [[nodiscard]] auto mean(std::size_t i) const -> double {
        return sums_[i].count > 0 ? sums_[i].seconds / sums_[i].count : 0;
    }
    [[nodiscard]] static constexpr auto pass_of(op what) noexcept -> pass {
        return what == op::forward ? pass::forward
                                   : what == op::backward_weight ? pass::backward_weight : pass::backward_input;
    }
    std::vector<sum> sums_;
};

} // namespace copipe
