// SPDX-License-Identifier: Apache-2.0
// All policies side by side on one model and one shape: what a step was predicted to take, what it takes, and whether
// all of them learn the same.
#pragma once

#include "gpt/plan.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace gpt {

/// What a few steps under one policy came to.
struct comparison {
    double step_seconds = 0;     ///< median, without the first step
    double bubble = 0;           ///< mean over steps and ranks
    std::size_t activations = 0; ///< bytes a rank held at most besides parameters and their state; the largest rank's
    double loss = 0;             ///< of the last step
};

[[nodiscard]] inline auto try_out(run_plan const& plan, copipe::model<host_device> const& model,
                                  copipe::trainer_options<host_device> options, micro_batches const& data,
                                  std::uint64_t steps) -> comparison {
    options.ranks = plan.order.size.ranks;
    options.layers = plan.cut;
    auto const trainer = make_trainer(plan.order.policy, model, std::move(options));
    comparison found;
    std::vector<double> seconds;
    for (std::uint64_t step = 0; step < steps; ++step) {
        copipe::step_report const report = trainer->step(data);
        found.loss = report.loss;
        if (step == 0 && steps > 1) continue;
        seconds.push_back(report.seconds);
        found.bubble += report.measured.mean_bubble_ratio();
    }
    found.bubble /= static_cast<double>(seconds.size());
    auto const middle = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2);
    std::nth_element(seconds.begin(), middle, seconds.end());
    found.step_seconds = *middle;
    for (int rank = 0; rank < plan.order.size.ranks; ++rank)
        found.activations = std::max(found.activations, trainer->peak_memory(rank) - trainer->memory_in_use(rank));
    return found;
}

/// Trains `steps` steps under each policy and returns the table. A policy that cannot run the shape says why.
[[nodiscard]] inline auto compare(copipe::shape size, copipe::model<host_device> const& model,
                                  std::vector<copipe::layer_profile> const& layers,
                                  copipe::trainer_options<host_device> const& options, micro_batches const& data,
                                  std::uint64_t steps) -> std::string {
    copipe::text_table rows;
    std::string refusals;
    double reference = 0;
    rows.row({"policy", "ranks", "step", "speed-up", "predicted step", "predicted bubble", "measured bubble",
              "peak activations", "loss"});
    for (auto const policy : policy_names) {
        bool const sequential = policy == copipe::sequential::name;
        copipe::shape const own{sequential ? 1 : size.ranks, size.micro_batches};
        try {
            run_plan const plan{{schedule_of(policy, own, static_cast<int>(layers.size())), layers}};
            comparison const found = try_out(plan, model, options, data, steps);
            if (sequential) reference = found.step_seconds;
            rows.row({std::string(policy), std::to_string(own.ranks), milliseconds(found.step_seconds),
                      copipe::decimal(reference / found.step_seconds, 2), milliseconds(plan.step_seconds()),
                      copipe::percent(plan.mean_bubble_ratio()), copipe::percent(found.bubble),
                      copipe::byte_count(found.activations), copipe::decimal(found.loss, 8)});
        } catch (copipe::shape_error const& refused) {
            rows.row({std::string(policy), std::to_string(own.ranks), "-", "-", "-", "-", "-", "-", "-"});
            refusals += std::string(refused.what()) + '\n';
        } catch (copipe::partition_error const& refused) {
            rows.row({std::string(policy), std::to_string(own.ranks), "-", "-", "-", "-", "-", "-", "-"});
            refusals += std::string(policy) + " " + refused.what() + '\n';
        }
    }
    return rows.text() + refusals;
}

} // namespace gpt
