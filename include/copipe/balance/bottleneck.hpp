// SPDX-License-Identifier: Apache-2.0
// The search that all partition solvers share: the least bound on the slowest rank within which some partition stays.
#pragma once

#include <cstdint>
#include <limits>

namespace copipe {

/// Time or bytes, as whole numbers so that optima are exact: nanoseconds, say.
using ticks = std::int64_t;
inline constexpr ticks never = std::numeric_limits<ticks>::max();

/// What one probe of a bound finds: a partition and the time that it takes, or the least bound that may have one.
struct probe_result {
    bool found;
    ticks bound; ///< `never` if no bound has one
};

/// The least bound, from `low` on, for which `probe(bound)` finds a partition; `never` if there is none. The bisection
/// jumps over values that no partition takes, because a probe tells more than yes or no.
template <class Probe>
ticks least_bound(ticks low, Probe probe) {
    probe_result at = probe(low);
    for (ticks step = low / 64 + 1; !at.found && at.bound != never; step *= 4) {
        low = at.bound;
        at = probe(low + step);
    }
    if (!at.found) return never;
    ticks high = at.bound;
    while (low < high) {
        at = probe(low + (high - low) / 2);
        (at.found ? high : low) = at.bound;
    }
    return high;
}

} // namespace copipe
