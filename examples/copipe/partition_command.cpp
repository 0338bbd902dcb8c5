// SPDX-License-Identifier: Apache-2.0
#include "partition_command.hpp"

#include "copipe/balance/layout.hpp"
#include "copipe/balance/solve_partition.hpp"
#include "copipe/observe/table.hpp"

#include "case_file.hpp"

#include <array>
#include <iostream>
#include <optional>

namespace command {
namespace {

using copipe::partition_plan;
using copipe::partition_problem;
using copipe::row;
using copipe::stage_order;
using copipe::ticks;

/// The families of cases, and how their stages lie on ranks.
constexpr std::array<std::pair<std::string_view, stage_order>, 16> families{{
    {"uniform", stage_order::single},
    {"hetero_fixed", stage_order::single},
    {"unrelated", stage_order::single},
    {"hetero_perm", stage_order::best},
    {"comm_add", stage_order::single},
    {"comm_max", stage_order::single},
    {"memory", stage_order::single},
    {"memory_comm", stage_order::single},
    {"memory_recompute", stage_order::single},
    {"latency", stage_order::single},
    {"dualpipe", stage_order::bidirectional},
    {"dualpipe_fb", stage_order::bidirectional},
    {"dualpipe_mem", stage_order::bidirectional},
    {"dualpipev", stage_order::v},
    {"interleaved", stage_order::loop},
    {"replicated", stage_order::replicated},
}};

stage_order order_of(input const& family) {
    std::string known;
    for (auto const& [name, order] : families) {
        if (family.text() == name) return order;
        known += (known.empty() ? "" : ", ") + std::string(name);
    }
    family.refuse("is not known; known are " + known + ".");
}

/// Ranks and stages: given are one or both of `ranks` and `stages`, or `devices`.
void read_ranks(input const& one, partition_problem& problem) {
    if (problem.order == stage_order::replicated) {
        problem.ranks = one["devices"].count(1);
        return;
    }
    int const per_rank = problem.order == stage_order::v ? 2 : 1;
    problem.ranks = one.has("ranks") ? one["ranks"].count(1) : one["stages"].count(1) / per_rank;
    if (!one.has("stages")) return;
    int const stages = one["stages"].count(1);
    if (problem.order == stage_order::loop) problem.stages_per_rank = std::max(stages / problem.ranks, 1);
    if (problem.stages() != stages)
        one["stages"].refuse(
            !one.has("ranks") ? "must be even in this family."
                              : "does not go with " + counted(problem.ranks, "rank") + " in this family.");
}

/// One case as a problem. Throws input_error naming the value at fault.
partition_problem read_case(input const& one) {
    auto const family = one["family"].text();
    partition_problem problem{.order = order_of(one["family"])};
    read_ranks(one, problem);
    bool const in_step = family == "dualpipe_fb", recomputes = family == "memory_recompute";
    char const* const work = family == "unrelated" ? "cost" : in_step ? "fwd" : "weights";
    int const ranks = problem.ranks;
    int const layers = one.has("n")            ? one["n"].count(1)
                       : family == "unrelated" ? one["cost"].elements(ranks)[0].elements().count()
                                               : one[work].elements().count();
    auto const optional = [&](char const* name, row<ticks>& values, int length, ticks least = 0) {
        if (one.has(name)) values = one[name].wholes(length, least);
    };
    if (one.has("allow_empty")) problem.allow_empty = one["allow_empty"].flag();
    optional("slow", problem.slow, ranks, 1);
    if (family == "unrelated")
        for (auto const& own : one["cost"].elements(ranks)) problem.costs.push_back(own.wholes(layers));
    else
        problem.weights = one[work].wholes(layers);
    if (in_step) {
        problem.lock_step = true;
        problem.forward = problem.weights;
        auto const backward = one["bwd"].wholes(layers);
        for (int i = 0; i < layers; ++i) problem.weights[i] += backward[i];
    }
    if (family.find("comm") != std::string::npos || (family == "latency" && one.has("comm"))) {
        problem.transfer = one["comm"].wholes(layers + 1);
        problem.link = one["link"].wholes(ranks - 1);
        problem.overlapped = family == "comm_max";
    }
    if (family.starts_with("memory") || family == "dualpipe_mem") {
        bool const paired = problem.mirrored();
        problem.parameters = one["pmem"].wholes(layers);
        problem.activations = one["amem"].wholes(layers);
        optional("mem_fixed", problem.fixed, ranks);
        problem.in_flight = one[paired ? "k0" : "inflight"].wholes(ranks);
        if (paired) problem.in_flight_far = one["k1"].wholes(ranks);
        problem.capacity = one["cap"].wholes(ranks);
    }
    if (recomputes) {
        problem.forward = one["fwd"].wholes(layers);
        problem.checkpoint = one["cmem"].wholes(layers);
    }
    if (family == "latency") problem.micro_batches = one["microbatches"].count(1);
    if (family == "replicated") {
        problem.transfer = one["comm"].wholes(layers + 1);
        problem.parameters = one["pbytes"].wholes(layers);
        problem.sync = one["net"].whole(0);
    }
    return problem;
}

/// What one rank, or one group of replicas, does in a partition.
struct rank_load {
    row<int> stages;
    double time = 0;
    ticks bytes = 0;
    int recomputed = 0;
};

/// The stages that a rank holds, or the stage of a group of replicas.
row<int> stages_of(int rank, partition_problem const& problem, partition_plan const& plan) {
    int const stages = plan.bounds.count() - 1, mirrored = stages - 1 - rank;
    if (problem.mirrored()) return {std::min(rank, mirrored), std::max(rank, mirrored)};
    row<int> held;
    for (int s = 0; s < stages; ++s) {
        int const on = plan.replicas.empty() ? problem.rank_of(s) : s;
        if (rank == (plan.order.empty() ? on : plan.order[s])) held.push_back(s);
    }
    return held;
}

rank_load load_of(int rank, partition_problem const& problem, partition_plan const& plan,
                         copipe::rank_costs const& costs) {
    auto const& b = plan.bounds;
    rank_load load{.stages = stages_of(rank, problem, plan)};
    if (problem.mirrored()) {
        int const far = b.count() - 2 - rank;
        ticks const near_work = costs.work()(b[rank], b[rank + 1]), far_work = costs.work()(b[far], b[far + 1]);
        ticks longest = near_work + far_work;
        if (problem.lock_step) {
            copipe::running_sums const forward(problem.forward);
            ticks const one_way = forward(b[rank], b[rank + 1]) + far_work - forward(b[far], b[far + 1]);
            longest = std::max(one_way, longest - one_way);
        }
        load.time = static_cast<double>(longest * (problem.slow.empty() ? 1 : problem.slow[rank]));
        if (!problem.capacity.empty()) load.bytes = costs.bytes(rank, b[rank], b[rank + 1], b[far], b[far + 1]);
        return load;
    }
    int const device = plan.replicas.empty() ? rank : plan.replicas[rank] - 1;
    for (int const s : load.stages) load.time += static_cast<double>(costs.time(device, b[s], b[s + 1]));
    if (problem.capacity.empty()) return load;
    load.bytes = costs.bytes(rank, b[rank], b[rank + 1]);
    for (int const layer : plan.recompute) {
        if (layer < b[rank] || layer >= b[rank + 1]) continue;
        ++load.recomputed;
        load.bytes -= problem.in_flight[rank] * (problem.activations[layer] - problem.checkpoint[layer]);
    }
    return load;
}

/// A table of all ranks, under a line that compares the slowest with the ideal.
std::string explained(partition_problem const& problem, std::optional<partition_plan> const& plan) {
    if (!plan) return "no partition is feasible: memory or layers do not suffice\n";
    bool const replicated = !plan->replicas.empty(), limited = !problem.capacity.empty();
    double const unit = replicated ? static_cast<double>(copipe::common_share(problem.ranks)) : 1;
    double const ideal = copipe::ideal_time(problem) / unit;
    double slowest = 0;
    copipe::rank_costs const costs(problem);
    row<rank_load> loads;
    for (int rank = 0; rank < (replicated ? plan->replicas.count() : problem.ranks); ++rank) {
        loads.push_back(load_of(rank, problem, *plan, costs));
        slowest = std::max(slowest, loads.back().time /= unit);
    }
    std::string text;
    if (problem.micro_batches > 0)
        text += "step of " + std::to_string(problem.micro_batches) + " micro-batches " +
                std::to_string(plan->objective) + ", ";
    text += "slowest rank " + copipe::decimal(slowest, replicated ? 3 : 0) + ", ideal " + copipe::decimal(ideal, 1) +
            ", ratio " + (ideal > 0 ? copipe::decimal(slowest / ideal, 4) : "-") +
            (plan->exact ? ", optimal\n" : ", not proved optimal: the case exceeds the solver's limit\n");

    copipe::text_table table;
    std::vector<std::string> heading{replicated ? "replicas" : "rank", "stages", "layers", "time", "of slowest"};
    if (limited) heading.insert(heading.end(), {"memory", "of capacity"});
    if (!problem.checkpoint.empty()) heading.emplace_back("recomputed");
    table.row(heading);
    for (int rank = 0; rank < loads.count(); ++rank) {
        auto const& load = loads[rank];
        std::string stages, layers;
        for (int const s : load.stages) {
            int const begin = plan->bounds[s], end = plan->bounds[s + 1];
            stages += (stages.empty() ? "" : ", ") + std::to_string(s);
            layers += layers.empty() ? "" : ", ";
            layers += begin == end ? "none" : std::to_string(begin);
            layers += begin + 1 < end ? "-" + std::to_string(end - 1) : "";
        }
        std::vector<std::string> cells{std::to_string(replicated ? plan->replicas[rank] : rank), stages, layers,
                                       copipe::decimal(load.time, replicated ? 3 : 0),
                                       slowest > 0 ? copipe::percent(load.time / slowest) : "-"};
        if (limited) {
            auto const bytes = static_cast<double>(load.bytes), most = static_cast<double>(problem.capacity[rank]);
            cells.insert(cells.end(), {std::to_string(load.bytes), most > 0 ? copipe::percent(bytes / most) : "-"});
        }
        if (!problem.checkpoint.empty()) cells.push_back(std::to_string(load.recomputed));
        table.row(cells);
    }
    return text + table.text();
}

} // namespace

void print_partitions(partition_options const& options) {
    auto const file = read_json(options.file);
    json results = json::array();
    std::string text;
    for (auto const& one : cases_of(file, options.file)) {
        auto const problem = read_case(one);
        std::optional<partition_plan> plan;
        try {
            plan = copipe::solve_partition(problem);
        } catch (copipe::partition_problem_error const& refused) {
            one.refuse(refused.what());
        }
        json result{{"id", id_of(one, static_cast<int>(results.size()))},
                    {"objective", nullptr},
                    {"bounds", nullptr},
                    {"order", nullptr},
                    {"recompute", nullptr}};
        if (plan) {
            result["objective"] = plan->objective;
            result["bounds"] = plan->bounds;
            if (!plan->order.empty()) result["order"] = plan->order;
            result["recompute"] = plan->recompute;
            if (!plan->replicas.empty()) result["replicas"] = plan->replicas;
            result["exact"] = plan->exact;
        }
        if (options.format == "text")
            text += "case " + result["id"].dump() + ": " + one["family"].text() + ", " +
                    counted(problem.layers(), "layer") + " on " + counted(problem.ranks, "rank") + "\n" +
                    explained(problem, plan) + "\n";
        results.push_back(std::move(result));
    }
    if (options.format == "json")
        std::cout << json{{"results", results}} << '\n';
    else
        std::cout << text;
}

void print_layout(partition_options const& options) {
    auto const layout = copipe::read_layout(options.layout);
    auto const written = copipe::write_layout(layout);
    auto const bounds = layout.bounds();
    if (options.format == "json")
        std::cout << json{{"layout", written}, {"stages", layout.stages}, {"bounds", bounds}} << '\n';
    else
        std::cout << written << ": " << counted(layout.stages.count(), "stage") << ", "
                  << counted(bounds.back(), "layer") << " with embedding and loss\n"
                  << copipe::explain_layout(layout);
}

} // namespace command
