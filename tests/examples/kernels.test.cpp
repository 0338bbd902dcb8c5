// SPDX-License-Identifier: Apache-2.0
#include "gpt/kernels.hpp"

#include "catch.hpp"
#include "gpt/vector_math.hpp"
#include "reference.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <thread>
#include <vector>

namespace {

using namespace reference;

/// Everything a block and a head compute, forward and backward, in one array: what must not change by a bit. The
/// inputs lie `shift` floats behind the start of their allocations.
floats everything(std::size_t shift) {
    constexpr int batch = 2, time = 19, channels = 40, heads = 5, rows = batch * time, vocabulary = 33;
    gpt::linear_shape const linear{rows, channels, 3 * channels};
    gpt::norm_shape const norm{rows, channels};
    gpt::attention_shape const attention{batch, time, channels, heads};
    gpt::linear_shape const head{rows, channels, vocabulary};
    gpt::cross_entropy_shape const entropy{rows, vocabulary, 1.0f / rows};
    std::vector<floats> arrays;
    arrays.reserve(64);
    unsigned seed = 0;
    auto const input = [&](int n) {
        floats& values = arrays.emplace_back(random_floats(n, ++seed));
        values.insert(values.begin(), shift, 0.0f);
        return values.data() + shift;
    };
    float* const x = input(rows * channels);
    float* const weight = input(3 * channels * channels);
    float* const bias = input(3 * channels);
    float* const table = input(vocabulary * channels);
    float* const normed = input(rows * channels);
    float* const mean = input(rows);
    float* const rstd = input(rows);
    float* const qkv = input(rows * 3 * channels);
    float* const probabilities = input(static_cast<int>(attention.probabilities()));
    float* const scratch = input(static_cast<int>(attention.scratch()));
    float* const y = input(rows * channels);
    float* const logits = input(rows * vocabulary);
    float* const log_sum_exp = input(rows);
    tokens const targets = random_tokens(rows, vocabulary, 7);

    gpt::layer_norm_forward(norm, x, bias, bias + channels, normed, mean, rstd);
    gpt::linear_forward(linear, normed, weight, bias, qkv);
    gpt::attention_forward(attention, qkv, y, probabilities);
    gpt::gelu_forward(rows * channels, y, y);
    gpt::linear_forward(head, y, table, nullptr, logits);
    float* const loss = input(1);
    *loss = static_cast<float>(gpt::cross_entropy_forward(entropy, logits, targets.data(), log_sum_exp));
    float* const dlogits = input(rows * vocabulary);
    gpt::cross_entropy_backward(entropy, logits, targets.data(), log_sum_exp, dlogits);
    float* const dy = input(rows * channels);
    gpt::linear_backward_input(head, dlogits, table, dy);
    gpt::linear_backward_weight(head, y, dlogits, table, nullptr);
    gpt::gelu_backward(rows * channels, dy, y, dy);
    float* const dqkv = input(rows * 3 * channels);
    gpt::attention_backward(attention, dy, qkv, probabilities, dqkv, scratch);
    float* const dnormed = input(rows * channels);
    gpt::linear_backward_input(linear, dqkv, weight, dnormed);
    gpt::linear_backward_weight(linear, normed, dqkv, weight, bias);
    float* const dx = input(rows * channels);
    gpt::layer_norm_backward_input(norm, dnormed, x, bias, mean, rstd, dx);
    gpt::layer_norm_backward_weight(norm, dnormed, x, mean, rstd, bias, bias + channels);
    gpt::embedding_backward({batch, time, channels}, targets.data(), dx, table, normed);

    floats all;
    for (floats const& values : arrays) {
        all.insert(all.end(), values.begin() + static_cast<std::ptrdiff_t>(shift), values.end());
    }
    return all;
}

} // namespace

TEST_CASE("exp agrees with the exact exponential to one and a half units in the last place") {
    double worst = 0;
    for (double x = -87.3; x <= 88.3; x += 0.00137) {
        auto const at = static_cast<float>(x);
        double const exact = std::exp(double{at});
        double const unit = std::ldexp(1.0, std::ilogb(exact) - 23);
        worst = std::max(worst, std::abs(double{gpt::exp(at)} - exact) / unit);
    }
    REQUIRE(worst < 1.5);
    REQUIRE(gpt::exp(0.0f) == 1.0f);
    REQUIRE(gpt::exp(-std::numeric_limits<float>::infinity()) < 1.3e-38f);
    REQUIRE(std::isnan(gpt::exp(std::numeric_limits<float>::quiet_NaN())));
}

