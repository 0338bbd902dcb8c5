// SPDX-License-Identifier: Apache-2.0
#include "copipe/balance/bottleneck.hpp"

#include "catch.hpp"

#include <algorithm>
#include <random>
#include <vector>

using namespace copipe;

TEST_CASE("the least bound is found among scattered values, from far below, in few probes") {
    std::mt19937 random(2);
    for (int round = 0; round < 200; ++round) {
        std::vector<ticks> values; // that some partition takes; from the wanted one on, all will do
        for (int i = 0; i < 50; ++i) values.push_back(static_cast<ticks>(random()) % 1'000'000'000);
        std::sort(values.begin(), values.end());
        ticks const wanted = values[random() % values.size()];
        int probes = 0;
        ticks const found = least_bound(0, [&](ticks bound) {
            ++probes;
            auto const above = std::upper_bound(values.begin(), values.end(), bound);
            if (bound >= wanted) return probe_result{true, *(above - 1)};
            return probe_result{false, *above};
        });
        CHECK(found == wanted);
        CHECK(probes < 40);
    }
}

TEST_CASE("there is no least bound where a probe rules out all") {
    CHECK(least_bound(5, [](ticks) { return probe_result{false, never}; }) == never);
    CHECK(least_bound(5, [](ticks bound) { return probe_result{false, bound < 100 ? bound + 1 : never}; }) == never);
}

TEST_CASE("a bound that holds at once is lowered no further than to where the search began") {
    CHECK(least_bound(7, [](ticks) { return probe_result{true, 7}; }) == 7);
}
