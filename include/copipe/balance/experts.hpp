// SPDX-License-Identifier: Apache-2.0
// Which experts of a mixture-of-experts layer get a second copy, and on which GPU each copy lives: the algorithm that
// DeepSeek published as EPLB, copy by copy.
#pragma once

#include "copipe/balance/row.hpp"
#include "copipe/error.hpp"

#include <algorithm>
#include <numeric>
#include <span>
#include <string>
#include <utility>

namespace copipe {

/// The cluster that experts are placed on; each GPU holds `replicas / gpus` copies. Experts form groups of equal size
/// that group-limited routing keeps on one node; where groups do not divide evenly over nodes, both are ignored.
struct expert_shape {
    int replicas; ///< copies in all, at least one per expert
    int groups = 1;
    int nodes = 1;
    int gpus = 1;

    /// The shape that is placed: one group on one node where groups do not divide evenly over nodes.
    [[nodiscard]] expert_shape effective() const noexcept {
        return groups % nodes == 0 ? *this : expert_shape{replicas, 1, 1, gpus};
    }
};

/// Where the copies of one layer's experts are: equally many on each GPU, GPU 0's copies first.
struct expert_map {
    row<int> phy2log; ///< [replicas] the expert that each copy is of
    row<int> phyrank; ///< [replicas] its number among the copies of that expert, from 0
    row<int> logcnt;  ///< [experts] copies of each expert