TEST_CASE("sums and greatest values are right at every length around the number of lanes") {
    for (int n = 1; n <= 50; ++n) {
        floats const values = random_floats(n, static_cast<unsigned>(n));
        double total = 0;
        for (float const value : values) {
            total += double{value};
        }
        REQUIRE(gpt::sum(n, [&](int i) { return values[size(i)]; }) == Approx(total).margin(1e-5));
        REQUIRE(gpt::greatest(n, values.data()) == *std::max_element(values.begin(), values.end()));
    }
}

TEST_CASE("linear agrees with a double-precision loop and its gradients with finite differences") {
    using shape = gpt::linear_shape;
    shape const s = GENERATE(shape{1, 1, 1}, shape{3, 24, 7}, shape{5, 3, 17});
    bool const with_bias = GENERATE(true, false);
    floats const x = random_floats(s.rows * s.in, 1);
    floats const weight = random_floats(s.out * s.in, 2);
    floats const bias = with_bias ? random_floats(s.out, 3) : floats{};
    floats const dy = random_floats(s.rows * s.out, 4);
    float const* const bias_or_null = with_bias ? bias.data() : nullptr;

    floats y(dy.size(), std::numeric_limits<float>::quiet_NaN());
    gpt::linear_forward(s, x.data(), weight.data(), bias_or_null, y.data());
    require_close(y, linear(s, widened(x), widened(weight), widened(bias)));

    floats dx(x.size(), std::numeric_limits<float>::quiet_NaN());
    gpt::linear_backward_input(s, dy.data(), weight.data(), dx.data());
    require_gradient(dx, x, dy, [&](doubles const& at) { return linear(s, at, widened(weight), widened(bias)); });

    floats dbias(bias.size());
    floats const dweight = accumulated_twice(weight.size(), [&](float* gradient) {
        gpt::linear_backward_weight(s, x.data(), dy.data(), gradient, with_bias ? dbias.data() : nullptr);
    });
    for (float& value : dbias) {
        value /= 2;
    }
    require_gradient(dweight, weight, dy, [&](doubles const& at) { return linear(s, widened(x), at, widened(bias)); });
    require_gradient(dbias, bias, dy, [&](doubles const& at) { return linear(s, widened(x), widened(weight), at); });
}

TEST_CASE("layer norm agrees with a double-precision loop and its gradients with finite differences") {
    gpt::norm_shape const s = GENERATE(gpt::norm_shape{1, 2}, gpt::norm_shape{3, 24}, gpt::norm_shape{2, 37});
    floats const x = random_floats(s.rows * s.width, 1);
    floats const gain = random_floats(s.width, 2);
    floats const bias = random_floats(s.width, 3);
    floats const dy = random_floats(s.rows * s.width, 4);

    floats y(x.size());
    floats mean(size(s.rows));
    floats rstd(size(s.rows));
    gpt::layer_norm_forward(s, x.data(), gain.data(), bias.data(), y.data(), mean.data(), rstd.data());
    require_close(y, layer_norm(s, widened(x), widened(gain), widened(bias)));

    floats dx(x.size(), std::numeric_limits<float>::quiet_NaN());
    gpt::layer_norm_backward_input(s, dy.data(), x.data(), gain.data(), mean.data(), rstd.data(), dx.data());
    require_gradient(dx, x, dy, [&](doubles const& at) { return layer_norm(s, at, widened(gain), widened(bias)); });

    floats dbias(bias.size());
    floats const dgain = accumulated_twice(gain.size(), [&](float* gradient) {
        gpt::layer_norm_backward_weight(s, dy.data(), x.data(), mean.data(), rstd.data(), gradient, dbias.data());
    });
    for (float& value : dbias) {
        value /= 2;
    }
    require_gradient(dgain, gain, dy, [&](doubles const& at) { return layer_norm(s, widened(x), at, widened(bias)); });
    require_gradient(dbias, bias, dy, [&](doubles const& at) { return layer_norm(s, widened(x), widened(gain), at); });
}

