// SPDX-License-Identifier: Apache-2.0
#include "gpt/cuda/kernels.hpp"

#include <cuda_bf16.h>

namespace gpt::on_gpu {
namespace {

constexpr int threads = 256;

/// Enough blocks of `threads` for n items that a kernel walks through in strides.
auto blocks_for(std::ptrdiff_t n) -> unsigned {
    std::ptrdiff_t const wanted = (n + threads - 1) / threads;
    return static_cast<unsigned>(wanted < 1 ? 1 : wanted > 4096 ? 4096 : wanted);
}

__device__ auto first() -> std::ptrdiff_t { return std::ptrdiff_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ auto stride() -> std::ptrdiff_t { return std::ptrdiff_t{gridDim.x} * blockDim.x; }

struct plus {
    template <class T>
    __device__ static auto of(T a, T b) -> T { return a + b; }
};
struct larger {
    __device__ static auto of(float a, float b) -> float { return fmaxf(a, b); }
};

/// Every thread of the block gets the fold of all threads' values, always in the same order.
template <class Operation, class T>
__device__ auto folded(T value) -> T {
    __shared__ T values[threads];
    __syncthreads(); // an earlier fold may still be read
    values[threadIdx.x] = value;
    for (int half = threads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) values[threadIdx.x] = Operation::of(values[threadIdx.x], values[threadIdx.x + half]);
    }
    __syncthreads();
    return values[0];
}

__global__ void norm_forward(int width, float const* x, float const* gain, float const* bias, float* y, float* mean,
                             float* rstd) {
    std::ptrdiff_t const row = std::ptrdiff_t{blockIdx.x} * width;
    float sum = 0;
    for (int i = threadIdx.x; i < width; i += threads) sum += x[row + i];
    float const average = folded<plus>(sum) / width;
    float squares = 0;
    for (int i = threadIdx.x; i < width; i += threads) squares += (x[row + i] - average) * (x[row + i] - average);
    float const inverse = 1.0f / sqrtf(folded<plus>(squares) / width + 1e-5f);
    for (int i = threadIdx.x; i < width; i += threads)
        y[row + i] = (x[row + i] - average) * inverse * gain[i] + bias[i];
    if (threadIdx.x == 0) {
        mean[blockIdx.x] = average;
        rstd[blockIdx.x] = inverse;
    }
}

__global__ void norm_backward_input(int width, float const* dy, float const* x, float const* gain, float const* mean,
                                    float const* rstd, float* dx) {
    std::ptrdiff_t const row = std::ptrdiff_t{blockIdx.x} * width;
    float const average = mean[blockIdx.x], inverse = rstd[blockIdx.x];
    float sum = 0, product = 0;
    for (int i = threadIdx.x; i < width; i += threads) {
        float const g = dy[row + i] * gain[i];
        sum += g;
        product += g * (x[row + i] - average) * inverse;
    }
    float const mean_g = folded<plus>(sum) / width;
    float const mean_product = folded<plus>(product) / width;
    for (int i = threadIdx.x; i < width; i += threads) {
        float const normal = (x[row + i] - average) * inverse;
        dx[row + i] = inverse * (dy[row + i] * gain[i] - mean_g - normal * mean_product);
    }
}

/// Sums over rows, 32 columns a block, eight threads to a column.
template <class Term>
__device__ void add_columns(int rows, int columns, Term term, float* sums) {
    __shared__ float part[8][33];
    int const lane = threadIdx.x % 32, layer = threadIdx.x / 32;
    int const column = blockIdx.x * 32 + lane;
    float sum = 0;
    if (column < columns)
        for (int row = layer; row < rows; row += 8) sum += term(row, column);
    __syncthreads();
    part[layer][lane] = sum;
    __syncthreads();
    if (layer != 0 || column >= columns) return;
    for (int i = 1; i < 8; ++i) sum += part[i][lane];
    sums[column] += sum;
}

__global__ void column_sums(int rows, int columns, float const* x, float* sums) {
    add_columns(rows, columns, [=](int row, int column) { return x[std::ptrdiff_t{row} * columns + column]; }, sums);
}
__global__ void norm_backward_gain(int rows, int width, float const* dy, float const* x, float const* mean,
                                   float const* rstd, float* dgain) {
    auto const term = [=](int row, int column) {
        std::ptrdiff_t const at = std::ptrdiff_t{row} * width + column;
        return dy[at] * (x[at] - mean[row]) * rstd[row];
    };
    add_columns(rows, width, term, dgain);
}

__global__ void softmax_rows(int time, float* scores) {
    float* const row = scores + std::ptrdiff_t{blockIdx.x} * time;
    int const seen = static_cast<int>(blockIdx.x % time) + 1;
    float highest = -INFINITY;
    for (int i = threadIdx.x; i < seen; i += threads) highest = fmaxf(highest, row[i]);
    highest = folded<larger>(highest);
    float sum = 0;
    for (int i = threadIdx.x; i < seen; i += threads) sum += row[i] = expf(row[i] - highest);
    float const share = 1.0f / folded<plus>(sum);
    for (int i = threadIdx.x; i < time; i += threads) row[i] = i < seen ? row[i] * share : 0.0f;
}
__global__ void softmax_backward_rows(int time, float scale, float const* p, float* dp) {
    std::ptrdiff_t const row = std::ptrdiff_t{blockIdx.x} * time;
    float sum = 0;
    for (int i = threadIdx.x; i < time; i += threads) sum += p[row + i] * dp[row + i];
    float const mean = folded<plus>(sum);
    for (int i = threadIdx.x; i < time; i += threads) dp[row + i] = scale * p[row + i] * (dp[row + i] - mean);
}

constexpr float root = 0.7978845608028654f; // sqrt(2 / pi)

__global__ void gelu(std::ptrdiff_t n, float const* x, float* y) {
    for (std::ptrdiff_t i = first(); i < n; i += stride()) {
        float const v = x[i];
        y[i] = 0.5f * v * (1.0f + tanhf(root * (v + 0.044715f * v * v * v)));
    }
}
__global__ void gelu_slope(std::ptrdiff_t n, float const* dy, float const* x, float* dx) {
    for (std::ptrdiff_t i = first(); i < n; i += stride()) {
        float const v = x[i];
        float const t = tanhf(root * (v + 0.044715f * v * v * v));
        float const inner = root * (1.0f + 3 * 0.044715f * v * v);
        dx[i] = dy[i] * (0.5f * (1.0f + t) + 0.5f * v * (1.0f - t * t) * inner);
    }
}
__global__ void add(std::ptrdiff_t n, float const* a, float const* b, float* sum) {
    for (std::ptrdiff_t i = first(); i < n; i += stride()) sum[i] = a[i] + b[i];
}

__global__ void embed(embedding_shape s, std::int32_t const* tokens, float const* token_table,
                      float const* position_table, float* y) {
    std::ptrdiff_t const n = std::ptrdiff_t{s.batch} * s.time * s.channels;
    for (std::ptrdiff_t i = first(); i < n; i += stride()) {
        std::ptrdiff_t const row = i / s.channels, channel = i % s.channels;
        y[i] = token_table[tokens[row] * std::ptrdiff_t{s.channels} + channel] +
               position_table[row % s.time * s.channels + channel];
    }
}
/// A block for each token of the vocabulary adds up the rows that hold it, in their order.
__global__ void embed_backward_tokens(embedding_shape s, std::int32_t const* tokens, float const* dy, float* table) {
    int const rows = s.batch * s.time;
    for (int channel = threadIdx.x; channel < s.channels; channel += threads) {
        float sum = 0;
        for (int row = 0; row < rows; ++row)
            if (tokens[row] == static_cast<int>(blockIdx.x)) sum += dy[std::ptrdiff_t{row} * s.channels + channel];
        table[std::ptrdiff_t{blockIdx.x} * s.channels + channel] += sum;
    }
}
__global__ void embed_backward_positions(embedding_shape s, float const* dy, float* table) {
    std::ptrdiff_t const n = std::ptrdiff_t{s.time} * s.channels;
    for (std::ptrdiff_t i = first(); i < n; i += stride()) {
        float sum = 0;
        for (int b = 0; b < s.batch; ++b) sum += dy[b * n + i];
        table[i] += sum;
    }
}

__global__ void log_sums(int vocabulary, float const* logits, float* log_sum_exp) {
    float const* const row = logits + std::ptrdiff_t{blockIdx.x} * vocabulary;
    float highest = -INFINITY;
    for (int i = threadIdx.x; i < vocabulary; i += threads) highest = fmaxf(highest, row[i]);
    highest = folded<larger>(highest);
    float sum = 0;
    for (int i = threadIdx.x; i < vocabulary; i += threads) sum += expf(row[i] - highest);
    sum = folded<plus>(sum);
    if (threadIdx.x == 0) log_sum_exp[blockIdx.x] = highest + logf(sum);
}
/// How many targets count, at least 1; the same for every thread of the block.
__device__ auto counted(int rows, std::int32_t const* targets) -> int {
    int count = 0;
    for (int row = threadIdx.x; row < rows; row += threads) count += targets[row] != ignored;
    count = folded<plus>(count);
    return count < 1 ? 1 : count;
}
__global__ void mean_loss(cross_entropy_shape s, float const* logits, std::int32_t const* targets,
                          float const* log_sum_exp, float* loss) {
    double sum = 0;
    for (int row = threadIdx.x; row < s.rows; row += threads)
        if (targets[row] != ignored)
            sum += log_sum_exp[row] - logits[std::ptrdiff_t{row} * s.vocabulary + targets[row]];
    sum = folded<plus>(sum);
    int const count = counted(s.rows, targets);
    if (threadIdx.x == 0) *loss = static_cast<float>(sum / count);
}
__global__ void loss_slope(cross_entropy_shape s, float const* logits, std::int32_t const* targets,
                           float const* log_sum_exp, float* dlogits) {
    float const share = s.scale / static_cast<float>(counted(s.rows, targets));
    std::ptrdiff_t const row = std::ptrdiff_t{blockIdx.x} * s.vocabulary;
    int const target = targets[blockIdx.x];
    for (int i = threadIdx.x; i < s.vocabulary; i += threads) {
        float const p = expf(logits[row + i] - log_sum_exp[blockIdx.x]);
        dlogits[row + i] = target == ignored ? 0.0f : share * (p - (i == target ? 1.0f : 0.0f));
    }
}

/// 32 threads a column, eight columns a block at a time.
__global__ void round_columns(operand x, operand rounded, float const* from, std::uint16_t* to) {
    int const columns = x.columns * x.batches;
    for (int column = blockIdx.x * blockDim.y + threadIdx.y; column < columns; column += gridDim.x * blockDim.y) {
        float const* const values = from + column / x.columns * x.stride + std::ptrdiff_t{column % x.columns} * x.lead;
        std::uint16_t* const copies = to + std::ptrdiff_t{column} * rounded.lead;
        for (int row = threadIdx.x; row < rounded.lead; row += blockDim.x)
            copies[row] = row < x.rows ? __bfloat16_as_ushort(__float2bfloat16_rn(values[row])) : std::uint16_t{0};
    }
}

} // namespace

void layer_norm_forward(gpu const& on, norm_shape s, float const* x, float const* gain, float const* bias, float* y,
                        float* mean, float* rstd) {
    norm_forward<<<s.rows, threads, 0, on.stream>>>(s.width, x, gain, bias, y, mean, rstd);
}
void layer_norm_backward_input(gpu const& on, norm_shape s, float const* dy, float const* x, float const* gain,
                               float const* mean, float const* rstd, float* dx) {
    norm_backward_input<<<s.rows, threads, 0, on.stream>>>(s.width, dy, x, gain, mean, rstd, dx);
}
void layer_norm_backward_weight(gpu const& on, norm_shape s, float const* dy, float const* x, float const* mean,
                                float const* rstd, float* dgain, float* dbias) {
    norm_backward_gain<<<(s.width + 31) / 32, threads, 0, on.stream>>>(s.rows, s.width, dy, x, mean, rstd, dgain);
    add_column_sums(on, s.rows, s.width, dy, dbias);
}
void gelu_forward(gpu const& on, std::ptrdiff_t n, float const* x, float* y) {
    gelu<<<blocks_for(n), threads, 0, on.stream>>>(n, x, y);
}
void gelu_backward(gpu const& on, std::ptrdiff_t n, float const* dy, float const* x, float* dx) {
    gelu_slope<<<blocks_for(n), threads, 0, on.stream>>>(n, dy, x, dx);
}
void residual_add(gpu const& on, std::ptrdiff_t n, float const* a, float const* b, float* sum) {
    add<<<blocks_for(n), threads, 0, on.stream>>>(n, a, b, sum);
}
void embedding_forward(gpu const& on, embedding_shape s, std::int32_t const* tokens, float const* token_table,
                       float const* position_table, float* y) {
    embed<<<blocks_for(std::ptrdiff_t{s.batch} * s.time * s.channels), threads, 0, on.stream>>>(
        s, tokens, token_table, position_table, y);
}
void embedding_backward(gpu const& on, embedding_shape s, std::int32_t const* tokens, float const* dy,
                        float* dtoken_table, float* dposition_table) {
    embed_backward_tokens<<<s.vocabulary, threads, 0, on.stream>>>(s, tokens, dy, dtoken_table);
    embed_backward_positions<<<blocks_for(std::ptrdiff_t{s.time} * s.channels), threads, 0, on.stream>>>(
        s, dy, dposition_table);
}
void mean_cross_entropy_forward(gpu const& on, cross_entropy_shape s, float const* logits, std::int32_t const* targets,
                                float* log_sum_exp, float* loss) {
    log_sums<<<s.rows, threads, 0, on.stream>>>(s.vocabulary, logits, log_sum_exp);
    mean_loss<<<1, threads, 0, on.stream>>>(s, logits, targets, log_sum_exp, loss);
}
void mean_cross_entropy_backward(gpu const& on, cross_entropy_shape s, float const* logits,
                                 std::int32_t const* targets, float const* log_sum_exp, float* dlogits) {
    loss_slope<<<s.rows, threads, 0, on.stream>>>(s, logits, targets, log_sum_exp, dlogits);
}
void add_column_sums(gpu const& on, int rows, int columns, float const* x, float* sums) {
    column_sums<<<(columns + 31) / 32, threads, 0, on.stream>>>(rows, columns, x, sums);
}
void causal_softmax(gpu const& on, int rows, int time, float* scores) {
    softmax_rows<<<rows, threads, 0, on.stream>>>(time, scores);
}
void softmax_backward(gpu const& on, int rows, int time, float scale, float const* p, float* dp) {
    softmax_backward_rows<<<rows, threads, 0, on.stream>>>(time, scale, p, dp);
}
void round_to_bf16(gpu const& on, operand const& x, float const* from, std::uint16_t* to) {
    dim3 const block{32, threads / 32};
    round_columns<<<blocks_for(std::ptrdiff_t{x.columns} * x.batches * block.x), block, 0, on.stream>>>(x, in_bf16(x),
                                                                                                       from, to);
}

} // namespace gpt::on_gpu
