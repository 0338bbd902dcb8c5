// SPDX-License-Identifier: Apache-2.0
#include "kernels.hpp"

#include "vector_math.hpp"

#include <cblas.h>

#include <cmath>

extern "C" [[gnu::weak]] void openblas_set_num_threads(int threads);

namespace gpt {

namespace {

using index = std::ptrdiff_t;

/// A row-major matrix inside a larger one, `stride` floats from row to row.
struct matrix {
    float const* data;
    int stride;
    CBLAS_TRANSPOSE transposed = CblasNoTrans;
};

matrix transpose(matrix m) noexcept { return {m.data, m.stride, CblasTrans}; }

/// c [rows, columns] = scale * a [rows, inner] * b [inner, columns] + keep * c.
void multiply(int rows, int columns, int inner, float scale, matrix a, matrix b, float keep, float* c,
              int stride) noexcept {
    cblas_sgemm(CblasRowMajor, a.transposed, b.transposed, rows, columns, inner, scale, a.data, a.stride, b.data,
                b.stride, keep, c, stride);
}

void add_rows(int rows, int width, float const* x, float* total) noexcept {
    for (int r = 0; r < rows; ++r, x += width) {
        for (int c = 0; c < width; ++c) {
            total[c] += x[c];
        }
    }
}

/// Turns scores [time, time] into probabilities: row t over the columns 0 to t, zero behind.
void causal_softmax(int time, float* scores) noexcept {
    for (int t = 0; t < time; ++t, scores += time) {
        float const top = greatest(t + 1, scores);
        for (int s = 0; s <= t; ++s) {
            scores[s] = exp(scores[s] - top);
        }
        float const inverse = 1.0f / sum(t + 1, [=](int s) { return scores[s]; });
        for (int s = 0; s <= t; ++s) {
            scores[s] *= inverse;
        }
        for (int s = t + 1; s < time; ++s) {
            scores[s] = 0.0f;
        }
    }
}

/// Turns the gradient of the probabilities into that of the scores. Behind the diagonal the probabilities are zero,
/// and so is the result.
void softmax_backward(int time, float const* probabilities, float* gradient) noexcept {
    for (int t = 0; t < time; ++t, probabilities += time, gradient += time) {
        float const dot = sum(t + 1, [=](int s) { return probabilities[s] * gradient[s]; });
        for (int s = 0; s < time; ++s) {
            gradient[s] = probabilities[s] * (gradient[s] - dot);
        }
    }
}

/// Where head `head` of sequence `sequence` begins in each array, and the distances in them.
struct head_view {
    int size;
    int packed_stride;
    index packed;
    index output;
    index square;
    float scale;