TEST_CASE("attention agrees with a double-precision loop and its gradient with finite differences") {
    using shape = gpt::attention_shape;
    shape const s =
        GENERATE(shape{1, 1, 2, 1}, shape{3, 1, 24, 3}, shape{1, 7, 5, 1}, shape{3, 4, 24, 3}, shape{1, 18, 6, 2});
    floats const qkv = random_floats(3 * s.batch * s.time * s.channels, 1);
    floats const dy = random_floats(s.batch * s.time * s.channels, 2);

    floats y(dy.size());
    floats probabilities(static_cast<std::size_t>(s.probabilities()));
    gpt::attention_forward(s, qkv.data(), y.data(), probabilities.data());
    require_close(y, attention(s, widened(qkv)));

    floats dqkv(qkv.size(), std::numeric_limits<float>::quiet_NaN());
    floats scratch(static_cast<std::size_t>(s.scratch()));
    gpt::attention_backward(s, dy.data(), qkv.data(), probabilities.data(), dqkv.data(), scratch.data());
    require_gradient(dqkv, qkv, dy, [&](doubles const& at) { return attention(s, at); });
}

TEST_CASE("attention never looks ahead") {
    gpt::attention_shape const s{1, 20, 8, 2};
    floats qkv = random_floats(3 * s.time * s.channels, 1);
    floats probabilities(static_cast<std::size_t>(s.probabilities()));
    floats before(size(s.time * s.channels));
    gpt::attention_forward(s, qkv.data(), before.data(), probabilities.data());
    constexpr int changed = 13;
    for (std::size_t i = size(changed * 3 * s.channels); i < qkv.size(); ++i) {
        qkv[i] += 3.0f;
    }
    floats after(before.size());
    gpt::attention_forward(s, qkv.data(), after.data(), probabilities.data());
    auto const boundary = changed * s.channels;
    REQUIRE(std::equal(before.begin(), before.begin() + boundary, after.begin()));
    REQUIRE_FALSE(std::equal(before.begin() + boundary, before.end(), after.begin() + boundary));
}

TEST_CASE("gelu agrees with its tanh form and its gradient with finite differences") {
    floats x = random_floats(203, 1);
    for (float& value : x) {
        value *= 6;
    }
    floats const dy = random_floats(203, 2);
    floats y(x.size());
    gpt::gelu_forward(203, x.data(), y.data());
    require_close(y, gelu(widened(x)));
    floats dx = dy;
    gpt::gelu_backward(203, dx.data(), x.data(), dx.data());
    require_gradient(dx, x, dy, [&](doubles const& at) { return gelu(at); });
}

TEST_CASE("gelu stays finite far out and passes a NaN on") {
    std::array<float, 3> const x{1e4f, -1e4f, std::numeric_limits<float>::quiet_NaN()};
    std::array<float, 3> const ones{1, 1, 1};
    std::array<float, 3> y{};
    gpt::gelu_forward(3, x.data(), y.data());
    REQUIRE(y[0] == 1e4f);
    REQUIRE(std::abs(y[1]) < 1e-30f);
    REQUIRE(std::isnan(y[2]));
    gpt::gelu_backward(3, ones.data(), x.data(), y.data());
    REQUIRE(y[0] == 1.0f);
    REQUIRE(std::abs(y[1]) < 1e-20f);
    REQUIRE(std::isnan(y[2]));
}

TEST_CASE("a residual adds, in place too") {
    floats const a = random_floats(37, 1);
    floats const b = random_floats(37, 2);
    floats in_place = a;
    gpt::residual_add(37, in_place.data(), b.data(), in_place.data());
    for (std::size_t i = 0; i < a.size(); ++i) {
        REQUIRE(in_place[i] == a[i] + b[i]);
    }
}

