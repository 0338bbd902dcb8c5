// SPDX-License-Identifier: Apache-2.0
// The arithmetic of a mixture of experts on the CPU: each kernel is a function object of pointers and sizes, launched
// as it is on a host stream.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace moe {

/// The sizes of a mixture and of the group that shares it. Experts lie on members in equal runs.
struct sizes {
    std::int64_t width = 0;
    std::int64_t hidden = 0;
    std::int64_t experts = 0;
    std::int64_t members = 1;
    std::int64_t top = 1;    ///< experts per token
    std::int64_t tokens = 0; ///< most that a micro-batch of any member has

    [[nodiscard]] constexpr auto local() const noexcept -> std::int64_t { return experts / members; }
    /// Floats of a parcel from a micro-batch of that many tokens: for each expert of the receiving member how many rows
    /// are for it, then the rows, by expert. There is room for all tokens to go to one member.
    [[nodiscard]] constexpr auto parcel(std::int64_t of_tokens) const noexcept -> std::int64_t {
        return local() + top * of_tokens * width;
    }
    [[nodiscard]] constexpr auto rows() const noexcept -> std::int64_t { return top * tokens; }
};

namespace kernels {

/// Where a token's row lies in the parcels of its member.
struct parcel_map {
    sizes n;
    std::int64_t tokens;
    std::int32_t* expert; ///< [tokens, top]
    std::int32_t* row;    ///< [tokens, top], within the parcel

    [[nodiscard]] auto offset(std::int64_t choice) const -> std::int64_t {
        return expert[choice] / n.local() * n.parcel(tokens) + n.local() + row[choice] * n.width;
    }
};

/// Calls f(member, row) for every row that has come for a local expert, in an order that no timing changes.
template <class F>
void for_rows(sizes const& n, float const* arrived, std::int64_t expert, F f) {
    for (std::int64_t g = 0; g < n.members; ++g) {
        float const* const counts = arrived + g * n.parcel(n.tokens);
        std::int64_t first = 0;
        for (std::int64_t e = 0; e < expert; ++e) first += static_cast<std::int64_t>(counts[e]);
        auto const last = first + static_cast<std::int64_t>(counts[expert]);
        for (std::int64_t r = first; r < last; ++r) f(g, r);
    }
}
/// Where such a row lies in an arrived parcel.
inline auto arrived_row(sizes const& n, std::int64_t member, std::int64_t row) -> std::int64_t {
    return member * n.parcel(n.tokens) + n.local() + row * n.width;
}

/// Softmax over all experts, the `top` most likely ones (of equal ones the first), and the tokens packed for them.
struct route {
    parcel_map to;
    float const* x;      ///< [tokens, width]
    float const* router; ///< [experts, width]
    float* share;        ///< [tokens, experts]
    float* parcels;      ///< [members, parcel]

    void operator()() const {
        sizes const& n = to.n;
        std::vector<std::int64_t> count(static_cast<std::size_t>(n.experts));
        for (std::int64_t t = 0; t < to.tokens; ++t) {
            float* const p = share + t * n.experts;
            softmax(p, x + t * n.width);
            for (std::int64_t j = 0; j < n.top; ++j) {
                std::int64_t best = -1;
                for (std::int64_t e = 0; e < n.experts; ++e) {
                    auto const* const taken = to.expert + t * n.top;
                    if (std::find(taken, taken + j, e) == taken + j && (best < 0 || p[e] > p[best])) best = e;
                }
                to.expert[t * n.top + j] = static_cast<std::int32_t>(best);
                ++count[static_cast<std::size_t>(best)];
            }
        }
        std::vector<std::int64_t> next(count.size());
        for (std::int64_t e = 0; e < n.experts; ++e) {
            auto const here = static_cast<std::size_t>(e);
            parcels[e / n.local() * n.parcel(to.tokens) + e % n.local()] = static_cast<float>(count[here]);
            next[here] = e % n.local() == 0 ? 0 : next[here - 1] + count[here - 1];
        }
        for (std::int64_t i = 0; i < to.tokens * n.top; ++i) {
            to.row[i] = static_cast<std::int32_t>(next[static_cast<std::size_t>(to.expert[i])]++);
            std::copy_n(x + i / n.top * n.width, n.width, parcels + to.offset(i));
        }
    }

private:
    void softmax(float* p, float const* token) const {
        sizes const& n = to.n;
        for (std::int64_t e = 0; e < n.experts; ++e) {
            p[e] = 0;
            for (std::int64_t i = 0; i < n.width; ++i) p[e] += router[e * n.width + i] * token[i];
        }
        float const most = *std::max_element(p, p + n.experts);
        float sum = 0;
        for (std::int64_t e = 0; e < n.experts; ++e) sum += p[e] = std::exp(p[e] - most);
        for (std::int64_t e = 0; e < n.experts; ++e) p[e] /= sum;
    }
};

/// One local expert on all rows that came for it: down tanh(up x).
struct expert_forward {
    sizes n;
    std::int64_t expert;
    float const* arrived; ///< [members, parcel]
    float const* up;      ///< [hidden, width]
    float const* down;    ///< [width, hidden]
    float* hidden;        ///< [members, rows, hidden]
    float* out;           ///< [members, parcel]

