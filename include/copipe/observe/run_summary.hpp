// SPDX-License-Identifier: Apache-2.0
// The steps of a run added up, and the table per rank that ends it.
#pragma once

#include "copipe/observe/summary.hpp"
#include "copipe/observe/table.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace copipe {

/// Adds up the steps of a run, for the table at its end.
class run_summary {
public:
    template <class = void> void add(step_summary const& step) {
        ++steps_;
        total_.makespan += step.makespan;
        total_.ranks.resize(std::max(total_.ranks.size(), step.ranks.size()));
        for (std::size_t r = 0; r < step.ranks.size(); ++r) total_.ranks[r] += step.ranks[r];
    }

    [[nodiscard]] std::int64_t steps() const noexcept { return steps_; }
    [[nodiscard]] step_summary const& total() const noexcept { return total_; }

    /// Per rank busy and bubble, the bubble's phases and reasons, all as percent of the makespan, and peak memory in
    /// bytes (index: rank; left out if empty). Reasons that no rank waited for are left out.
    template <class Bytes = std::vector<std::size_t>>
    [[nodiscard]] std::string table(Bytes const& peak_memory = {}) const {
        std::vector<wait_reason> const reasons = reasons_met();
        std::vector<std::string> heading{"rank", "busy", "overlapped", "bubble", "warm-up", "steady", "cool-down"};
        for (wait_reason const why : reasons)
            heading.push_back(why == wait_reason::none ? "no work" : "wait: " + std::string(name(why)));
        if (!peak_memory.empty()) heading.push_back("peak memory");
        text_table rows;
        rows.row(std::move(heading));
        for (std::size_t r = 0; r < total_.ranks.size(); ++r) {
            rank_summary const& each = total_.ranks[r];
            std::vector<std::string> cells{std::to_string(r)};
            for (double const seconds :
                 {each.busy, each.overlapped, each.bubble, each.warm_up, each.steady(), each.cool_down})
                cells.push_back(share(seconds));
            for (wait_reason const why : reasons) cells.push_back(share(each.waiting_for(why)));
            if (!peak_memory.empty()) cells.push_back(r < peak_memory.size() ? byte_count(peak_memory[r]) : "-");
            rows.row(std::move(cells));
        }
        return rows.text();
    }

private:
    /// The reasons that some rank waited for; `none` is the last.
    template <class = void> [[nodiscard]] std::vector<wait_reason> reasons_met() const {
        std::vector<wait_reason> met;
        for (std::size_t i = 1; i <= wait_reasons; ++i) {
            auto const why = static_cast<wait_reason>(i % wait_reasons);
            auto const waited = [why](rank_summary const& each) { return each.waiting_for(why) > 0; };
            if (std::any_of(total_.ranks.begin(), total_.ranks.end(), waited)) met.push_back(why);
        }
        return met;
    }
    [[nodiscard]] std::string share(double seconds) const {
        return percent(total_.makespan > 0 ? std::max(0.0, seconds) / total_.makespan : 0);
    }

    std::int64_t steps_ = 0;
    step_summary total_;
};

} // namespace copipe
