// SPDX-License-Identifier: Apache-2.0
// Exponential and reductions written so that a compiler turns the loops around them into vector instructions without
// -ffast-math, and so that the order of additions, hence every bit, depends on the length alone.
#pragma once

#include <bit>
#include <cstdint>

namespace gpt {

/// e^x within 1.5 ulp for x in [-87.3, 88.3], greater x are not allowed; below, it stays at e^-87.3 = 1.2e-38. NaN
/// stays NaN. e^x = 2^n e^r with n = round(x / ln 2): adding 1.5 * 2^23 leaves n in the low mantissa bits, ready for
/// the exponent. ln 2 is split in two so that n times the first part is exact; the polynomial interpolates (e^r - 1 -
/// r) / r^2 at five Chebyshev points of |r| <= ln 2 / 2.
[[nodiscard]] inline float exp(float x) noexcept {
    constexpr float round_to_integer = 12582912.0f;
    constexpr std::uint32_t exponent_bias = 127u - std::bit_cast<std::uint32_t>(round_to_integer);
    x = x < -87.3f ? -87.3f : x;
    float const shifted = x * 1.44269504f + round_to_integer;
    float const n = shifted - round_to_integer;
    float const r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    float p = 1.39263276e-3f;
    p = p * r + 8.36329275e-3f;
    p = p * r + 4.16665537e-2f;
    p = p * r + 1.66665763e-1f;
    p = p * r + 0.5f;
    p = p * (r * r) + r + 1.0f;
    return p * std::bit_cast<float>((std::bit_cast<std::uint32_t>(shifted) + exponent_bias) << 23);
}

/// Folds `term(0) ... term(n - 1)` with `combine`, an associative operation whose identity is `start`. Sixteen
/// running values, combined pairwise at the end, take the place of the one that would forbid vector instructions.
template <class Term, class Combine>
[[nodiscard]] inline float reduce(int n, float start, Term const& term, Combine const& combine) noexcept {
    constexpr int lanes = 16;
    float lane[lanes];
    for (int l = 0; l < lanes; ++l) {
        lane[l] = start;
    }
    int i = 0;
    for (; i + lanes <= n; i += lanes) {
        for (int l = 0; l < lanes; ++l) {
            lane[l] = combine(lane[l], term(i + l));
        }
    }
    for (int l = 0; i + l < n; ++l) {
        lane[l] = combine(lane[l], term(i + l));
    }
    for (int half = lanes / 2; half > 0; half /= 2) {
        for (int l = 0; l < half; ++l) {
            lane[l] = combine(lane[l], lane[l + half]);
        }
    }
    return lane[0];
}

template <class Term>
[[nodiscard]] inline float sum(int n, Term const& term) noexcept {
    return reduce(n, 0.0f, term, [](float a, float b) { return a + b; });
}

/// The greatest of `values[0 .. n - 1]`, n >= 1.
[[nodiscard]] inline float greatest(int n, float const* values) noexcept {
    return reduce(
        n, values[0], [=](int i) { return values[i]; }, [](float a, float b) { return a < b ? b : a; });
}

} // namespace gpt
