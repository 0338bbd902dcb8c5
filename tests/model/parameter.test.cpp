// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"

#include "copipe/model/parameter.hpp"

#include <cmath>
#include <cstdint>
#include <set>

using namespace copipe;

TEST_CASE("counted random numbers depend on seed, stream and index alone") {
    STATIC_REQUIRE(counter_random{1, 2}.bits(3) == counter_random{1, 2}.bits(3));
    std::set<std::uint64_t> seen;
    for (std::uint64_t seed = 0; seed < 10; ++seed) {
        for (std::uint64_t stream = 0; stream < 10; ++stream) {
            for (std::uint64_t index = 0; index < 100; ++index) seen.insert(counter_random{seed, stream}.bits(index));
        }
    }
    CHECK(seen.size() == 10'000);
}

TEST_CASE("uniform numbers fill (0, 1) evenly, normal ones have mean 0 and deviation 1") {
    counter_random const random{7, 1};
    constexpr std::uint64_t n = 200'000;
    double mean = 0, square = 0, sum = 0, squares = 0;
    std::uint64_t below_quarter = 0;
    bool inside = true;
    for (std::uint64_t i = 0; i < n; ++i) {
        double const u = random.uniform(i);
        inside = inside && u > 0 && u < 1;
        below_quarter += u < 0.25;
        mean += u / n;
        square += u * u / n;
        double const z = random.normal(i);
        sum += z / n;
        squares += z * z / n;
    }
    CHECK(inside);
    CHECK(mean == Approx(0.5).margin(0.003));
    CHECK(square == Approx(1.0 / 3).margin(0.003));
    CHECK(static_cast<double>(below_quarter) / n == Approx(0.25).margin(0.005));
    CHECK(sum == Approx(0).margin(0.01));
    CHECK(squares == Approx(1).margin(0.02));
}

TEST_CASE("a parameter is declared without memory") {
    parameter const p{.name = "w", .sizes = {3, 4}, .first = normal(0.5)};
    CHECK(p.count() == 12);
    CHECK_FALSE(p.value);
    CHECK_FALSE(p.gradient);
    CHECK(constant(2).mean == 2);
    CHECK(constant(2).deviation == 0);
    CHECK(normal(0.5).mean == 0);
}
