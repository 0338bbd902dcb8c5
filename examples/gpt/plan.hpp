// SPDX-License-Identifier: Apache-2.0
// A run before it starts: which rank runs which layers, and what a step should take of time and memory.
#pragma once

#include "copipe/balance/solve_partition.hpp"
#include "copipe/observe/table.hpp"
#include "copipe/train/profile.hpp"
#include "gpt/any_trainer.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace gpt {

/// Measures the layers. The blocks are alike, so that the fastest of them tells most truly, on a machine that has other
/// things to do, what each of them costs.
template <copipe::device Device>
[[nodiscard]] auto measured(copipe::model<Device> const& model, micro_batches const& data)
    -> std::vector<copipe::layer_profile> {
    auto layers = copipe::profile_layers(model, data);
    std::span const blocks{layers.begin() + 1, layers.end() - 1};
    copipe::layer_profile fastest = blocks.front();
    for (copipe::layer_profile const& each : blocks) {
        fastest.forward = std::min(fastest.forward, each.forward);
        fastest.backward_input = std::min(fastest.backward_input, each.backward_input);
        fastest.backward_weight = std::min(fastest.backward_weight, each.backward_weight);
    }
    std::fill(blocks.begin(), blocks.end(), fastest);
    return layers;
}

/// A policy's programs for one shape.
struct schedule {
    std::string_view policy;
    copipe::shape size;
    copipe::placement where;
    std::vector<copipe::program> programs;
};

/// Throws shape_error when the policy cannot run the shape, partition_error when there are fewer layers than stages.
[[nodiscard]] inline auto schedule_of(std::string_view policy, copipe::shape size, int layers) -> schedule {
    return with_policy(policy, [&]<class Policy>(Policy const& chosen) {
        schedule found{Policy::name, size, chosen.placed(size), copipe::verified_programs(chosen, size)};
        (void)copipe::partition::even(layers, found.where.model_stages());
        return found;
    });
}

[[nodiscard]] inline auto predict(schedule const& of, std::vector<copipe::layer_profile> const& layers,
                                  copipe::partition const& cut) -> copipe::forecast {
    return copipe::evaluate(of.programs, of.where, of.size.micro_batches, copipe::stage_costs{layers, cut, of.where});
}

/// A partition whose slowest rank, or slowest stage, is as fast as can be, whatever else happens in a step.
[[nodiscard]] inline auto balanced(schedule const& of, std::vector<copipe::layer_profile> const& layers,
                                   copipe::stage_order order) -> copipe::partition {
    bool const per_stage = order == copipe::stage_order::single;
    copipe::partition_problem problem{.order = order, .ranks = per_stage ? of.where.model_stages() : of.where.ranks};
    for (copipe::layer_profile const& each : layers)
        problem.weights.push_back(std::llround(1e9 * (each.forward + each.backward_input + each.backward_weight)));
    return copipe::partition::given(copipe::solve_partition(problem)->bounds, static_cast<int>(layers.size()));
}

/// Moves one bound of a partition after the other to where the predicted step is shortest, as long as that helps.
[[nodiscard]] inline auto refined(schedule const& of, std::vector<copipe::layer_profile> const& layers,
                                  copipe::partition best) -> copipe::partition {
    double shortest = predict(of, layers, best).makespan;
    for (bool improved = true; std::exchange(improved, false);) {
        for (std::size_t moved = 1; moved + 1 < best.bounds().size(); ++moved) {
            std::vector<int> bounds = best.bounds();
            int const end = bounds[moved + 1];
            for (bounds[moved] = bounds[moved - 1] + 1; bounds[moved] < end; ++bounds[moved]) {
                auto tried = copipe::partition::given(bounds, best.layers());
                double const makespan = predict(of, layers, tried).makespan;
                if (makespan >= shortest * 0.999) continue;
                shortest = makespan;
                best = std::move(tried);
                improved = true;
            }
        }
    }
    return best;
}

/// A partition for a short step. An even count of layers will not do: the embedding costs next to nothing, and in a V
/// the first and the last stage share a rank.
[[nodiscard]] inline auto best_partition(schedule const& of, std::vector<copipe::layer_profile> const& layers)
    -> copipe::partition {
    using order = copipe::stage_order;
    std::vector orders{order::single};
    if (of.where.kind == copipe::layout::v) orders.push_back(order::v);
    if (of.where.kind == copipe::layout::bidirectional) orders.push_back(order::bidirectional);
    std::optional<copipe::partition> best;
    double shortest = 0;
    for (order const each : orders) {
        copipe::partition found = refined(of, layers, balanced(of, layers, each));
        double const makespan = predict(of, layers, found).makespan;
        if (best && makespan >= shortest * 0.999) continue;
        best = std::move(found);
        shortest = makespan;
    }
    return *best;
}