    void operator()() const {
        for_rows(n, arrived, expert, [&](std::int64_t g, std::int64_t r) {
            float const* const x = arrived + arrived_row(n, g, r);
            float* const y = out + arrived_row(n, g, r);
            float* const h = hidden + (g * n.rows() + r) * n.hidden;
            for (std::int64_t k = 0; k < n.hidden; ++k) {
                float sum = 0;
                for (std::int64_t i = 0; i < n.width; ++i) sum += up[k * n.width + i] * x[i];
                h[k] = std::tanh(sum);
            }
            for (std::int64_t i = 0; i < n.width; ++i) {
                y[i] = 0;
                for (std::int64_t k = 0; k < n.hidden; ++k) y[i] += down[i * n.hidden + k] * h[k];
            }
        });
    }
};

/// y = x + the sum of the chosen experts' outputs, each times its share.
struct combine {
    parcel_map from;
    float const* x;
    float const* share;
    float const* returned; ///< [members, parcel]
    float* y;

    void operator()() const {
        sizes const& n = from.n;
        std::copy_n(x, from.tokens * n.width, y);
        for (std::int64_t i = 0; i < from.tokens * n.top; ++i) {
            std::int64_t const t = i / n.top;
            float const p = share[t * n.experts + from.expert[i]];
            for (std::int64_t k = 0; k < n.width; ++k) y[t * n.width + k] += p * returned[from.offset(i) + k];
        }
    }
};

/// The gradients of the returned rows, and of the shares.
struct combine_backward {
    parcel_map to;
    float const* dy;
    float const* share;
    float const* returned;
    float* parcels; ///< [members, parcel]; counts are not needed again
    float* dshare;  ///< [tokens, top]

    void operator()() const {
        sizes const& n = to.n;
        for (std::int64_t i = 0; i < to.tokens * n.top; ++i) {
            std::int64_t const t = i / n.top;
            float const p = share[t * n.experts + to.expert[i]];
            dshare[i] = 0;
            for (std::int64_t k = 0; k < n.width; ++k) {
                parcels[to.offset(i) + k] = p * dy[t * n.width + k];
                dshare[i] += dy[t * n.width + k] * returned[to.offset(i) + k];
            }
        }
    }
};

/// The input gradient of one local expert.
struct expert_backward_input {
    sizes n;
    std::int64_t expert;
    float const* arrived; ///< of the forward: its counts
    float const* dout;    ///< [members, parcel]
    float const* up;
    float const* down;
    float const* hidden;
    float* dhidden; ///< [members, rows, hidden], before the tanh
    float* dx;      ///< [members, parcel]

