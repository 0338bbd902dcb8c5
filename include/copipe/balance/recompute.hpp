// SPDX-License-Identifier: Apache-2.0
// Automatic recomputation: which layers of a stage keep only their input and run forward again before their backward.
#pragma once

#include "copipe/balance/bottleneck.hpp"
#include "copipe/balance/row.hpp"

#include <algorithm>
#include <utility>

namespace copipe {

/// What recomputing a layer saves and costs.
struct recompute_option {
    int layer;
    ticks saves; ///< bytes
    ticks extra; ///< time
};

/// Layers to recompute, and the time that it costs: `never` if even all of them do not save enough.
struct recompute_choice {
    ticks extra;
    row<int> layers;
    bool exact;
};

/// How many choices are kept that none beats in both time and memory. So the answer is exact for up to 14 layers per
/// stage, for far more where many are alike, and beyond that a choice that fits but may not be the fastest.
inline constexpr int recompute_limit = 1 << 14;

/// The choice among the options that saves `need` bytes and costs the least time: a knapsack.
template <class = void> recompute_choice choose_recompute(row<recompute_option> const& options, ticks need) {
    struct choice {
        ticks saved, extra;
        row<int> layers;
    };
    row<choice> kept{{0, 0, {}}}; // by falling savings and falling time
    bool exact = true;
    for (auto const& [layer, saves, extra] : options) {
        if (saves <= 0) continue;
        auto wider = kept;
        for (choice& with : wider) {
            with.saved = std::min(need, with.saved + saves);
            with.extra += extra;
            with.layers.push_back(layer);
        }
        wider.insert(wider.end(), kept.begin(), kept.end());
        std::sort(wider.begin(), wider.end(), [](choice const& a, choice const& b) {
            return a.saved != b.saved ? a.saved > b.saved : a.extra < b.extra;
        });
        kept.clear();
        for (choice& each : wider)
            if (kept.empty() || each.extra < kept.back().extra) kept.push_back(std::move(each));
        if (kept.count() <= recompute_limit) continue;
        exact = false;
        for (int k = 1; 2 * k < kept.count(); ++k) kept[k] = std::move(kept[2 * k]);
        kept.resize((kept.size() + 1) / 2);
    }
    bool const enough = kept[0].saved >= need;
    return {enough ? kept[0].extra : never, enough ? kept[0].layers : row<int>{}, exact};
}

} // namespace copipe
