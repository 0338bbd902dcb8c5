// SPDX-License-Identifier: Apache-2.0
#include "copipe/balance/experts.hpp"

#include "catch.hpp"

#include <cmath>
#include <random>

using namespace copipe;
using ints = std::vector<int>;
using loads = std::vector<double>;

TEST_CASE("experts are placed as in the example that EPLB publishes") {
    expert_shape const shape{.replicas = 16, .groups = 4, .nodes = 2, .gpus = 8};
    auto const first = place_experts(loads{90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86}, shape);
    CHECK(first.phy2log == ints{5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1});
    CHECK(first.logcnt == ints{1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1});
    auto const second = place_experts(loads{20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27}, shape);
    CHECK(second.phy2log == ints{7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1});
    CHECK(second.logcnt == ints{1, 2, 1, 1, 1, 2, 2, 1, 2, 1, 1, 1});
}

TEST_CASE("the heaviest expert goes first, each to the lightest GPU with room") {
    auto const map = place_experts(loads{10, 6, 4, 2}, {.replicas = 4, .gpus = 2});
    CHECK(map.phy2log == ints{0, 3, 1, 2});
    CHECK(map.phyrank == ints{0, 0, 0, 0});
}

TEST_CASE("equal loads are placed by lowest index") {
    CHECK(place_experts(loads{1, 1, 1, 1}, {.replicas = 4, .gpus = 2}).phy2log == ints{0, 2, 1, 3});
    CHECK(place_experts(loads{0, 0, 0}, {.replicas = 6, .gpus = 3}).logcnt == ints{4, 1, 1});
}

TEST_CASE("one copy per GPU stays in the order of its creation") {
    auto const map = place_experts(loads{8, 1}, {.replicas = 4, .gpus = 4});
    CHECK(map.phy2log == ints{0, 1, 0, 0});
    CHECK(map.phyrank == ints{0, 0, 1, 2});
    CHECK(map.logcnt == ints{3, 1});
}

TEST_CASE("groups that do not divide evenly over nodes are ignored") {
    loads const work{5, 1, 9, 2, 7, 3};
    auto const uneven = place_experts(work, {.replicas = 8, .groups = 3, .nodes = 2, .gpus = 4});
    CHECK(uneven == place_experts(work, {.replicas = 8, .gpus = 4}));
    CHECK_FALSE(uneven == place_experts(work, {.replicas = 8, .groups = 2, .nodes = 2, .gpus = 4}));
}

TEST_CASE("loads are compared as float") {
    loads const alike{16'777'216, 16'777'217};
    CHECK(place_experts(alike, {.replicas = 3, .gpus = 1}).logcnt == ints{2, 1});
}

TEST_CASE("every expert gets a copy, every copy its own number, every group one node") {
    std::mt19937 random(11);
    for (int round = 0; round < 200; ++round) {
        auto const any = [&](int low, int high) { return low + static_cast<int>(random() % unsigned(high - low + 1)); };
        int const nodes = any(1, 3), groups = nodes * any(1, 3), size = any(1, 4), gpus = nodes * any(1, 4);
        int const experts = groups * size, slots = (experts + gpus - 1) / gpus + any(0, 2);
        expert_shape const shape{slots * gpus, groups, nodes, gpus};
        loads work;
        for (int e = 0; e < experts; ++e) work.push_back(any(0, 50));
        auto const map = place_experts(work, shape);
        REQUIRE(map.phy2log.size() == std::size_t(shape.replicas));
        auto const copies = copies_of_experts(std::vector{map})[0];
        ints node_of_group(std::size_t(groups), -1);
        for (std::size_t e = 0; e < copies.size(); ++e) {
            CHECK(map.logcnt[e] >= 1);
            for (int k = 0; k < map.logcnt[e]; ++k) {
                int const copy = copies[e][std::size_t(k)];
                REQUIRE(copy >= 0);
                CHECK(map.phy2log[std::size_t(copy)] == int(e));
                CHECK(map.phyrank[std::size_t(copy)] == k);
                int& node = node_of_group[e / std::size_t(size)];
                int const here = copy / (shape.replicas / nodes);
                CHECK((node < 0 || node == here));
                node = here;
            }
            CHECK(std::all_of(copies[e].begin() + map.logcnt[e], copies[e].end(), [](int c) { return c == -1; }));
        }
    }
}

