// SPDX-License-Identifier: Apache-2.0
#include "copipe/balance/refined_experts.hpp"

#include "catch.hpp"

#include <set>

using namespace copipe;
using expert_loads = std::vector<double>;

namespace {

bool apart(expert_map const& map, expert_shape const& shape) {
    int const slots = shape.replicas / shape.gpus;
    for (auto gpu = map.phy2log.begin(); gpu != map.phy2log.end(); gpu += slots)
        if (std::set<int>(gpu, gpu + slots).size() != std::size_t(slots)) return false;
    return true;
}

bool groups_stay_whole(expert_map const& map, expert_shape const& shape, int size) {
    std::vector<std::set<int>> nodes(std::size_t(shape.groups));
    for (std::size_t copy = 0; copy < map.phy2log.size(); ++copy)
        nodes[std::size_t(map.phy2log[copy] / size)].insert(int(copy) / (shape.replicas / shape.nodes));
    return std::all_of(nodes.begin(), nodes.end(), [](auto const& on) { return on.size() == 1; });
}

/// The least possible load of the busiest of two GPUs that hold no expert twice, by trying every choice: each expert
/// is on the first GPU, on the second, or halved over both.
double least_peak_of_two(expert_loads const& work, std::size_t at, int slots, int first, int second, double a,
                         double b) {
    if (first > slots || second > slots) return 1e300;
    if (at == work.size()) return first == slots && second == slots ? std::max(a, b) : 1e300;
    double const load = work[at];
    return std::min({least_peak_of_two(work, at + 1, slots, first + 1, second, a + load, b),
                     least_peak_of_two(work, at + 1, slots, first, second + 1, a, b + load),
                     least_peak_of_two(work, at + 1, slots, first + 1, second + 1, a + load / 2, b + load / 2)});
}

} // namespace

TEST_CASE("a refined placement is never worse, keeps copies apart and groups whole") {
    std::mt19937 random(3);
    auto const any = [&](int low, int high) { return low + static_cast<int>(random() % unsigned(high - low + 1)); };
    int better = 0;
    for (int round = 0; round < 60; ++round) {
        int const nodes = any(1, 2), groups = nodes * any(2, 3), size = any(4, 8), gpus = nodes * any(3, 5);
        int const experts = groups * size, slots = (experts + gpus - 1) / gpus + any(0, 2);
        expert_shape const shape{slots * gpus, groups, nodes, gpus};
        if (slots * nodes > experts) continue;
        expert_loads work;
        for (int e = 0; e < experts; ++e) work.push_back(round % 2 == 0 ? any(1, 100) : 1000.0 / any(1, 60));
        auto const refined = refine_experts(work, shape);
        double const before = max_over_mean(work, place_experts(work, shape), gpus);
        double const after = max_over_mean(work, refined, gpus);
        CHECK(after <= before + 1e-9);
        CHECK(apart(refined, shape));
        CHECK(groups_stay_whole(refined, shape, size));
        better += after < before - 1e-6;
    }
    CHECK(better > 30);
}

TEST_CASE("on two GPUs a refined placement is as good as the best that keeps copies apart") {
    std::mt19937 random(8);
    for (int round = 0; round < 40; ++round) {
        expert_loads work;
        for (int e = 0; e < 8; ++e) work.push_back(double(1 + random() % 90));
        expert_shape const shape{.replicas = 10, .gpus = 2};
        double total = 0;
        for (double const load : work) total += load;
        double const best = least_peak_of_two(work, 0, 5, 0, 0, 0, 0) / (total / 2);
        CHECK(max_over_mean(work, refine_experts(work, shape), 2) <= best * 1.005);
    }
}

TEST_CASE("an expert that all tokens want is spread over its node once per GPU") {
    expert_shape const shape{.replicas = 24, .groups = 4, .nodes = 2, .gpus = 4};
    expert_loads work(16, 1.0);
    work[5] = 100'000;
    auto const refined = refine_experts(work, shape);
    CHECK(refined.logcnt[5] == 2);
    CHECK(apart(refined, shape));
    CHECK(max_over_mean(work, refined, 4) < 2.001);
    CHECK(max_over_mean(work, place_experts(work, shape), 4) > 2.3);
}

TEST_CASE("the published placement stays where keeping copies apart would be worse") {
    expert_shape const shape{.replicas = 6, .gpus = 2};
    expert_loads const work{39, 78, 33, 3};
    CHECK(refine_experts(work, shape) == place_experts(work, shape));
    CHECK_FALSE(apart(place_experts(work, shape), shape));
}

TEST_CASE("a GPU with more slots than experts holds each expert as evenly as it can") {
    expert_loads const work{3, 2};
    expert_shape const shape{.replicas = 6, .gpus = 2};
    auto const refined = refine_experts(work, shape);
    CHECK(max_over_mean(work, refined, 2) == Approx(1));
    for (int gpu = 0; gpu < 2; ++gpu) {
        auto const own = refined.phy2log.begin() + 3 * gpu;
        CHECK(std::set<int>(own, own + 3).size() == 2);
    }
}
