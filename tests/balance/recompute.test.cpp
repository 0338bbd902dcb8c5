// SPDX-License-Identifier: Apache-2.0
#include "copipe/balance/recompute.hpp"

#include "catch.hpp"

#include <random>

using namespace copipe;

namespace {

/// Of the layers from `begin` to `end`.
recompute_choice choose(row<ticks> const& saves, row<ticks> const& costs, int begin, int end, ticks need) {
    row<recompute_option> options;
    for (int layer = begin; layer < end; ++layer) options.push_back({layer, saves[layer], costs[layer]});
    return choose_recompute(options, need);
}

/// The least cost by trying all sets.
ticks least_cost(row<ticks> const& saves, row<ticks> const& costs, ticks need) {
    ticks least = never;
    for (unsigned set = 0; set < 1U << saves.size(); ++set) {
        ticks saved = 0, cost = 0;
        for (int i = 0; i < saves.count(); ++i)
            if ((set >> i & 1U) != 0) saved += saves[i], cost += costs[i];
        if (saved >= need) least = std::min(least, cost);
    }
    return least;
}

} // namespace

TEST_CASE("the layers to recompute are the cheapest that save enough") {
    std::mt19937 random(4);
    for (int round = 0; round < 200; ++round) {
        row<ticks> saves, costs;
        for (int i = 0; i < 8; ++i) {
            saves.push_back(static_cast<ticks>(random() % 12) - 1);
            costs.push_back(static_cast<ticks>(random() % 20));
        }
        ticks const need = 1 + static_cast<ticks>(random() % 45);
        auto const choice = choose(saves, costs, 0, 8, need);
        CHECK(choice.exact);
        CHECK(choice.extra == least_cost(saves, costs, need));
        if (choice.extra == never) continue;
        ticks saved = 0, cost = 0;
        for (int const layer : choice.layers) saved += saves[layer], cost += costs[layer];
        CHECK(saved >= need);
        CHECK(cost == choice.extra);
        CHECK(std::ranges::is_sorted(choice.layers));
    }
}

TEST_CASE("only layers of the stage are recomputed") {
    row<ticks> const saves{9, 5, 5, 9}, costs{1, 3, 4, 1};
    CHECK(choose(saves, costs, 1, 3, 4).layers == row<int>{1});
    CHECK(choose(saves, costs, 1, 3, 8).layers == row<int>{1, 2});
    CHECK(choose(saves, costs, 1, 3, 11).extra == never);
    CHECK(choose(saves, costs, 2, 2, 1).extra == never);
}

TEST_CASE("a hundred layers alike are chosen from exactly") {
    auto const choice = choose(row<ticks>(100, 7), row<ticks>(100, 3), 0, 100, 350);
    CHECK(choice.exact);
    CHECK(choice.extra == 150);
    CHECK(choice.layers.size() == 50);
}

TEST_CASE("beyond the stated limit the choice still saves enough, and says that it may not be the best") {
    std::mt19937 random(6);
    row<ticks> saves;
    for (int i = 0; i < 20; ++i) saves.push_back(1'000'000 + static_cast<ticks>(random() % 1'000'000));
    auto const choice = choose(saves, saves, 0, 20, 14'000'000);
    CHECK_FALSE(choice.exact);
    ticks saved = 0;
    for (int const layer : choice.layers) saved += saves[layer];
    CHECK(saved >= 14'000'000);
}