namespace {

/// The least possible largest load per copy, by trying every number of copies.
double least_share(loads const& work, std::size_t at, int spare) {
    if (at == work.size()) return 0;
    double best = 1e300;
    for (int extra = 0; extra <= spare; ++extra)
        best = std::min(best, std::max(work[at] / (1 + extra), least_share(work, at + 1, spare - extra)));
    return best;
}

} // namespace

TEST_CASE("copies go where they make the largest load per copy least") {
    std::mt19937 random(5);
    for (int round = 0; round < 100; ++round) {
        loads work;
        for (int e = 0; e < 5; ++e) work.push_back(double(random() % 40));
        auto const map = place_experts(work, {.replicas = 10, .gpus = 10});
        double largest = 0;
        for (std::size_t e = 0; e < work.size(); ++e) largest = std::max(largest, work[e] / map.logcnt[e]);
        CHECK(largest == Approx(least_share(work, 0, 5)));
    }
}

TEST_CASE("the busiest GPU is compared with the mean") {
    expert_map const map{{0, 1, 0, 2}, {0, 0, 1, 0}, {2, 1, 1}};
    CHECK(max_over_mean(loads{8, 2, 4}, map, 2) == Approx(8 / 7.0));
    CHECK(max_over_mean(loads{0, 0, 0}, map, 2) == 1);
}

TEST_CASE("the copies of each expert are listed to the most of any layer") {
    auto const few = place_experts(loads{1, 1, 1}, {.replicas = 4, .gpus = 1});
    auto const many = place_experts(loads{0, 0, 9}, {.replicas = 5, .gpus = 1});
    auto const lists = copies_of_experts(std::vector{few, many});
    REQUIRE(lists.size() == 2);
    CHECK(lists[0] == row<row<int>>{{2, 3, -1}, {0, -1, -1}, {1, -1, -1}});
    CHECK(lists[1].size() == 3);
    CHECK(lists[1][2].size() == 3);
}

TEST_CASE("a shape that cannot be placed says which numbers are at fault") {
    loads const six{1, 2, 3, 4, 5, 6};
    auto const why = [&](loads const& work, expert_shape const& shape) -> std::string {
        try {
            return "placed " + std::to_string(place_experts(work, shape).phy2log.size());
        } catch (expert_error const& refused) {
            return refused.what();
        }
    };
    CHECK(why(six, {.replicas = 8, .gpus = 4}) == "placed 8");
    CHECK(why(six, {.replicas = 5}) == "5 replicas are too few for 6 experts; each expert needs one.");
    CHECK(why(six, {.replicas = 8, .gpus = 3}) ==
          "8 replicas do not divide evenly over 3 GPUs; change one of the two numbers.");
    CHECK(why(six, {.replicas = 8, .groups = 4}) ==
          "6 experts do not divide evenly over 4 groups; change one of the two numbers.");
    CHECK(why(six, {.replicas = 9, .groups = 2, .nodes = 2, .gpus = 3}) ==
          "3 GPUs do not divide evenly over 2 nodes; change one of the two numbers.");
    CHECK(why(six, {.replicas = 6, .nodes = 0}) == "The number of nodes must be at least 1.");
    CHECK(why({}, {.replicas = 6}) == "The number of experts must be at least 1.");
    CHECK(why({1, -1}, {.replicas = 2}) == "The load of expert 1 must be a number from 0 to 1e30.");
    CHECK(why({1, NAN}, {.replicas = 2}) == "The load of expert 1 must be a number from 0 to 1e30.");
}