    void operator()() const {
        for_rows(n, arrived, expert, [&](std::int64_t g, std::int64_t r) {
            float const* const d = dout + arrived_row(n, g, r);
            float* const to = dx + arrived_row(n, g, r);
            float const* const h = hidden + (g * n.rows() + r) * n.hidden;
            float* const dh = dhidden + (g * n.rows() + r) * n.hidden;
            for (std::int64_t k = 0; k < n.hidden; ++k) {
                float sum = 0;
                for (std::int64_t i = 0; i < n.width; ++i) sum += down[i * n.hidden + k] * d[i];
                dh[k] = sum * (1 - h[k] * h[k]);
            }
            for (std::int64_t i = 0; i < n.width; ++i) {
                to[i] = 0;
                for (std::int64_t k = 0; k < n.hidden; ++k) to[i] += up[k * n.width + i] * dh[k];
            }
        });
    }
};

/// dx: past the experts, through them, and through the router.
struct route_backward {
    parcel_map from;
    float const* dy;
    float const* returned; ///< [members, parcel]: the experts' input gradients
    float const* share;
    float const* dshare;
    float const* router;
    float* dlogit; ///< [tokens, experts]
    float* dx;

    void operator()() const {
        sizes const& n = from.n;
        std::copy_n(dy, from.tokens * n.width, dx);
        for (std::int64_t t = 0; t < from.tokens; ++t) {
            float const* const p = share + t * n.experts;
            float* const d = dlogit + t * n.experts;
            float mean = 0;
            std::fill_n(d, n.experts, 0.0F);
            for (std::int64_t i = t * n.top; i < (t + 1) * n.top; ++i) {
                d[from.expert[i]] = dshare[i];
                mean += dshare[i] * p[from.expert[i]];
                for (std::int64_t k = 0; k < n.width; ++k) dx[t * n.width + k] += returned[from.offset(i) + k];
            }
            for (std::int64_t e = 0; e < n.experts; ++e) {
                d[e] = p[e] * (d[e] - mean);
                for (std::int64_t k = 0; k < n.width; ++k) dx[t * n.width + k] += d[e] * router[e * n.width + k];
            }
        }
    }
};

/// Adds one local expert's weight gradients, over the tokens of all members.
struct expert_backward_weight {
    sizes n;
    std::int64_t expert;
    float const* arrived;
    float const* dout;
    float const* hidden;
    float const* dhidden;
    float* up_gradient;
    float* down_gradient;

    void operator()() const {
        for_rows(n, arrived, expert, [&](std::int64_t g, std::int64_t r) {
            float const* const x = arrived + arrived_row(n, g, r);
            float const* const d = dout + arrived_row(n, g, r);
            float const* const h = hidden + (g * n.rows() + r) * n.hidden;
            float const* const dh = dhidden + (g * n.rows() + r) * n.hidden;
            for (std::int64_t k = 0; k < n.hidden; ++k) {
                for (std::int64_t i = 0; i < n.width; ++i) {
                    up_gradient[k * n.width + i] += dh[k] * x[i];
                    down_gradient[i * n.hidden + k] += d[i] * h[k];
                }
            }
        });
    }
};

/// The router's gradient of this member's tokens, once for every member.
struct router_backward_weight {
    sizes n;
    std::int64_t tokens;
    float const* x;
    float const* dlogit;
    float* parts; ///< [members, experts, width]

    void operator()() const {
        std::int64_t const count = n.experts * n.width;
        std::fill_n(parts, count, 0.0F);
        for (std::int64_t t = 0; t < tokens; ++t)
            for (std::int64_t e = 0; e < n.experts; ++e)
                for (std::int64_t i = 0; i < n.width; ++i)
                    parts[e * n.width + i] += dlogit[t * n.experts + e] * x[t * n.width + i];
        for (std::int64_t g = 1; g < n.members; ++g) std::copy_n(parts, count, parts + g * count);
    }
};

/// gradient += the sum of all members' parts, in member order.
struct add_parts {
    sizes n;
    float const* parts;
    float* gradient;

    void operator()() const {
        std::int64_t const count = n.experts * n.width;
        for (std::int64_t i = 0; i < count; ++i) {
            float sum = 0;
            for (std::int64_t g = 0; g < n.members; ++g) sum += parts[g * count + i];
            gradient[i] += sum;
        }
    }
};

} // namespace kernels
} // namespace moe
