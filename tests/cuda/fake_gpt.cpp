// SPDX-License-Identifier: Apache-2.0
// The kernels of the GPT on the fake CUDA runtime: what the CPU's compute, and the rest in a few lines. Products are
// not among them: they go through the fake of cuBLASLt.
#include "cuda/fake_cuda.hpp"

#include "gpt/cuda/kernels.hpp"
#include "gpt/layers.hpp"

#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>

namespace {

/// Enqueues a function, or one of the CPU's with its arguments.
template <class Function>
void enqueue(gpt::gpu const& on, Function const& run) {
    fake::launch(on.stream, "kernel", 0, run);
}
template <class... Arguments>
void enqueue(gpt::gpu const& on, void (*kernel)(Arguments...) noexcept, Arguments... arguments) {
    enqueue(on, [=] { kernel(arguments...); });
}

} // namespace

namespace gpt::on_gpu {

void layer_norm_forward(gpu const& on, norm_shape s, float const* x, float const* gain, float const* bias, float* y,
                        float* mean, float* rstd) {
    enqueue(on, gpt::layer_norm_forward, s, x, gain, bias, y, mean, rstd);
}
void layer_norm_backward_input(gpu const& on, norm_shape s, float const* dy, float const* x, float const* gain,
                               float const* mean, float const* rstd, float* dx) {
    enqueue(on, gpt::layer_norm_backward_input, s, dy, x, gain, mean, rstd, dx);
}
void layer_norm_backward_weight(gpu const& on, norm_shape s, float const* dy, float const* x, float const* mean,
                                float const* rstd, float* dgain, float* dbias) {
    enqueue(on, gpt::layer_norm_backward_weight, s, dy, x, mean, rstd, dgain, dbias);
}
void gelu_forward(gpu const& on, std::ptrdiff_t n, float const* x, float* y) {
    enqueue(on, gpt::gelu_forward, n, x, y);
}
void gelu_backward(gpu const& on, std::ptrdiff_t n, float const* dy, float const* x, float* dx) {
    enqueue(on, gpt::gelu_backward, n, dy, x, dx);
}
void residual_add(gpu const& on, std::ptrdiff_t n, float const* a, float const* b, float* sum) {
    enqueue(on, gpt::residual_add, n, a, b, sum);
}
void embedding_forward(gpu const& on, embedding_shape s, std::int32_t const* tokens, float const* token_table,
                       float const* position_table, float* y) {
    enqueue(on, gpt::embedding_forward, s, tokens, token_table, position_table, y);
}
void embedding_backward(gpu const& on, embedding_shape s, std::int32_t const* tokens, float const* dy,
                        float* dtoken_table, float* dposition_table) {
    enqueue(on, gpt::embedding_backward, s, tokens, dy, dtoken_table, dposition_table);
}
void mean_cross_entropy_forward(gpu const& on, cross_entropy_shape s, float const* logits, std::int32_t const* targets,
                                float* log_sum_exp, float* loss) {
    enqueue(on, gpt::mean_cross_entropy_forward, s, logits, targets, log_sum_exp, loss);
}
void mean_cross_entropy_backward(gpu const& on, cross_entropy_shape s, float const* logits,
                                 std::int32_t const* targets, float const* log_sum_exp, float* dlogits) {
    enqueue(on, gpt::mean_cross_entropy_backward, s, logits, targets, log_sum_exp, dlogits);
}

void add_column_sums(gpu const& on, int rows, int columns, float const* x, float* sums) {
    enqueue(on, [=] {
        for (int row = 0; row < rows; ++row)
            for (int i = 0; i < columns; ++i) sums[i] += x[std::ptrdiff_t{row} * columns + i];
    });
}
void causal_softmax(gpu const& on, int rows, int time, float* scores) {
    enqueue(on, [=] {
        for (int row = 0; row < rows; ++row) {
            float* const begin = scores + std::ptrdiff_t{row} * time;
            float* const seen = begin + row % time + 1;
            float const highest = *std::max_element(begin, seen);
            std::transform(begin, seen, begin, [=](float each) { return std::exp(each - highest); });
            float const sum = std::accumulate(begin, seen, 0.0F);
            std::transform(begin, seen, begin, [=](float each) { return each / sum; });
            std::fill(seen, begin + time, 0.0F);
        }
    });
}
void softmax_backward(gpu const& on, int rows, int time, float scale, float const* p, float* dp) {
    enqueue(on, [=] {
        for (std::ptrdiff_t at = 0; at < std::ptrdiff_t{rows} * time; at += time) {
            float const mean = std::inner_product(p + at, p + at + time, dp + at, 0.0F);
            for (std::ptrdiff_t i = at; i < at + time; ++i) dp[i] = scale * p[i] * (dp[i] - mean);
        }
    });
}
void round_to_bf16(gpu const& on, operand const& x, float const* from, std::uint16_t* to) {
    fake::launch(on.stream, "round_to_bf16", 0, [=, rounded = in_bf16(x)] {
        std::fill_n(to, rounded.stride * x.batches, std::uint16_t{0});
        for (int batch = 0; batch < x.batches; ++batch)
            for (int column = 0; column < x.columns; ++column)
                for (int row = 0; row < x.rows; ++row)
                    to[batch * rounded.stride + std::ptrdiff_t{column} * rounded.lead + row] = __bfloat16_as_ushort(
                        __float2bfloat16_rn(from[batch * x.stride + std::ptrdiff_t{column} * x.lead + row]));
    });
}

} // namespace gpt::on_gpu
