// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "copipe/device/host.hpp"
#include "copipe/train/optimizer.hpp"

#include <algorithm>

using namespace copipe;

namespace {

double square_sum_of(std::vector<float> const& gradient, host_execution how = host_execution::worker_thread) {
    host_device on{how};
    host_stream& stream = on.open_stream("compute");
    parameter p{.name = "p", .sizes = {static_cast<std::int64_t>(gradient.size())}};
    p.gradient = tensor{*stream.memory(), p.sizes};
    std::copy(gradient.begin(), gradient.end(), p.gradient.data());
    double sum = -1;
    square_sum(stream, p, &sum);
    stream.synchronize();
    return sum;
}

} // namespace

TEST_CASE("the square sum of a gradient is exact where doubles are, for every length") {
    for (std::size_t count = 0; count < 70; ++count) {
        std::vector<float> gradient(count);
        double expected = 0;
        for (std::size_t i = 0; i < count; ++i) {
            gradient[i] = static_cast<float>(i + 1) * (i % 2 ? 1.0f : -1.0f);
            expected += static_cast<double>((i + 1) * (i + 1));
        }
        CHECK(square_sum_of(gradient) == expected);
    }
}

TEST_CASE("squares too large or small for 32 bits do not overflow, vanish or drown") {
    CHECK(square_sum_of({1e30f, 1e-30f}) == Approx(1e60));
    CHECK(square_sum_of({1e-30f}) == Approx(1e-60));
    double const small = static_cast<double>(1e-4f);
    std::vector<float> many(1 << 20, 1e-4f);
    many[0] = 100;
    CHECK(square_sum_of(many) == Approx(1e4 + ((1 << 20) - 1) * small * small).epsilon(1e-10));
}

TEST_CASE("the square sum has the same bits on any thread") {
    std::vector<float> gradient(12345);
    counter_random const draw{1, 2};
    for (std::size_t i = 0; i < gradient.size(); ++i) gradient[i] = static_cast<float>(draw.normal(i));
    CHECK(square_sum_of(gradient) == square_sum_of(gradient, host_execution::inline_));
}
