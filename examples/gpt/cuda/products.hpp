// SPDX-License-Identifier: Apache-2.0
// Every matrix product of the GPT as the numbers a BLAS wants: which operand is transposed, sizes, leading dimensions,
// strides of a batch. Plain arithmetic, so that it can be tested where there is no GPU.
#pragma once

#include "gpt/kernels.hpp"

#include <cmath>
#include <cstdint>

namespace gpt {

/// d = alpha * op(a) op(b) + beta * d, all column-major as in BLAS: op(a) is m x k, op(b) k x n, d m x n. Repeated
/// `batches` times, each operand moved on by its stride. Our row-major arrays are read as their transposes.
struct product {
    bool transpose_a = false, transpose_b = false;
    int m = 0, n = 0, k = 0;
    int lead_a = 0, lead_b = 0, lead_d = 0;
    float alpha = 1, beta = 0;
    int batches = 1;
    std::int64_t stride_a = 0, stride_b = 0, stride_d = 0;
};

/// d = y, a = weight, b = x.
[[nodiscard]] constexpr auto product_of_linear(linear_shape s) -> product {
    return {.transpose_a = true, .m = s.out, .n = s.rows, .k = s.in, .lead_a = s.in, .lead_b = s.in, .lead_d = s.out};
}
/// d = dx, a = weight, b = dy.
[[nodiscard]] constexpr auto product_of_linear_input(linear_shape s) -> product {
    return {.m = s.in, .n = s.rows, .k = s.out, .lead_a = s.in, .lead_b = s.out, .lead_d = s.in};
}
/// d = dweight, added to; a = x, b = dy.
[[nodiscard]] constexpr auto product_of_linear_weight(linear_shape s) -> product {
    return {.transpose_b = true,
            .m = s.in,
            .n = s.out,
            .k = s.rows,
            .lead_a = s.in,
            .lead_b = s.out,
            .lead_d = s.in,
            .beta = 1};
}

/// Attention works on one sequence at a time, its heads a batch. Floats from one head to the next, and from one time
/// to the next, in an array of queries, keys, values or their gradients (`packed`: side by side), or of results.
struct head_layout {
    int head;
    int time;
    [[nodiscard]] static constexpr auto packed(attention_shape s) -> head_layout {
        return {s.channels / s.heads, 3 * s.channels};
    }
    [[nodiscard]] static constexpr auto plain(attention_shape s) -> head_layout {
        return {s.channels / s.heads, s.channels};
    }
};

/// d[t, j] = alpha * (row t of `left`) . (row j of `right`), for each head: d = scores [heads, time, time],
/// a = right, b = left.
[[nodiscard]] constexpr auto product_of_rows(attention_shape s, head_layout left, head_layout right, float alpha)
    -> product {
    int const width = s.channels / s.heads;
    return {.transpose_a = true,
            .m = s.time,
            .n = s.time,
            .k = width,
            .lead_a = right.time,
            .lead_b = left.time,
            .lead_d = s.time,
            .alpha = alpha,
            .batches = s.heads,
            .stride_a = right.head,
            .stride_b = left.head,
            .stride_d = std::int64_t{s.time} * s.time};
}
/// d[t] = the sum over j of p[t, j] (row j of `rows`), or with `transposed` of p[j, t] (row j): d = the result, a =
/// rows, b = p [heads, time, time].
[[nodiscard]] constexpr auto product_of_weights(attention_shape s, head_layout rows, head_layout result,
                                                bool transposed) -> product {
    int const width = s.channels / s.heads;
    return {.transpose_b = transposed,
            .m = width,
            .n = s.time,
            .k = s.time,
            .lead_a = rows.time,
            .lead_b = s.time,
            .lead_d = result.time,
            .batches = s.heads,
            .stride_a = rows.head,
            .stride_b = std::int64_t{s.time} * s.time,
            .stride_d = result.head};
}

/// 1 / sqrt(channels per head).
[[nodiscard]] inline auto score_scale(attention_shape s) -> float {
    return 1.0f / std::sqrt(static_cast<float>(s.channels / s.heads));
}

} // namespace gpt
