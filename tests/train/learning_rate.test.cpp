// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "copipe/train/learning_rate.hpp"

using namespace copipe;

TEST_CASE("a constant rate is the same at every step") {
    constexpr constant_rate rate{0.5};
    static_assert(rate(0) == 0.5 && rate(1'000'000) == 0.5);
    CHECK(rate(17) == 0.5);
}

TEST_CASE("the cosine rises in equal parts to its peak, then falls to its floor at the last step and stays there") {
    cosine_rate const rate{.peak = 2, .steps = 24, .warm_up = 4, .floor = 1};
    CHECK(rate(0) == 0.5);
    CHECK(rate(1) == 1.0);
    CHECK(rate(2) == 1.5);
    CHECK(rate(3) == 2.0);
    CHECK(rate(3 + 5) == Approx(1 + 0.5 * (1 + std::sqrt(0.5)))); // a quarter down
    CHECK(rate(3 + 10) == Approx(1.5));                           // half down
    CHECK(rate(3 + 15) == Approx(1 + 0.5 * (1 - std::sqrt(0.5))));
    CHECK(rate(23) == 1.0);
    CHECK(rate(24) == 1.0);
    CHECK(rate(1'000'000) == 1.0);
    for (std::uint64_t step = 3; step < 23; ++step) CHECK(rate(step) > rate(step + 1));
}

TEST_CASE("without warm-up the first step is already on its way down") {
    cosine_rate const rate{.peak = 1, .steps = 2};
    CHECK(rate(0) == Approx(0.5));
    CHECK(rate(1) == 0.0);
}

TEST_CASE("a warm-up longer than the run only rises") {
    cosine_rate const rate{.peak = 1, .steps = 4, .warm_up = 8};
    CHECK(rate(3) == 0.5);
    CHECK(rate(7) == 1.0);
    CHECK(rate(8) == 0.0);
}

TEST_CASE("a lambda is a schedule") {
    auto const halved = [](std::uint64_t step) { return 1.0 / static_cast<double>(step + 1); };
    static_assert(learning_rate_schedule<decltype(halved)>);
    CHECK(halved(1) == 0.5);
}
