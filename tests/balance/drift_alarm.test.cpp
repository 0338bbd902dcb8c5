// SPDX-License-Identifier: Apache-2.0
#include "copipe/balance/drift_alarm.hpp"

#include "catch.hpp"

#include <functional>
#include <random>

using namespace copipe;

namespace {

/// The step in which an alarm rings first, of a thousand; -1 if it never does.
int rings_at(std::function<double(int step, int rank)> const& seconds, int ranks = 4) {
    drift_alarm alarm;
    for (int step = 0; step < 1000; ++step) {
        row<double> each;
        for (int rank = 0; rank < ranks; ++rank) each.push_back(seconds(step, rank));
        if (alarm.rings(each)) return step;
    }
    return -1;
}

} // namespace

TEST_CASE("an alarm rings three steps after one rank has changed, and not before") {
    for (double const after : {2.0, 1.05, 0.9})
        CHECK(rings_at([&](int step, int rank) { return rank == 2 && step >= 100 ? after : 1; }) == 102);
}

TEST_CASE("a slow drift rings when it has come to more than two percent of the longest rank's work") {
    int const at = rings_at([](int step, int rank) { return rank == 0 ? 2 : 1 + 1e-3 * step; });
    CHECK(at > 40);
    CHECK(at < 60);
}

TEST_CASE("an alarm is silent while nothing changes, however noisy, and where single steps stand out") {
    std::mt19937_64 random(3);
    for (double const noise : {0.0, 0.005, 0.05, 0.3}) {
        std::normal_distribution<double> normal(1, noise);
        INFO("noise " << noise);
        int silent = 0;
        for (int run = 0; run < 10; ++run) silent += rings_at([&](int, int) { return normal(random); }) == -1;
        CHECK(silent >= (noise > 0 ? 5 : 10));
    }
    CHECK(rings_at([](int step, int) { return step % 5 == 3 ? 50 : 1; }) == -1);
}

TEST_CASE("after a restart an alarm takes what it sees for usual") {
    drift_alarm alarm;
    for (int step = 0; step < 20; ++step) CHECK_FALSE(alarm.rings({1, 1}));
    alarm.restart();
    for (int step = 0; step < 20; ++step) CHECK_FALSE(alarm.rings({1, 3}));
    for (int step = 0; step < 2; ++step) CHECK_FALSE(alarm.rings({1, 1}));
    CHECK(alarm.rings({1, 1}));
}