    friend bool operator==(expert_map const&, expert_map const&) = default;
};

/// A shape or a load that no placement can serve.
class expert_error : public error {
public:
    using error::error;
};

/// Throws expert_error, which names the number at fault, unless `loads` can be placed on `shape`.
template <class = void> void require_placeable(std::span<double const> loads, expert_shape const& shape) {
    auto const require = [](bool right, std::string const& sentence) {
        if (!right) throw expert_error(sentence);
    };
    int const experts = static_cast<int>(loads.size());
    for (auto const& [number, what] : {std::pair{experts, "experts"}, {shape.replicas, "replicas"},
                                       {shape.groups, "groups"}, {shape.nodes, "nodes"}, {shape.gpus, "GPUs"}})
        require(number >= 1, "The number of " + std::string(what) + " must be at least 1.");
    auto const divides = [&](int number, char const* what, int over, char const* over_what) {
        require(number % over == 0, std::to_string(number) + " " + what + " do not divide evenly over " +
                                        std::to_string(over) + " " + over_what + "; change one of the two numbers.");
    };
    divides(shape.replicas, "replicas", shape.gpus, "GPUs");
    divides(experts, "experts", shape.effective().groups, "groups");
    divides(shape.gpus, "GPUs", shape.effective().nodes, "nodes");
    require(shape.replicas >= experts, std::to_string(shape.replicas) + " replicas are too few for " +
                                           std::to_string(experts) + " experts; each expert needs one.");
    for (double const& load : loads)
        require(load >= 0 && load <= 1e30,
                "The load of expert " + std::to_string(&load - loads.data()) + " must be a number from 0 to 1e30.");
}

/// Balanced packing: the heaviest item first, each into the lightest pack that still has room, ties to the lowest
/// index. Yields the place of each item, pack * (items per pack) + rank within it. With one item per pack, items stay
/// in order.
template <class = void> row<int> pack_evenly(row<float> const& loads, int packs) {
    int const room = loads.count() / packs;
    row<int> order(loads.count()), place(loads.count()), used(packs);
    row<float> sum(packs);
    std::iota(order.begin(), order.end(), 0);
    if (room == 1) return order;
    std::sort(order.begin(), order.end(),
              [&](int a, int b) { return loads[a] != loads[b] ? loads[a] > loads[b] : a < b; });
    for (int const item : order) {
        int lightest = -1;
        for (int pack = 0; pack < packs; ++pack)
            if (used[pack] < room && (lightest < 0 || sum[pack] < sum[lightest])) lightest = pack;
        place[item] = lightest * room + used[lightest]++;
        sum[lightest] += loads[item];
    }
    return place;
}

/// The experts of each node [nodes][experts / nodes], in their order within the node: groups packed evenly onto nodes.
template <class = void> row<row<int>> experts_of_nodes(row<float> const& loads, expert_shape const& shape) {
    int const size = loads.count() / shape.groups, per_node = loads.count() / shape.nodes;
    row<float> groups(shape.groups);
    for (int e = 0; e < loads.count(); ++e) groups[e / size] += loads[e];
    auto const place = pack_evenly(groups, shape.nodes);
    row<row<int>> nodes(shape.nodes, row<int>(per_node));
    for (int e = 0; e < loads.count(); ++e) {
        int const at = place[e / size] * size + e % size;
        nodes[at / per_node][at % per_node] = e;
    }
    return nodes;
}

/// Numbers the copies of each expert from slot to slot, where nothing else says which came first.
template <class = void> expert_map numbered(row<int> phy2log, int experts) {
    row<int> rank, copies(experts);
    for (int const expert : phy2log) rank.push_back(copies[expert]++);
    return {std::move(phy2log), std::move(rank), std::move(copies)};
}

/// Places the copies of one layer's experts exactly as EPLB does, with stable sorting: groups onto nodes; within a
/// node one more copy at a time for the expert with the largest load per copy, ties to the lowest index; copies onto
/// the node's GPUs. `loads` [experts] is the work of each expert in any unit, compared as float like EPLB's. Throws
/// expert_error.
template <class = void>
[[nodiscard]] expert_map place_experts(std::span<double const> loads, expert_shape const& wanted) {
    require_placeable(loads, wanted);
    auto const shape = wanted.effective();
    int const per_node = shape.replicas / shape.nodes;
    row<float> const all(loads.begin(), loads.end());
    expert_map map{row<int>(shape.replicas), row<int>(shape.replicas), row<int>(all.count(), 1)};
    int first = 0; // copy of the node
    for (auto const& experts : experts_of_nodes(all, shape)) {
        auto const share = [&](int expert) { return all[expert] / static_cast<float>(map.logcnt[expert]); };
        row<int> copies = experts, rank(per_node);
        while (copies.count() < per_node) {
            int const neediest = *std::max_element(experts.begin(), experts.end(),
                                                   [&](int a, int b) { return share(a) < share(b); });
            rank[copies.count()] = map.logcnt[neediest]++;
            copies.push_back(neediest);
        }
        row<float> shares;
        for (int const expert : copies) shares.push_back(share(expert));
        auto const place = pack_evenly(shares, shape.gpus / shape.nodes);
        for (int copy = 0; copy < per_node; ++copy) {
            map.phy2log[first + place[copy]] = copies[copy];
            map.phyrank[first + place[copy]] = rank[copy];
        }
        first += per_node;
    }
    return map;
}

/// The load of the busiest GPU over the mean load of all: 1 is perfect balance, also where nothing is loaded.
template <class = void>
[[nodiscard]] double max_over_mean(std::span<double const> loads, expert_map const& map, int gpus) {
    row<double> sum(gpus);
    for (int copy = 0, slots = map.phy2log.count() / gpus; copy < map.phy2log.count(); ++copy)
        sum[copy / slots] += loads.data()[map.phy2log[copy]] / map.logcnt[map.phy2log[copy]];
    double const total = std::accumulate(loads.begin(), loads.end(), 0.0);
    return total > 0 ? sum.max() * gpus / total : 1;
}

/// The copies of each expert, by number [layers][experts][most copies of any expert of any layer], filled up with -1:
/// the inverse of `phy2log` in the form that EPLB returns it.
template <class = void> [[nodiscard]] row<row<row<int>>> copies_of_experts(std::span<expert_map const> layers) {
    row<row<row<int>>> copies;
    int most = 0;
    for (auto const& layer : layers) most = std::max(most, layer.logcnt.max());
    for (auto const& layer : layers) {
        auto& of = copies.emplace_back(layer.logcnt.count(), row<int>(most, -1));
        for (int copy = 0; copy < layer.phy2log.count(); ++copy) of[layer.phy2log[copy]][layer.phyrank[copy]] = copy;
    }
    return copies;
}

} // namespace copipe