    head_view(attention_shape s, int sequence, int head) noexcept
        : size(s.channels / s.heads),
          packed_stride(3 * s.channels),
          packed(index{sequence} * s.time * packed_stride + index{head} * size),
          output(index{sequence} * s.time * s.channels + index{head} * size),
          square((index{sequence} * s.heads + head) * s.time * s.time),
          scale(1.0f / std::sqrt(static_cast<float>(size))) {}
};

/// gelu(x) = x * sigmoid(z) with z = 2 sqrt(2 / pi) (x + 0.044715 x^3), since (1 + tanh(z / 2)) / 2 = sigmoid(z).
constexpr float gelu_linear = 1.5957691216f;
constexpr float gelu_cubic = gelu_linear * 0.044715f;

inline float gelu_gate(float x) noexcept {
    float const z = x * (gelu_linear + gelu_cubic * x * x);
    float const e = exp(-std::abs(z));
    return (z < 0.0f ? e : 1.0f) / (1.0f + e);
}

} // namespace

bool one_blas_thread() noexcept {
    if (openblas_set_num_threads == nullptr) {
        return false;
    }
    openblas_set_num_threads(1);
    return true;
}

void linear_forward(linear_shape s, float const* x, float const* weight, float const* bias, float* y) noexcept {
    if (bias != nullptr) {
        for (int r = 0; r < s.rows; ++r) {
            float* const row = y + index{r} * s.out;
            for (int c = 0; c < s.out; ++c) {
                row[c] = bias[c];
            }
        }
    }
    multiply(s.rows, s.out, s.in, 1.0f, {x, s.in}, transpose({weight, s.in}), bias != nullptr ? 1.0f : 0.0f, y, s.out);
}

void linear_backward_input(linear_shape s, float const* dy, float const* weight, float* dx) noexcept {
    multiply(s.rows, s.in, s.out, 1.0f, {dy, s.out}, {weight, s.in}, 0.0f, dx, s.in);
}

void linear_backward_weight(linear_shape s, float const* x, float const* dy, float* dweight, float* dbias) noexcept {
    multiply(s.out, s.in, s.rows, 1.0f, transpose({dy, s.out}), {x, s.in}, 1.0f, dweight, s.in);
    if (dbias != nullptr) {
        add_rows(s.rows, s.out, dy, dbias);
    }
}

void layer_norm_forward(norm_shape s, float const* x, float const* gain, float const* bias, float* y, float* mean,
                        float* rstd) noexcept {
    float const inverse = 1.0f / static_cast<float>(s.width);
    for (int r = 0; r < s.rows; ++r, x += s.width, y += s.width) {
        float const m = sum(s.width, [=](int c) { return x[c]; }) * inverse;
        float const variance = sum(s.width, [=](int c) { return (x[c] - m) * (x[c] - m); }) * inverse;
        float const d = 1.0f / std::sqrt(variance + 1e-5f);
        for (int c = 0; c < s.width; ++c) {
            y[c] = (x[c] - m) * d * gain[c] + bias[c];
        }
        mean[r] = m;
        rstd[r] = d;
    }
}

void layer_norm_backward_input(norm_shape s, float const* dy, float const* x, float const* gain, float const* mean,
                               float const* rstd, float* dx) noexcept {
    float const inverse = 1.0f / static_cast<float>(s.width);
    for (int r = 0; r < s.rows; ++r, x += s.width, dy += s.width, dx += s.width) {
        float const m = mean[r];
        float const d = rstd[r];
        float const average = sum(s.width, [=](int c) { return dy[c] * gain[c]; }) * inverse;
        float const along_x = sum(s.width, [=](int c) { return dy[c] * gain[c] * ((x[c] - m) * d); }) * inverse;
        for (int c = 0; c < s.width; ++c) {
            dx[c] = d * (dy[c] * gain[c] - average - (x[c] - m) * d * along_x);
        }
    }
}

void layer_norm_backward_weight(norm_shape s, float const* dy, float const* x, float const* mean, float const* rstd,
                                float* dgain, float* dbias) noexcept {
    add_rows(s.rows, s.width, dy, dbias);
    for (int r = 0; r < s.rows; ++r, x += s.width, dy += s.width) {
        float const m = mean[r];
        float const d = rstd[r];
        for (int c = 0; c < s.width; ++c) {
            dgain[c] += dy[c] * ((x[c] - m) * d);
        }
    }
}

void attention_forward(attention_shape s, float const* qkv, float* y, float* probabilities) noexcept {
    for (int b = 0; b < s.batch; ++b) {
        for (int h = 0; h < s.heads; ++h) {
            head_view const v{s, b, h};
            matrix const query{qkv + v.packed, v.packed_stride};
            matrix const key{query.data + s.channels, v.packed_stride};
            matrix const value{key.data + s.channels, v.packed_stride};
            float* const p = probabilities + v.square;
            multiply(s.time, s.time, v.size, v.scale, query, transpose(key), 0.0f, p, s.time);
            causal_softmax(s.time, p);
            multiply(s.time, v.size, s.time, 1.0f, {p, s.time}, value, 0.0f, y + v.output, s.channels);
        }
    }
}

void attention_backward(attention_shape s, float const* dy, float const* qkv, float const* probabilities, float* dqkv,
                        float* scratch) noexcept {
    for (int b = 0; b < s.batch; ++b) {
        for (int h = 0; h < s.heads; ++h) {
            head_view const v{s, b, h};
            matrix const query{qkv + v.packed, v.packed_stride};
            matrix const key{query.data + s.channels, v.packed_stride};
            matrix const value{key.data + s.channels, v.packed_stride};
            matrix const p{probabilities + v.square, s.time};
            matrix const dout{dy + v.output, s.channels};
            matrix const dscores{scratch, s.time};
            float* const dquery = dqkv + v.packed;
            float* const dkey = dquery + s.channels;
            float* const dvalue = dkey + s.channels;
            multiply(s.time, v.size, s.time, 1.0f, transpose(p), dout, 0.0f, dvalue, v.packed_stride);
            multiply(s.time, s.time, v.size, 1.0f, dout, transpose(value), 0.0f, scratch, s.time);
            softmax_backward(s.time, p.data, scratch);
            multiply(s.time, v.size, s.time, v.scale, dscores, key, 0.0f, dquery, v.packed_stride);
            multiply(s.time, v.size, s.time, v.scale, transpose(dscores), query, 0.0f, dkey, v.packed_stride);
        }
    }
}

void gelu_forward(index n, float const* x, float* y) noexcept {
    for (index i = 0; i < n; ++i) {
        y[i] = x[i] * gelu_gate(x[i]);
    }
}

void gelu_backward(index n, float const* dy, float const* x, float* dx) noexcept {
    for (index i = 0; i < n; ++i) {
        float const gate = gelu_gate(x[i]);
        float const slope = gelu_linear + 3.0f * gelu_cubic * x[i] * x[i];
        dx[i] = dy[i] * (gate + x[i] * slope * gate * (1.0f - gate));
    }
}

void residual_add(index n, float const* a, float const* b, float* sum) noexcept {
    for (index i = 0; i < n; ++i) {
        sum[i] = a[i] + b[i];
    }
}

void embedding_forward(embedding_shape s, std::int32_t const* tokens, float const* token_table,
                       float const* position_table, float* y) noexcept {
    for (int r = 0; r < s.batch * s.time; ++r, y += s.channels) {
        residual_add(s.channels, token_table + index{tokens[r]} * s.channels,
                     position_table + index{r % s.time} * s.channels, y);
    }
}

void embedding_backward(embedding_shape s, std::int32_t const* tokens, float const* dy, float* dtoken_table,
                        float* dposition_table) noexcept {
    for (int r = 0; r < s.batch * s.time; ++r, dy += s.channels) {
        add_rows(1, s.channels, dy, dtoken_table + index{tokens[r]} * s.channels);
        add_rows(1, s.channels, dy, dposition_table + index{r % s.time} * s.channels);
    }
}

double cross_entropy_forward(cross_entropy_shape s, float const* logits, std::int32_t const* targets,
                             float* log_sum_exp) noexcept {
    double loss = 0.0;
    for (int r = 0; r < s.rows; ++r, logits += s.vocabulary) {
        float const top = greatest(s.vocabulary, logits);
        float const total = sum(s.vocabulary, [=](int c) { return exp(logits[c] - top); });
        log_sum_exp[r] = top + std::log(total);
        if (targets[r] != ignored) {
            loss += double{s.scale} * (double{log_sum_exp[r]} - double{logits[targets[r]]});
        }
    }
    return loss;
}

void cross_entropy_backward(cross_entropy_shape s, float const* logits, std::int32_t const* targets,
                            float const* log_sum_exp, float* dlogits) noexcept {
    for (int r = 0; r < s.rows; ++r, logits += s.vocabulary, dlogits += s.vocabulary) {
        float const scale = targets[r] == ignored ? 0.0f : s.scale;
        float const shift = log_sum_exp[r];
        for (int c = 0; c < s.vocabulary; ++c) {
            dlogits[c] = scale * exp(logits[c] - shift);
        }
        if (targets[r] != ignored) {
            dlogits[targets[r]] -= scale;
        }
    }
}

} // namespace gpt
