// SPDX-License-Identifier: Apache-2.0
// Every matrix product of the GPT as the numbers a BLAS wants: which operand is transposed, sizes, leading dimensions,
// strides of a batch. Plain arithmetic, so that it can be tested where there is no GPU.
#pragma once

#include "gpt/kernels.hpp"

#include <algorithm>
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

/// A factor of a product as it lies in memory: columns of `rows` numbers, `lead` numbers apart; matrices of a batch
/// `stride` apart.
struct operand {
    int rows = 0, columns = 0, lead = 0, batches = 1;
    std::int64_t stride = 0;
};
[[nodiscard]] constexpr auto operand_a(product const& p) -> operand {
    return {p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k, p.lead_a, p.batches, p.stride_a};
}
[[nodiscard]] constexpr auto operand_b(product const& p) -> operand {
    return {p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n, p.lead_b, p.batches, p.stride_b};
}

/// Where a copy rounded to bf16 lies: columns side by side, each from a multiple of 16 bytes on, which is what tensor
/// cores want of 16-bit numbers.
[[nodiscard]] constexpr auto in_bf16(operand const& x) -> operand {
    int const lead = (x.rows + 7) / 8 * 8;
    return {x.rows, x.columns, lead, x.batches, std::int64_t{lead} * x.columns};
}
/// The product of such copies.
[[nodiscard]] constexpr auto in_bf16(product p) -> product {
    operand const a = in_bf16(operand_a(p)), b = in_bf16(operand_b(p));
    p.lead_a = a.lead;
    p.stride_a = a.stride;
    p.lead_b = b.lead;
    p.stride_b = b.stride;
    return p;
}
/// Bytes of such a copy, up to a multiple of 256.
[[nodiscard]] constexpr auto bytes_in_bf16(operand const& x) -> std::int64_t {
    return (2 * in_bf16(x).stride * x.batches + 255) / 256 * 256;
}
/// Bytes of working memory for the copies: of both factors, and of the largest product of a linear map or of attention.
[[nodiscard]] constexpr auto bytes_in_bf16(product const& p) -> std::int64_t {
    return bytes_in_bf16(operand_a(p)) + bytes_in_bf16(operand_b(p));
}
[[nodiscard]] constexpr auto bytes_in_bf16(linear_shape s) -> std::int64_t {
    return std::max({bytes_in_bf16(product_of_linear(s)), bytes_in_bf16(product_of_linear_input(s)),
                     bytes_in_bf16(product_of_linear_weight(s))});
}
[[nodiscard]] constexpr auto bytes_in_bf16(attention_shape s) -> std::int64_t {
    auto const plain = head_layout::plain(s);
    return std::max(bytes_in_bf16(product_of_rows(s, plain, plain, 1)),
                    bytes_in_bf16(product_of_weights(s, plain, plain, false)));
}

} // namespace gpt
