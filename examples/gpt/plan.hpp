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
#include <limits>
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

/// What is to be planned: layers, measured over one micro-batch, under a schedule, and what ranks may hold.
struct workload {
    schedule order;
    std::vector<copipe::layer_profile> layers;
    std::optional<copipe::partition_problem> memory{}; ///< if there is a limit

    /// `bytes` of its device's memory for each rank; 0: all.
    workload(schedule of, std::vector<copipe::layer_profile> measured, std::size_t bytes = 0,
             std::size_t lookahead = 4)
        : order(std::move(of)), layers(std::move(measured)) {
        if (bytes == 0) return;
        memory = copipe::memory_problem({.bytes = {bytes}, .layers = layers}, order.programs, order.where,
                                        copipe::adamw::state_names.size(), lookahead);
    }

    /// The layers to recompute; nothing if the partition does not fit.
    [[nodiscard]] auto recomputed(copipe::partition const& cut) const -> std::optional<copipe::row<int>> {
        return memory ? copipe::recompute_for(*memory, cut.bounds()) : copipe::row<int>{};
    }
    /// What the stages of a partition that fits cost.
    [[nodiscard]] auto costs(copipe::partition const& cut) const -> copipe::stage_costs {
        auto each = layers;
        copipe::row<int> const all = *recomputed(cut);
        for (int const layer : all) {
            auto& again = each[static_cast<std::size_t>(layer)];
            again.backward_input += again.forward;
        }
        return {each, cut, order.where};
    }
    [[nodiscard]] auto forecast(copipe::partition const& cut) const -> copipe::forecast {
        return copipe::evaluate(order.programs, order.where, order.size.micro_batches, costs(cut));
    }
    /// Of a step's chunks, in seconds; infinite if the partition does not fit.
    [[nodiscard]] auto makespan(copipe::partition const& cut) const -> double {
        return recomputed(cut) ? forecast(cut).makespan : std::numeric_limits<double>::infinity();
    }
};

/// A partition whose slowest rank, or slowest stage, is as fast as can be, whatever else happens in a step. Of ranks it
/// keeps to what they may hold; where that is impossible it is as if there were no limit.
[[nodiscard]] inline auto balanced(workload const& of, copipe::stage_order order) -> copipe::partition {
    bool const per_stage = order == copipe::stage_order::single;
    auto const& where = of.order.where;
    copipe::partition_problem problem{.order = order, .ranks = per_stage ? where.model_stages() : where.ranks};
    for (copipe::layer_profile const& each : of.layers)
        problem.weights.push_back(std::llround(1e9 * (each.forward + each.backward_input + each.backward_weight)));
    auto plan = of.memory && of.memory->order == order ? copipe::solve_partition(*of.memory) : std::nullopt;
    if (!plan) plan = copipe::solve_partition(problem);
    return copipe::partition::given(plan->bounds, static_cast<int>(of.layers.size()));
}

