// SPDX-License-Identifier: Apache-2.0
#include "commands.hpp"
#include "copipe/observe/table.hpp"
#include "copipe/schedule/evaluate.hpp"
#include "copipe/schedule/verify.hpp"
#include "policies.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iostream>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

using namespace copipe;

namespace {

struct row {
    std::string_view policy;
    double makespan, longest, bubble;
    double activations; ///< in those of a 1F1B stage
    int copies;         ///< of the parameters
};

/// What a chunk costs when several on a rank share the time of a 1F1B stage.
uniform_costs shared(uniform_costs costs, int chunks) {
    for (double* const each : {&costs.forward, &costs.input, &costs.weight}) *each /= chunks;
    if (costs.overlapped >= 0) costs.overlapped /= chunks;
    return costs;
}

template <schedule_policy Policy>
row predicted(Policy const& policy, shape size, uniform_costs const& costs) {
    auto const where = policy.placed(size);
    auto const all = verified_programs(policy, size);
    auto const told = evaluate(all, where, size.micro_batches, costs);
    double bubble = 0;
    int peak = 0;
    for (double const each : told.bubble) bubble += each / (told.makespan * size.ranks);
    for (program const& own : all) peak = std::max(peak, peak_activations(own));
    int const copies = where.stages() / where.model_stages();
    return {Policy::name,
            told.makespan,
            told.longest,
            told.makespan > 0 ? bubble : 0,
            static_cast<double>(peak) * copies / where.per_rank,
            copies};
}

} // namespace

int compare_policies(options const& asked) {
    std::vector<row> rows;
    std::vector<std::string> refusals;
    int const chunks = asked.chunks.value_or(2);
    for_each_policy(chunks, {}, [&](auto policy) {
        if (auto const rule = refusal(policy, asked.size); !rule.empty()) {
            refusals.push_back(std::string(policy.name) + ": " + std::string(rule));
            return;
        }
        auto const where = policy.placed(asked.size);
        require_feasible(where, asked.size.micro_batches);
        auto const costs = shared(asked.costs, where.model_stages() / where.ranks);
        if constexpr (requires { policy.costs; }) policy.costs = costs;
        rows.push_back(predicted(policy, asked.size, costs));
    });
    if (rows.empty()) throw usage_error("no policy can run this shape");

    std::sort(rows.begin(), rows.end(), [](row const& a, row const& b) {
        return std::tie(a.makespan, a.longest, a.copies, a.activations, a.policy) <
               std::tie(b.makespan, b.longest, b.copies, b.activations, b.policy);
    });
    text_table table;
    table.row({"policy", "makespan", "longest rank", "bubble", "activations", "parameters"});
    row const& best = rows.front();
    // Four digits of the shortest step at least, so that seconds can be told apart however short they are.
    double const digits = best.makespan > 0 ? 3 - std::floor(std::log10(best.makespan)) : 2;
    auto const time = [places = static_cast<int>(std::clamp(digits, 2.0, 15.0))](double value) {
        return decimal(value, places);
    };
    for (row const& each : rows)
        table.row({std::string(each.policy), time(each.makespan), time(each.longest), percent(each.bubble),
                   decimal(each.activations, 1), std::to_string(each.copies) + "x"});
    std::cout << table.text() << "\nActivations: the most on any rank, in those of a 1F1B stage.\n";
    for (std::string const& each : refusals) std::cout << "left out: " << each << '\n';

    std::cout << best.policy << " wins with the shortest step, " << time(best.makespan) << ".\n";
    for (row const& each : rows) {
        bool const close = each.makespan <= 1.02 * best.makespan;
        if (!close || (each.copies >= best.copies && each.activations >= best.activations)) continue;
        std::cout << each.policy << " takes " << percent(each.makespan / best.makespan - 1) << " longer with "
                  << (each.copies < best.copies ? "half of the parameters" : "fewer activations") << ".\n";
    }
    return 0;
}
