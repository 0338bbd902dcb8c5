// SPDX-License-Identifier: Apache-2.0
// Forward and backward of everything a small GPT computes, on the CPU: plain functions on raw row-major float arrays,
// matrix products through a BLAS. Input and weight gradients are separate calls, because zero-bubble schedules run
// them apart.
//
// Common to all: nothing is allocated, no thread is started, arrays may not overlap unless said otherwise. The same
// input gives the same bits from call to call, whatever the address and the calling thread, provided the BLAS runs on
// the calling thread alone (`one_blas_thread`). Gradients of parameters are ADDED to what the array holds, gradients
// of inputs overwrite. B sequences of T tokens with C channels are `rows` = B * T rows of C floats.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gpt {

/// Makes an OpenBLAS compute every product on the thread that calls it, so that each rank has one core and the same
/// bits. Returns false when the program is linked to another BLAS; its own variable (MKL_NUM_THREADS,
/// BLIS_NUM_THREADS) then does it. Process-wide; call it once before the first product.
bool one_blas_thread() noexcept;

/// y [rows, out] = x [rows, in] * transpose(weight [out, in]) + bias [out].
struct linear_shape {
    int rows;
    int in;
    int out;
};

/// `bias` may be null, here and in `linear_backward_weight`. The output head is such a layer: its weight is the token
/// table of the embedding (tied), [vocabulary, C], its result the logits.
void linear_forward(linear_shape shape, float const* x, float const* weight, float const* bias, float* y) noexcept;
void linear_backward_input(linear_shape shape, float const* dy, float const* weight, float* dx) noexcept;
void linear_backward_weight(linear_shape shape, float const* x, float const* dy, float* dweight, float* dbias) noexcept;

/// y = (x - mean) / sqrt(variance + 1e-5) * gain + bias over each row of `width`; Ba, Kiros, Hinton 2016.
struct norm_shape {
    int rows;
    int width;
};

/// Saves `mean` [rows] and `rstd` [rows] (one over the standard deviation) for both backward calls.
void layer_norm_forward(norm_shape shape, float const* x, float const* gain, float const* bias, float* y, float* mean,
                        float* rstd) noexcept;
void layer_norm_backward_input(norm_shape shape, float const* dy, float const* x, float const* gain, float const* mean,
                               float const* rstd, float* dx) noexcept;
void layer_norm_backward_weight(norm_shape shape, float const* dy, float const* x, float const* mean, float const* rstd,
                                float* dgain, float* dbias) noexcept;

/// Causal self-attention between its two linear layers: softmax(Q transpose(K) / sqrt(C / heads)) V for each head.
struct attention_shape {
    int batch;
    int time;
    int channels; ///< a multiple of `heads`
    int heads;

    /// Floats in the saved probabilities, [batch, heads, time, time].
    [[nodiscard]] constexpr std::ptrdiff_t probabilities() const noexcept {
        return std::ptrdiff_t{batch} * heads * time * time;
    }
    /// Floats of working memory a backward needs, [time, time].
    [[nodiscard]] constexpr std::ptrdiff_t scratch() const noexcept { return std::ptrdiff_t{time} * time; }
};

/// `qkv` [batch, time, 3 * channels] holds queries, keys and values side by side, head h in columns h * channels /
/// heads of each; y [batch, time, channels]. `probabilities` is written for the backward call.
void attention_forward(attention_shape shape, float const* qkv, float* y, float* probabilities) noexcept;
void attention_backward(attention_shape shape, float const* dy, float const* qkv, float const* probabilities,
                        float* dqkv, float* scratch) noexcept;

/// y = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))); Hendrycks and Gimpel 2016. `y` may be `x`.
void gelu_forward(std::ptrdiff_t n, float const* x, float* y) noexcept;
/// `dx` may be `dy`.
void gelu_backward(std::ptrdiff_t n, float const* dy, float const* x, float* dx) noexcept;

/// sum = a + b; `sum` may be either. It is its own backward: both branches receive the gradient of the sum.
void residual_add(std::ptrdiff_t n, float const* a, float const* b, float* sum) noexcept;

/// The sum of a row of the token table [vocabulary, channels] and a row of the position table [at least time,
/// channels].
struct embedding_shape {
    int batch;
    int time;
    int channels;
    int vocabulary = 0; ///< rows of the token table; who adds up rows by token, as a GPU does, needs it
};

/// `tokens` [batch, time], each below the vocabulary; y [batch, time, channels].
void embedding_forward(embedding_shape shape, std::int32_t const* tokens, float const* token_table,
                       float const* position_table, float* y) noexcept;
void embedding_backward(embedding_shape shape, std::int32_t const* tokens, float const* dy, float* dtoken_table,
                        float* dposition_table) noexcept;

/// `target` of a position that counts neither in the loss nor in a gradient.
inline constexpr std::int32_t ignored = -1;

struct cross_entropy_shape {
    int rows;
    int vocabulary;
    float scale; ///< factor of every position, usually one over the number of positions in the whole step
};

/// Returns the sum over the positions of scale * -log softmax(logits)[target], added up in double precision. Saves
/// `log_sum_exp` [rows] for the backward call; `targets` [rows] below the vocabulary, or `ignored`.
[[nodiscard]] double cross_entropy_forward(cross_entropy_shape shape, float const* logits, std::int32_t const* targets,
                                           float* log_sum_exp) noexcept;
/// `dlogits` may be `logits`.
void cross_entropy_backward(cross_entropy_shape shape, float const* logits, std::int32_t const* targets,
                            float const* log_sum_exp, float* dlogits) noexcept;

} // namespace gpt