/// Moves one bound of a partition after the other to where the predicted step is shortest, as long as that helps.
[[nodiscard]] inline auto refined(workload const& of, copipe::partition best) -> copipe::partition {
    double shortest = of.makespan(best);
    for (bool improved = true; std::exchange(improved, false);) {
        for (std::size_t moved = 1; moved + 1 < best.bounds().size(); ++moved) {
            std::vector<int> bounds = best.bounds();
            int const end = bounds[moved + 1];
            for (bounds[moved] = bounds[moved - 1] + 1; bounds[moved] < end; ++bounds[moved]) {
                auto tried = copipe::partition::given(bounds, best.layers());
                double const makespan = of.makespan(tried);
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
/// the first and the last stage share a rank. Throws memory_error where none fits.
[[nodiscard]] inline auto best_partition(workload const& of) -> copipe::partition {
    using order = copipe::stage_order;
    std::vector orders{order::single};
    if (of.order.where.kind == copipe::layout::v) orders.push_back(order::v);
    if (of.order.where.kind == copipe::layout::bidirectional) orders.push_back(order::bidirectional);
    std::optional<copipe::partition> best;
    double shortest = 0;
    for (order const each : orders) {
        copipe::partition found = refined(of, balanced(of, each));
        double const makespan = of.makespan(found);
        if (best && makespan >= shortest * 0.999) continue;
        best = std::move(found);
        shortest = makespan;
    }
    return of.memory ? copipe::fit_into_memory(*of.memory, *best, false).cut : *best;
}

/// What is known of a run before it starts.
struct run_plan : workload {
    copipe::partition cut;
    copipe::row<int> recomputed; ///< layers
    copipe::forecast expected;   ///< of the chunks of one step; seconds

    /// With the given partition, or a good one. Throws memory_error where it does not fit.
    explicit run_plan(workload of, std::optional<copipe::partition> given = {})
        : workload(std::move(of)),
          cut(given ? *std::move(given) : best_partition(*this)),
          recomputed(memory ? copipe::require_recompute(*memory, cut) : copipe::row<int>{}),
          expected(forecast(cut)) {}

    [[nodiscard]] auto costs() const -> copipe::stage_costs { return workload::costs(cut); }
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
    /// What a rank will hold at most, with a limit all that the limit is held to.
    [[nodiscard]] auto memory_of(int rank) const -> std::size_t {
        if (memory) return static_cast<std::size_t>(copipe::bytes_of(*memory, cut.bounds(), recomputed)[rank]);
        return copipe::predicted_memory(layers, cut, order.where, order.programs[static_cast<std::size_t>(rank)], rank,
                                        copipe::adamw::state_names.size());
    }
};

/// The partition that a layout string describes. Throws layout_error, partition_error.
[[nodiscard]] inline auto partition_from(std::string const& layout, schedule const& of, int layers)
    -> std::optional<copipe::partition> {
    if (layout.empty()) return {};
    if (auto const at = layout.find('m'); at != std::string::npos)
        throw copipe::layout_error(layout, at, "a GPT has no layers for multi-token prediction; write E, t and L.");
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

/// "embedding, blocks 2-3, head": any layers, in order.
[[nodiscard]] inline auto names_of(copipe::row<int> const& layers, int of_all) -> std::string {
    std::string text;
    for (std::size_t begin = 0, end = 0; begin < layers.size(); begin = end) {
        for (end = begin + 1; end < layers.size() && layers[end] == layers[end - 1] + 1;) ++end;
        text += (text.empty() ? "" : ", ") + layer_names(layers[begin], layers[end - 1] + 1, of_all);
    }
    return text;
}

/// What is recomputed and why: a line for each rank that would hold more than it may.
[[nodiscard]] inline auto describe_recompute(run_plan const& plan) -> std::string {
    std::string lines;
    if (!plan.memory) return lines;
    auto const without = copipe::bytes_of(*plan.memory, plan.cut.bounds(), {});
    auto const with = copipe::bytes_of(*plan.memory, plan.cut.bounds(), plan.recomputed);
    for (int rank = 0; rank < plan.order.where.ranks; ++rank) {
        copipe::row<int> own;
        double extra = 0;
        for (int const stage : plan.order.where.stages_of(rank)) {
            int const part = plan.order.where.model_stage(stage);
            for (int const layer : plan.recomputed) {
                if (layer < plan.cut.first(part) || layer >= plan.cut.last(part)) continue;
                own.push_back(layer);
                extra += plan.layers[static_cast<std::size_t>(layer)].forward *
                         plan.order.where.micro_batches_per_stage(plan.order.size.micro_batches);
            }
        }
        if (own.empty()) continue;
        std::ranges::sort(own);
        lines += "rank " + std::to_string(rank) + " would hold up to " +
                 copipe::byte_count(static_cast<std::size_t>(without[rank])) + " and may hold " +
                 copipe::byte_count(static_cast<std::size_t>(plan.memory->capacity[rank])) + ": recomputes " +
                 names_of(own, plan.cut.layers()) + ", holds " +
                 copipe::byte_count(static_cast<std::size_t>(with[rank])) + " at most, for " + milliseconds(extra) +
                 " more of each step\n";
    }
    if (lines.empty()) lines = "every rank keeps within the memory limit, nothing is recomputed\n";
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
                  copipe::byte_count(plan.memory_of(rank))});
    }
    return rows.text() + describe_recompute(plan);
}

/// What a device can do, and how that is known.
[[nodiscard]] inline auto describe(copipe::fingerprint const& of, std::string const& file) -> std::string {
    auto const giga = [](double rate) { return copipe::decimal(rate / 1e9, 1); };
    return giga(of.small_product) + " and " + giga(of.large_product) +
           " GFLOP/s in plain products of 64 and 256 rows, memory " + giga(of.memory) + " GB/s, copies " +
           giga(of.copy) + " GB/s, link " + giga(of.link) + " GB/s, " +
           copipe::byte_count(static_cast<std::size_t>(of.free_bytes)) + " free; " +
           (of.read          ? "read from " + file
            : file.empty() ? std::string("measured now")
                           : "measured now, kept in " + file);
}

} // namespace gpt
