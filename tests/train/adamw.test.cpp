// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "copipe/device/host.hpp"
#include "copipe/train/adamw.hpp"

#include <algorithm>
#include <cmath>

using namespace copipe;

namespace {

/// A parameter in memory, with state for AdamW.
struct trained {
    host_device on;
    host_stream& stream = on.open_stream("compute");
    parameter p;

    explicit trained(extents const& sizes) : p{.name = "p", .sizes = sizes} {
        p.value = zeros();
        p.gradient = zeros();
        p.state = {zeros(), zeros()};
    }
    ~trained() { stream.synchronize(); }

    tensor zeros() {
        tensor all{*stream.memory(), p.sizes};
        std::fill_n(all.data(), all.count(), 0.0f);
        return all;
    }
    void step(adamw const& with, std::uint64_t number, double rate, double scale = 1) {
        with.update(stream, p, number, rate, scale);
        stream.synchronize();
    }
    std::vector<float> values() const { return {p.value.data(), p.value.data() + p.count()}; }
};

/// Algorithm 2 of the paper, one number at a time in double precision.
struct reference {
    double value, mean = 0, square = 0;

    void step(adamw const& with, int number, double rate, double gradient, double decay) {
        mean = with.beta1 * mean + (1 - with.beta1) * gradient;
        square = with.beta2 * square + (1 - with.beta2) * gradient * gradient;
        double const mean_hat = mean / (1 - std::pow(with.beta1, number));
        double const square_hat = square / (1 - std::pow(with.beta2, number));
        value -= rate * mean_hat / (std::sqrt(square_hat) + with.epsilon) + rate * decay * value;
    }
};

void compare(extents const& sizes, double expected_decay) {
    adamw const with{.beta1 = 0.8, .beta2 = 0.95, .epsilon = 1e-6, .weight_decay = 0.5};
    trained got{sizes};
    std::vector<reference> expected;
    counter_random const draw{3, 4};
    for (std::size_t i = 0; i < got.p.count(); ++i) {
        got.p.value.data()[i] = static_cast<float>(draw.normal(i));
        expected.push_back({.value = static_cast<double>(got.p.value.data()[i])});
    }
    for (int number = 1; number <= 40; ++number) {
        double const rate = 0.05 / number;
        for (std::size_t i = 0; i < got.p.count(); ++i) {
            auto const gradient = static_cast<float>(draw.normal(1000U * static_cast<unsigned>(number) + i));
            got.p.gradient.data()[i] = gradient;
            expected[i].step(with, number, rate, 0.25 * static_cast<double>(gradient), expected_decay);
        }
        got.step(with, static_cast<std::uint64_t>(number), rate, 0.25);
    }
    for (std::size_t i = 0; i < got.p.count(); ++i) {
        INFO("element " << i);
        CHECK(static_cast<double>(got.p.value.data()[i]) == Approx(expected[i].value).epsilon(1e-5).margin(1e-6));
        CHECK(static_cast<double>(got.p.state[0].data()[i]) == Approx(expected[i].mean).epsilon(1e-5).margin(1e-7));
        CHECK(static_cast<double>(got.p.state[1].data()[i]) == Approx(expected[i].square).epsilon(1e-5));
    }
}

} // namespace

TEST_CASE("AdamW follows the paper's algorithm in double precision") { compare({5, 7}, 0.5); }

TEST_CASE("parameters of one dimension do not decay") { compare({37}, 0); }

TEST_CASE("the first update moves each value by the learning rate against its gradient's sign") {
    trained got{{4}};
    float const gradients[] = {1e-3f, -1e-3f, 1e3f, -1e3f};
    std::copy_n(gradients, 4, got.p.gradient.data());
    got.step({}, 1, 0.125);
    for (std::size_t i = 0; i < 4; ++i)
        CHECK(static_cast<double>(got.values()[i]) == Approx(i % 2 ? 0.125 : -0.125).epsilon(1e-4));
}

TEST_CASE("a gradient of zero leaves a value that does not decay as it was") {
    trained got{{3}};
    std::fill_n(got.p.value.data(), 3, 2.0f);
    got.step({}, 1, 0.1);
    CHECK(got.values() == std::vector<float>{2, 2, 2});
}

TEST_CASE("a scaled gradient is the same as a gradient that was scaled before") {
    trained scaled{{64}}, before{{64}};
    for (std::size_t i = 0; i < 64; ++i) {
        float const gradient = 0.1f * static_cast<float>(i) - 3.0f;
        scaled.p.gradient.data()[i] = gradient;
        before.p.gradient.data()[i] = gradient * 0.25f;
    }
    scaled.step({}, 1, 0.1, 0.25);
    before.step({}, 1, 0.1);
    CHECK(scaled.values() == before.values());
}

TEST_CASE("the names under which checkpoints keep AdamW's state are those other tools use") {
    CHECK(adamw::state_names[0] == "exp_avg");
    CHECK(adamw::state_names[1] == "exp_avg_sq");
}