TEST_CASE("embedding adds the rows of both tables and its gradients agree with finite differences") {
    gpt::embedding_shape const s = GENERATE(gpt::embedding_shape{1, 1, 1}, gpt::embedding_shape{3, 5, 24});
    constexpr int vocabulary = 4;
    int const context = s.time + 2;
    tokens const ids = random_tokens(s.batch * s.time, vocabulary, 9);
    floats const table = random_floats(vocabulary * s.channels, 1);
    floats const positions = random_floats(context * s.channels, 2);
    floats const dy = random_floats(s.batch * s.time * s.channels, 3);

    floats y(dy.size());
    gpt::embedding_forward(s, ids.data(), table.data(), positions.data(), y.data());
    require_close(y, embedding(s, ids, widened(table), widened(positions)));

    floats dpositions(positions.size());
    floats const dtable = accumulated_twice(table.size(), [&](float* gradient) {
        gpt::embedding_backward(s, ids.data(), dy.data(), gradient, dpositions.data());
    });
    for (float& value : dpositions) {
        value /= 2;
    }
    require_gradient(dtable, table, dy, [&](doubles const& at) { return embedding(s, ids, at, widened(positions)); });
    require_gradient(dpositions, positions, dy,
                     [&](doubles const& at) { return embedding(s, ids, widened(table), at); });
}

TEST_CASE("cross-entropy agrees with a double-precision loop and its gradient with finite differences") {
    using shape = gpt::cross_entropy_shape;
    shape const s = GENERATE(shape{1, 2, 1.0f}, shape{3, 24, 0.125f}, shape{5, 37, 0.2f});
    floats logits = random_floats(s.rows * s.vocabulary, 1);
    for (float& value : logits) {
        value *= 4;
    }
    tokens targets = random_tokens(s.rows, s.vocabulary, 2);
    if (s.rows > 1) {
        targets[1] = gpt::ignored;
    }
    floats log_sum_exp(size(s.rows));
    double const loss = gpt::cross_entropy_forward(s, logits.data(), targets.data(), log_sum_exp.data());
    REQUIRE(loss == Approx(cross_entropy(s, widened(logits), targets)).epsilon(1e-5));

    floats dlogits = logits;
    gpt::cross_entropy_backward(s, dlogits.data(), targets.data(), log_sum_exp.data(), dlogits.data());
    require_gradient(dlogits, logits, {1.0f},
                     [&](doubles const& at) { return doubles{cross_entropy(s, at, targets)}; });
}

TEST_CASE("an ignored target counts neither in the loss nor in the gradient") {
    gpt::cross_entropy_shape const s{2, 3, 1.0f};
    floats const logits{1, 2, 3, 4, 5, 6};
    tokens const targets(2, gpt::ignored);
    floats log_sum_exp(2);
    REQUIRE(gpt::cross_entropy_forward(s, logits.data(), targets.data(), log_sum_exp.data()) == 0.0);
    floats dlogits(6, 1.0f);
    gpt::cross_entropy_backward(s, logits.data(), targets.data(), log_sum_exp.data(), dlogits.data());
    REQUIRE(dlogits == floats(6));
}

TEST_CASE("cross-entropy stays finite for logits far apart and passes a NaN on") {
    gpt::cross_entropy_shape const s{1, 3, 1.0f};
    tokens const targets{1};
    floats log_sum_exp(1);
    floats const far{3e4f, -3e4f, 0.0f};
    REQUIRE(gpt::cross_entropy_forward(s, far.data(), targets.data(), log_sum_exp.data()) == Approx(6e4));
    floats const broken{0.0f, 1.0f, std::numeric_limits<float>::quiet_NaN()};
    REQUIRE(std::isnan(gpt::cross_entropy_forward(s, broken.data(), targets.data(), log_sum_exp.data())));
}

TEST_CASE("the same input gives the same bits, run to run, at any address, on several threads at once") {
    gpt::one_blas_thread();
    floats const expected = everything(0);
    REQUIRE(everything(0) == expected);
    REQUIRE(everything(16) == expected);
    REQUIRE(everything(3) == expected);
    std::array<bool, 3> same{true, true, true};
    std::vector<std::thread> threads;
    for (std::size_t t = 0; t < same.size(); ++t) {
        threads.emplace_back([&, t] {
            for (int round = 0; round < 5; ++round) {
                same[t] = same[t] && everything(16 * t) == expected;
            }
        });
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    REQUIRE(same == std::array<bool, 3>{true, true, true});
}
