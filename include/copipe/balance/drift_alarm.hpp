// SPDX-License-Identifier: Apache-2.0
// Notices between two looks at the measurements, from nothing but how long each rank works in a step, that something
// has changed.
#pragma once

#include "copipe/balance/row.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace copipe {

/// Compares each rank's work in the last five steps with that in the first ten after `restart`, medians both. Rings
/// when they differ by more than `share` of the longest rank's, and by more than three standard deviations of a step,
/// as the median deviation of the first ten shows them: a step that stands out changes nothing, nor do steps that all
/// differ. For one thread at a time.
class drift_alarm {
public:
    explicit drift_alarm(double share = 0.02) : share_(share) {}

    /// What is usual shows anew.
    void restart() noexcept { steps_.clear(); }

    /// In the step that has ended each rank worked for so many seconds. Whether something has changed.
    template <class = void> [[nodiscard]] bool rings(row<double> seconds) {
        if (steps_.count() == first + recent) steps_.erase(steps_.begin() + first);
        steps_.push_back(std::move(seconds));
        if (steps_.count() < first + recent) return false;
        double longest = 0;
        bool changed = false;
        for (int rank = 0; rank < steps_[0].count(); ++rank) longest = std::max(longest, median(rank, 0, first, 0));
        for (int rank = 0; rank < steps_[0].count() && !changed; ++rank) {
            double const usual = median(rank, 0, first, 0);
            double const spread = median(rank, 0, first, usual); // 0.67 standard deviations
            changed = median(rank, first, first + recent, usual) > std::max(share_ * longest, 4.5 * spread);
        }
        return changed;
    }

private:
    static constexpr int first = 10, recent = 5;

    /// Of how far a rank's seconds are from a value.
    template <class = void> [[nodiscard]] double median(int rank, int begin, int end, double from) const {
        row<double> values;
        for (int step = begin; step < end; ++step) values.push_back(std::abs(steps_[step][rank] - from));
        auto const middle = values.begin() + values.count() / 2;
        std::nth_element(values.begin(), middle, values.end());
        return *middle;
    }

    double share_;
    row<row<double>> steps_; ///< the first ones, and the last ones
};

} // namespace copipe
