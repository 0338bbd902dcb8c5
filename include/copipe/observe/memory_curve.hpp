// SPDX-License-Identifier: Apache-2.0
// How much memory a rank's activations take over the time of a step.
#pragma once

#include "copipe/schedule/span.hpp"
#include "copipe/schedule/verify.hpp"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace copipe {

/// From `time` on, activations take `level`.
struct memory_level {
    double time = 0;
    std::int64_t level = 0;

    friend bool operator==(memory_level const&, memory_level const&) = default;
};

/// The levels of one rank over time, from the spans of a step; `size_of(stage)` is a chunk's `chunk_memory`. Memory is
/// taken at the start of a forward and freed at the end of the gradients; where both fall together it is freed first.
[[nodiscard]] std::vector<memory_level> memory_curve(std::vector<span> const& spans, auto const& size_of) {
    std::vector<memory_level> changes, levels{{}};
    for (span const& each : spans) {
        if (each.kind > span_kind::overlapped_backward) continue;
        chunk_memory const size = size_of(each.what.stage);
        switch (each.what.what) {
        case op::forward:
            changes.push_back({each.start, size.until_input + size.until_weight});
            break;
        case op::backward:
            changes.push_back({each.end, -size.until_input - size.until_weight});
            break;
        case op::backward_input:
            changes.push_back({each.end, -size.until_input});
            break;
        case op::backward_weight:
            changes.push_back({each.end, -size.until_weight});
            break;
        }
    }
    std::sort(changes.begin(), changes.end(), [](memory_level const& a, memory_level const& b) {
        return a.time < b.time || (a.time == b.time && a.level < b.level);
    });
    for (memory_level const& change : changes) {
        std::int64_t const level = levels.back().level + change.level;
        if (levels.back().time == change.time)
            levels.back().level = level;
        else
            levels.push_back({change.time, level});
    }
    return levels;
}

/// The same in chunks.
template <class = void> [[nodiscard]] std::vector<memory_level> memory_curve(std::vector<span> const& spans) {
    return memory_curve(spans, [](int) { return chunk_memory{.until_input = 0, .until_weight = 1}; });
}

} // namespace copipe