/// What is known of a run before it starts.
struct run_plan {
    schedule order;
    std::vector<copipe::layer_profile> layers; ///< measured, one micro-batch
    copipe::partition cut;
    copipe::forecast expected; ///< of the chunks of one step; seconds

    /// With the given partition, or a good one.
    run_plan(schedule of, std::vector<copipe::layer_profile> measured, std::optional<copipe::partition> given = {})
        : order(std::move(of)),
          layers(std::move(measured)),
          cut(given ? *std::move(given) : best_partition(order, layers)),
          expected(predict(order, layers, cut)) {}

    [[nodiscard]] auto costs() const -> copipe::stage_costs { return {layers, cut, order.where}; }
    [[nodiscard]] auto bubble_ratio(std::size_t rank) const -> double {
        return expected.bubble[rank] / expected.makespan;
    }
    [[nodiscard]] auto mean_bubble_ratio() const -> double {
        double const all = std::accumulate(expected.bubble.begin(), expected.bubble.end(), 0.0);
        return all / (static_cast<double>(expected.bubble.size()) * expected.makespan);
    }
    /// Of the chunks; ranks that share cores take turns.
    [[nodiscard]] auto step_seconds() const -> double {
        double const all = std::accumulate(expected.busy.begin(), expected.busy.end(), 0.0);
        return std::max(expected.makespan, all / std::max(1U, std::thread::hardware_concurrency()));
    }
    [[nodiscard]] auto memory(int rank) const -> std::size_t {
        return copipe::predicted_memory(layers, cut, order.where, order.programs[static_cast<std::size_t>(rank)], rank,
                                        copipe::adamw::state_names.size());
    }
};

/// The partition that a layout string describes. Throws layout_error, partition_error.
[[nodiscard]] inline auto partition_from(std::string const& layout, schedule const& of, int layers)
    -> std::optional<copipe::partition> {
    if (layout.empty()) return {};
    return copipe::static_partition{layout}.start(layers, of.where.model_stages());
}

/// "embedding, blocks 1-3".
[[nodiscard]] inline auto layer_names(int first, int last, int layers) -> std::string {
    std::string text = first == 0 ? "embedding" : "";
    int const from = std::max(first, 1), to = std::min(last, layers - 1);
    if (from < to) {
        text += (text.empty() ? "" : ", ") + std::string(from + 1 < to ? "blocks " : "block ") + std::to_string(from);
        if (from + 1 < to) text += "-" + std::to_string(to - 1);
    }
    return last == layers ? text + (text.empty() ? "" : ", ") + "head" : text;
}

[[nodiscard]] inline auto milliseconds(double seconds) -> std::string {
    return copipe::decimal(1e3 * seconds, 1) + " ms";
}

/// "embedding, blocks 1-3 | head": the layers of a rank's stages.
[[nodiscard]] inline auto layers_of_rank(run_plan const& plan, copipe::partition const& cut, int rank) -> std::string {
    std::string layers;
    for (int const stage : plan.order.where.stages_of(rank)) {
        int const part = plan.order.where.model_stage(stage);
        layers += (layers.empty() ? "" : " | ") + layer_names(cut.first(part), cut.last(part), cut.layers());
    }
    return layers;
}

/// One line per rank, under another partition than the plan's.
[[nodiscard]] inline auto describe_layers(run_plan const& plan, copipe::partition const& cut) -> std::string {
    std::string lines;
    for (int rank = 0; rank < plan.order.where.ranks; ++rank)
        lines += std::to_string(rank) + ": " + layers_of_rank(plan, cut, rank) + '\n';
    return lines;
}

/// A table of the ranks: their stages and layers, and what each should be busy and hold in memory.
[[nodiscard]] inline auto describe(run_plan const& plan) -> std::string {
    copipe::text_table rows;
    rows.row({"rank: layers of its stages", "stages", "busy", "bubble", "memory"});
    for (int rank = 0; rank < plan.order.where.ranks; ++rank) {
        std::string numbers;
        for (int const stage : plan.order.where.stages_of(rank))
            numbers += (numbers.empty() ? "" : ", ") + std::to_string(stage);
        auto const r = static_cast<std::size_t>(rank);
        rows.row({std::to_string(rank) + ": " + layers_of_rank(plan, plan.cut, rank), numbers,
                  milliseconds(plan.expected.busy[r]), copipe::percent(plan.bubble_ratio(r)),
                  copipe::byte_count(plan.memory(rank))});
    }
    return rows.text();
}

} // namespace gpt
