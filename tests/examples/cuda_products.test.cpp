// SPDX-License-Identifier: Apache-2.0
// The matrix products of the GPT as they are described to the GPU's BLAS, multiplied out here and compared with what
// the CPU's kernels compute.
#include "gpt/cuda/products.hpp"

#include "catch.hpp"
#include "reference.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace {

using reference::floats;
using reference::random_floats;

/// What BLAS does with column-major arrays.
void multiply(gpt::product const& p, float const* a, float const* b, float* d) {
    for (int batch = 0; batch < p.batches; ++batch, a += p.stride_a, b += p.stride_b, d += p.stride_d) {
        for (int j = 0; j < p.n; ++j) {
            for (int i = 0; i < p.m; ++i) {
                double sum = 0;
                for (int l = 0; l < p.k; ++l) {
                    float const x = p.transpose_a ? a[l + i * p.lead_a] : a[i + l * p.lead_a];
                    float const y = p.transpose_b ? b[j + l * p.lead_b] : b[l + j * p.lead_b];
                    sum += static_cast<double>(x) * y;
                }
                float& to = d[i + j * p.lead_d];
                to = p.alpha * static_cast<float>(sum) + (p.beta == 0 ? 0 : p.beta * to);
            }
        }
    }
}

void require_near(floats const& found, floats const& expected) {
    REQUIRE(found.size() == expected.size());
    for (std::size_t i = 0; i < found.size(); ++i) REQUIRE(found[i] == Approx(expected[i]).margin(1e-5));
}

/// What the GPU's kernels do between the products.
void causal_softmax(int rows, int time, floats& scores) {
    for (int row = 0; row < rows; ++row) {
        auto const begin = scores.begin() + row * time, seen = begin + row % time + 1;
        float const highest = *std::max_element(begin, seen);
        float sum = 0;
        std::for_each(begin, seen, [&](float& each) { sum += each = std::exp(each - highest); });
        std::for_each(begin, seen, [&](float& each) { each /= sum; });
        std::fill(seen, begin + time, 0.0f);
    }
}
void softmax_backward(int rows, int time, float scale, float const* p, float* dp) {
    for (int row = 0; row < rows; ++row, p += time, dp += time) {
        float sum = 0;
        for (int i = 0; i < time; ++i) sum += p[i] * dp[i];
        for (int i = 0; i < time; ++i) dp[i] = scale * p[i] * (dp[i] - sum);
    }
}

} // namespace

TEST_CASE("the products of a linear map, as a GPU is told them, are those of the CPU") {
    gpt::linear_shape const s{5, 3, 4};
    floats const x = random_floats(15, 1), weight = random_floats(12, 2), dy = random_floats(20, 3);
    floats y(20), y_cpu(20), dx(15), dx_cpu(15);
    floats dw = random_floats(12, 4), dw_cpu = dw;
    multiply(gpt::product_of_linear(s), weight.data(), x.data(), y.data());
    gpt::linear_forward(s, x.data(), weight.data(), nullptr, y_cpu.data());
    require_near(y, y_cpu);
    multiply(gpt::product_of_linear_input(s), weight.data(), dy.data(), dx.data());
    gpt::linear_backward_input(s, dy.data(), weight.data(), dx_cpu.data());
    require_near(dx, dx_cpu);
    multiply(gpt::product_of_linear_weight(s), x.data(), dy.data(), dw.data());
    gpt::linear_backward_weight(s, x.data(), dy.data(), dw_cpu.data(), nullptr);
    require_near(dw, dw_cpu);
}

TEST_CASE("the products of attention, as a GPU is told them, are those of the CPU, forward and backward") {
    gpt::attention_shape const s = GENERATE(gpt::attention_shape{1, 4, 6, 2}, gpt::attention_shape{1, 5, 3, 1});
    auto const packed = gpt::head_layout::packed(s), plain = gpt::head_layout::plain(s);
    int const rows = s.time * s.channels, scores = s.heads * s.time * s.time;
    floats const qkv = random_floats(3 * rows, 1), dy = random_floats(rows, 2);
    float const *const q = qkv.data(), *const k = q + s.channels, *const v = k + s.channels;

    floats p(static_cast<std::size_t>(scores)), p_cpu = p, y(static_cast<std::size_t>(rows)), y_cpu = y;
    multiply(gpt::product_of_rows(s, packed, packed, gpt::score_scale(s)), k, q, p.data());
    causal_softmax(s.heads * s.time, s.time, p);
    multiply(gpt::product_of_weights(s, packed, plain, false), v, p.data(), y.data());
    gpt::attention_forward(s, q, y_cpu.data(), p_cpu.data());
    require_near(y, y_cpu);

    floats dp(p.size()), d(qkv.size()), d_cpu = d, scratch(static_cast<std::size_t>(s.scratch()));
    multiply(gpt::product_of_rows(s, plain, packed, 1), v, dy.data(), dp.data());
    multiply(gpt::product_of_weights(s, plain, packed, true), dy.data(), p.data(), d.data() + 2 * s.channels);
    softmax_backward(s.heads * s.time, s.time, gpt::score_scale(s), p.data(), dp.data());
    multiply(gpt::product_of_weights(s, packed, packed, false), k, dp.data(), d.data());
    multiply(gpt::product_of_weights(s, packed, packed, true), q, dp.data(), d.data() + s.channels);
    gpt::attention_backward(s, dy.data(), q, p_cpu.data(), d_cpu.data(), scratch.data());
    require_near(d, d_cpu);
}
