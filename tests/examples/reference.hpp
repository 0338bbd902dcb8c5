// SPDX-License-Identifier: Apache-2.0
// The mathematics of the GPT example once more, in double precision and plain loops, and the comparison of a gradient
// with central differences of it.
#pragma once

#include "catch.hpp"
#include "gpt/kernels.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace reference {

using floats = std::vector<float>;
using doubles = std::vector<double>;
using tokens = std::vector<std::int32_t>;

inline std::size_t size(int n) { return static_cast<std::size_t>(n); }

inline floats random_floats(int n, unsigned seed) {
    std::mt19937 generator{seed};
    floats values(size(n));
    for (float& value : values) {
        value = static_cast<float>(generator()) / 2147483648.0f - 1.0f;
    }
    return values;
}

inline tokens random_tokens(int n, int vocabulary, unsigned seed) {
    std::mt19937 generator{seed};
    tokens values(size(n));
    for (auto& value : values) {
        value = static_cast<std::int32_t>(generator() % static_cast<unsigned>(vocabulary));
    }
    return values;
}

inline doubles widened(floats const& values) { return {values.begin(), values.end()}; }

inline void require_close(floats const& got, doubles const& expected) {
    REQUIRE(got.size() == expected.size());
    for (std::size_t i = 0; i < got.size(); ++i) {
        INFO("element " << i);
        REQUIRE(got[i] == Approx(expected[i]).epsilon(1e-4).margin(2e-5));
    }
}

inline double dot(doubles const& a, floats const& b) {
    REQUIRE(a.size() == b.size());
    double total = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        total += a[i] * double{b[i]};
    }
    return total;
}

/// Checks `got` against central differences at `at` of dot(function(x), dy), in double precision.
template <class Function>
void require_gradient(floats const& got, floats const& at, floats const& dy, Function const& function) {
    constexpr double step = 1e-4;
    doubles x = widened(at);
    doubles expected;
    for (double& value : x) {
        double const middle = value;
        value = middle + step;
        double const above = dot(function(x), dy);
        value = middle - step;
        double const below = dot(function(x), dy);
        value = middle;
        expected.push_back((above - below) / (2 * step));
    }
    require_close(got, expected);
}

/// Calls `add_gradient(array)` on zeros and again on the result; it must have written the same sum twice.
template <class AddGradient>
floats accumulated_twice(std::size_t n, AddGradient const& add_gradient) {
    floats gradient(n);
    add_gradient(gradient.data());
    floats const once = gradient;
    add_gradient(gradient.data());
    doubles doubled = widened(once);
    for (double& value : doubled) {
        value *= 2;
    }
    require_close(gradient, doubled);
    return once;
}

inline doubles linear(gpt::linear_shape s, doubles const& x, doubles const& weight, doubles const& bias) {
    doubles y(size(s.rows * s.out));
    for (int r = 0; r < s.rows; ++r) {
        for (int o = 0; o < s.out; ++o) {
            double total = bias.empty() ? 0 : bias[size(o)];
            for (int i = 0; i < s.in; ++i) {
                total += x[size(r * s.in + i)] * weight[size(o * s.in + i)];
            }
            y[size(r * s.out + o)] = total;
        }
    }
    return y;
}

inline doubles layer_norm(gpt::norm_shape s, doubles const& x, doubles const& gain, doubles const& bias) {
    doubles y(x.size());
    for (int r = 0; r < s.rows; ++r) {
        double const* const row = x.data() + r * s.width;
        double mean = 0;
        double variance = 0;
        for (int c = 0; c < s.width; ++c) {
            mean += row[c] / s.width;
        }
        for (int c = 0; c < s.width; ++c) {
            variance += (row[c] - mean) * (row[c] - mean) / s.width;
        }
        for (int c = 0; c < s.width; ++c) {
            y[size(r * s.width + c)] = (row[c] - mean) / std::sqrt(variance + 1e-5) * gain[size(c)] + bias[size(c)];
        }
    }
    return y;
}

inline doubles attention(gpt::attention_shape s, doubles const& qkv) {
    int const width = s.channels / s.heads;
    auto const at = [&](int part, int b, int t, int h, int i) {
        return qkv[size(((b * s.time + t) * 3 + part) * s.channels + h * width + i)];
    };
    doubles y(size(s.batch * s.time * s.channels));
    for (int b = 0; b < s.batch; ++b) {
        for (int h = 0; h < s.heads; ++h) {
            for (int t = 0; t < s.time; ++t) {
                doubles weight;
                double total = 0;
                for (int past = 0; past <= t; ++past) {
                    double score = 0;
                    for (int i = 0; i < width; ++i) {
                        score += at(0, b, t, h, i) * at(1, b, past, h, i) / std::sqrt(double(width));
                    }
                    weight.push_back(std::exp(score));
                    total += weight.back();
                }
                for (int i = 0; i < width; ++i) {
                    double& out = y[size((b * s.time + t) * s.channels + h * width + i)];
                    for (int past = 0; past <= t; ++past) {
                        out += weight[size(past)] / total * at(2, b, past, h, i);
                    }
                }
            }
        }
    }
    return y;
}

inline doubles gelu(doubles x) {
    for (double& v : x) {
        v = v / 2 * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (v + 0.044715 * v * v * v)));
    }
    return x;
}

inline doubles embedding(gpt::embedding_shape s, tokens const& ids, doubles const& table, doubles const& positions) {
    doubles y;
    for (int r = 0; r < s.batch * s.time; ++r) {
        for (int c = 0; c < s.channels; ++c) {
            y.push_back(table[size(ids[size(r)] * s.channels + c)] + positions[size(r % s.time * s.channels + c)]);
        }
    }
    return y;
}

inline double cross_entropy(gpt::cross_entropy_shape s, doubles const& logits, tokens const& targets) {
    double loss = 0;
    for (int r = 0; r < s.rows; ++r) {
        double total = 0;
        for (int c = 0; c < s.vocabulary; ++c) {
            total += std::exp(logits[size(r * s.vocabulary + c)]);
        }
        if (targets[size(r)] >= 0) {
            loss += double{s.scale} * (std::log(total) - logits[size(r * s.vocabulary + targets[size(r)])]);
        }
    }
    return loss;
}

} // namespace reference
