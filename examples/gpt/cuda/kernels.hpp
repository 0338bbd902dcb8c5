// SPDX-License-Identifier: Apache-2.0
// What kernels.hpp beside computes on the CPU, on a GPU: the same arrays, shapes and results, enqueued on a stream.
// Matrix products go through cuBLASLt, all else through small kernels. The same input gives the same bits: nothing is
// added up in an order left to chance.
#pragma once

#include "gpt/cuda/products.hpp"
#include "gpt/kernels.hpp"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace gpt {

/// What matrix products compute with: 32-bit floats, or factors rounded to bf16 and summed in 32 bits. Arrays hold
/// 32-bit floats either way, the parameters among them. A rounded copy lives as long as the product, a weight's until
/// the weight changes.
enum class precision : bool { f32, bf16 };

/// Where to enqueue, and memory to work with while the call's kernels run: for cuBLASLt, and in bf16 `bytes_in_bf16` of
/// the call's shape more.
struct gpu {
    cudaStream_t stream;
    precision products;
    void* workspace;
    std::size_t workspace_bytes;
    std::uint16_t const* weight = nullptr; ///< a linear map's, rounded already; if it is
};

} // namespace gpt

/// Each throws cublas_error, or leaves a refused launch to cudaGetLastError.
namespace gpt::on_gpu {

void linear_forward(gpu const& on, linear_shape s, float const* x, float const* weight, float const* bias, float* y);
void linear_backward_input(gpu const& on, linear_shape s, float const* dy, float const* weight, float* dx);
void linear_backward_weight(gpu const& on, linear_shape s, float const* x, float const* dy, float* dweight,
                            float* dbias);
void layer_norm_forward(gpu const& on, norm_shape s, float const* x, float const* gain, float const* bias, float* y,
                        float* mean, float* rstd);
void layer_norm_backward_input(gpu const& on, norm_shape s, float const* dy, float const* x, float const* gain,
                               float const* mean, float const* rstd, float* dx);
void layer_norm_backward_weight(gpu const& on, norm_shape s, float const* dy, float const* x, float const* mean,
                                float const* rstd, float* dgain, float* dbias);
void attention_forward(gpu const& on, attention_shape s, float const* qkv, float* y, float* probabilities);
/// `scratch` [heads, time, time].
void attention_backward(gpu const& on, attention_shape s, float const* dy, float const* qkv,
                        float const* probabilities, float* dqkv, float* scratch);
void gelu_forward(gpu const& on, std::ptrdiff_t n, float const* x, float* y);
void gelu_backward(gpu const& on, std::ptrdiff_t n, float const* dy, float const* x, float* dx);
void residual_add(gpu const& on, std::ptrdiff_t n, float const* a, float const* b, float* sum);
void embedding_forward(gpu const& on, embedding_shape s, std::int32_t const* tokens, float const* token_table,
                       float const* position_table, float* y);
void embedding_backward(gpu const& on, embedding_shape s, std::int32_t const* tokens, float const* dy,
                        float* dtoken_table, float* dposition_table);
/// The mean over the targets that count, times `s.scale` going backward.
void mean_cross_entropy_forward(gpu const& on, cross_entropy_shape s, float const* logits, std::int32_t const* targets,
                                float* log_sum_exp, float* loss);
void mean_cross_entropy_backward(gpu const& on, cross_entropy_shape s, float const* logits,
                                 std::int32_t const* targets, float const* log_sum_exp, float* dlogits);

/// The kernels that those are made of besides products.
void add_column_sums(gpu const& on, int rows, int columns, float const* x, float* sums);
/// Rows of `time` scores become probabilities: row r may look at columns 0 to r % time. In place.
void causal_softmax(gpu const& on, int rows, int time, float* scores);
/// dscores = scale * p * (dp - sum(dp * p)) for each row of `time`; in place of dp.
void softmax_backward(gpu const& on, int rows, int time, float scale, float const* p, float* dp);

/// Rounds a factor of a product, each number to the nearest of bf16, ties to even; `to` as in_bf16 lays it out, with
/// zeros between columns.
void round_to_bf16(gpu const& on, operand const& x, float const* from, std::uint16_t* to);

} // namespace gpt::on_gpu
