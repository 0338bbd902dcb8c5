// SPDX-License-Identifier: Apache-2.0
// A small model with exact expectations, shared by the tests of the engine and of the trainer.
#pragma once

#include "copipe/device/host.hpp"
#include "copipe/model/layer.hpp"
#include "copipe/pipeline/dataset.hpp"

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace toy {

using copipe::context;
using copipe::extents;
using copipe::host_device;
using copipe::parameter;
using copipe::tensor;

inline constexpr std::int64_t width = 5;

/// y = x + tanh(x W), rows of `width` floats.
struct dense {
    struct saved {
        tensor x, t, g;
    };
    parameter w{.name = "w", .sizes = {width, width}, .first = copipe::normal(0.3)};

    explicit dense(std::string tie = {}) { w.tie = std::move(tie); }
    auto parameters() { return std::array{&w}; }

    auto forward(context<host_device>& c, tensor x, saved& s) -> tensor {
        tensor t = c.make(x.sizes());
        tensor y = c.make(x.sizes());
        c.stream.launch([in = x.data(), w_ = w.value.data(), t_ = t.data(), out = y.data(), rows = x.size(0)] {
            for (std::int64_t r = 0; r < rows; ++r) {
                for (std::int64_t j = 0; j < width; ++j) {
                    float sum = 0;
                    for (std::int64_t i = 0; i < width; ++i) sum += in[r * width + i] * w_[i * width + j];
                    t_[r * width + j] = std::tanh(sum);
                    out[r * width + j] = in[r * width + j] + t_[r * width + j];
                }
            }
        });
        s.x = x;
        s.t = t;
        return y;
    }
    auto backward_input(context<host_device>& c, tensor dy, saved& s) -> tensor {
        s.g = c.make(dy.sizes());
        tensor dx = c.make(dy.sizes());
        c.stream.launch(
            [d = dy.data(), w_ = w.value.data(), t_ = s.t.data(), g = s.g.data(), out = dx.data(), rows = dy.size(0)] {
                for (std::int64_t r = 0; r < rows; ++r) {
                    for (std::int64_t j = 0; j < width; ++j) {
                        g[r * width + j] = d[r * width + j] * (1 - t_[r * width + j] * t_[r * width + j]);
                    }
                    for (std::int64_t i = 0; i < width; ++i) {
                        float sum = d[r * width + i];
                        for (std::int64_t j = 0; j < width; ++j) sum += g[r * width + j] * w_[i * width + j];
                        out[r * width + i] = sum;
                    }
                }
            });
        return dx;
    }
    void backward_weight(context<host_device>& c, saved& s) {
        c.stream.launch([in = s.x.data(), g = s.g.data(), dw = w.gradient.data(), rows = s.x.size(0)] {
            for (std::int64_t i = 0; i < width; ++i) {
                for (std::int64_t j = 0; j < width; ++j) {
                    float sum = 0;
                    for (std::int64_t r = 0; r < rows; ++r) sum += in[r * width + i] * g[r * width + j];
                    dw[i * width + j] += sum;
                }
            }
        });
    }
};

/// Half the mean squared distance to the target.
struct distance {
    struct saved {
        tensor d;
    };
    auto forward(context<host_device>& c, tensor x, saved& s) -> tensor {
        s.d = c.make(x.sizes());
        tensor loss = c.make({1});
        c.stream.launch([y = x.data(), t = c.target.data(), d = s.d.data(), out = loss.data(), n = x.count()] {
            float sum = 0;
            for (std::size_t i = 0; i < n; ++i) {
                d[i] = y[i] - t[i];
                sum += d[i] * d[i];
            }
            *out = sum / (2 * static_cast<float>(n));
        });
        return loss;
    }
    auto backward_input(context<host_device>& c, tensor, saved& s) -> tensor {
        tensor dx = c.make(s.d.sizes());
        c.stream.launch(
            [d = s.d.data(), out = dx.data(), n = dx.count(), f = c.scale / static_cast<float>(dx.count())] {
                for (std::size_t i = 0; i < n; ++i) out[i] = d[i] * f;
            });
        return dx;
    }
};

/// Micro-batches of `rows(index)` random rows.
struct numbers {
    std::function<std::int64_t(std::uint64_t)> rows = [](std::uint64_t) { return std::int64_t{3}; };

    [[nodiscard]] static auto size() -> std::uint64_t { return 64; }
    void load(std::uint64_t index, copipe::host_array& input, copipe::host_array& target) const {
        copipe::counter_random const random{17, index};
        std::int64_t const n = rows(index);
        float* const x = input.resize<float>({n, width}, copipe::dtype::f32);
        float* const y = target.resize<float>({n, width}, copipe::dtype::f32);
        for (std::int64_t i = 0; i < n * width; ++i) {
            x[i] = static_cast<float>(random.normal(static_cast<std::uint64_t>(2 * i)));
            y[i] = static_cast<float>(random.normal(static_cast<std::uint64_t>(2 * i + 1)));
        }
    }
    [[nodiscard]] auto weight(std::uint64_t index) const -> double { return static_cast<double>(rows(index)); }
};

/// `depth` dense layers and the distance.
inline auto network(int depth, bool tied = false) -> copipe::model<host_device> {
    copipe::model<host_device> layers;
    for (int i = 0; i < depth; ++i) layers.add(dense{tied && (i == 0 || i + 1 == depth) ? "ends" : ""});
    layers.add(distance{});
    return layers;
}

} // namespace toy
