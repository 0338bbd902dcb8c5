// SPDX-License-Identifier: Apache-2.0
#include "experts_command.hpp"

#include "copipe/balance/refined_experts.hpp"
#include "copipe/observe/table.hpp"

#include "case_file.hpp"

#include <algorithm>
#include <iostream>

namespace command {
namespace {

/// The placement of one case: `weight` [layers][experts], `num_replicas`, `num_groups`, `num_nodes`, `num_gpus`.
struct placed_case {
    copipe::expert_shape shape;
    copipe::row<copipe::row<double>> loads;
    copipe::row<copipe::expert_map> layers;
};

placed_case place_case(input const& one, bool refined) {
    placed_case placed{
        {one["num_replicas"].count(1), one["num_groups"].count(1), one["num_nodes"].count(1), one["num_gpus"].count(1)},
        {},
        {}};
    int experts = -1;
    for (auto const& layer : one["weight"].elements()) {
        auto& loads = placed.loads.emplace_back();
        for (auto const& load : layer.elements(experts)) loads.push_back(load.number());
        experts = loads.count();
        try {
            placed.layers.push_back(refined ? copipe::refine_experts(loads, placed.shape)
                                            : copipe::place_experts(loads, placed.shape));
        } catch (copipe::expert_error const& refused) {
            layer.refuse(refused.what());
        }
    }
    if (placed.layers.empty()) one["weight"].refuse("must have at least one layer.");
    return placed;
}

} // namespace

void print_experts(experts_options const& options) {
    auto const file = read_json(options.file);
    json results = json::array();
    std::string text;
    for (auto const& one : cases_of(file, options.file)) {
        auto const placed = place_case(one, options.policy == "refined");
        json result{{"id", id_of(one, static_cast<int>(results.size()))}};
        copipe::text_table table;
        table.row({"layer", "max/mean", "copies of the busiest expert", "experts of GPU 0"});
        for (int l = 0; l < placed.layers.count(); ++l) {
            auto const& map = placed.layers[l];
            double const ratio = copipe::max_over_mean(placed.loads[l], map, placed.shape.gpus);
            result["phy2log"].push_back(map.phy2log);
            result["logcnt"].push_back(map.logcnt);
            result["max_over_mean"].push_back(ratio);
            auto const busiest = std::ranges::max_element(placed.loads[l]) - placed.loads[l].begin();
            std::string first;
            for (int slot = 0; slot < placed.shape.replicas / placed.shape.gpus; ++slot)
                first += (slot > 0 ? " " : "") + std::to_string(map.phy2log[slot]);
            table.row({std::to_string(l), copipe::decimal(ratio, 4), std::to_string(map.logcnt[busiest]), first});
        }
        result["log2phy"] = copipe::copies_of_experts(placed.layers);
        text += "case " + result["id"].dump() + ": " + counted(placed.loads[0].count(), "expert") + ", " +
                counted(placed.shape.replicas, "replica") + " on " + counted(placed.shape.gpus, "GPU") + ", " +
                options.policy + "\n" + table.text() + "\n";
        results.push_back(std::move(result));
    }
    if (options.format == "json")
        std::cout << json{{"results", results}} << '\n';
    else
        std::cout << text;
}

} // namespace command
