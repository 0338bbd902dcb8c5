// SPDX-License-Identifier: Apache-2.0
// The smallest trainer: own layers, own data, one policy. Learns y = sin(3x) on two ranks under DualPipeV.
#include <copipe/copipe.hpp>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>

using copipe::tensor;
using context = copipe::context<copipe::host_device>;

// y = tanh(x W): rows of `in` floats become rows of `out` floats. A launch captures pointers and sizes, never tensors.
struct dense {
    std::int64_t in, out;
    copipe::parameter weight{.name = "weight", .sizes = {in, out}, .first = copipe::normal(1.0 / std::sqrt(in))};
    struct saved { tensor x, y, g; }; // what one micro-batch keeps until its backward
    auto parameters() { return std::array{&weight}; }

    auto forward(context& c, tensor x, saved& s) -> tensor {
        s.x = x;
        s.y = c.make({x.size(0), out});
        c.stream.launch([n = x.size(0), i = in, o = out, x_ = x.data(), w = weight.value.data(), y = s.y.data()] {
            for (std::int64_t r = 0; r < n; ++r)
                for (std::int64_t k = 0; k < o; ++k) {
                    float sum = 0;
                    for (std::int64_t j = 0; j < i; ++j) sum += x_[r * i + j] * w[j * o + k];
                    y[r * o + k] = std::tanh(sum);
                }
        });
        return s.y;
    }
    auto backward_input(context& c, tensor dy, saved& s) -> tensor {
        s.g = c.make(dy.sizes());
        tensor dx = c.make(s.x.sizes());
        c.stream.launch([n = dy.size(0), i = in, o = out, dy_ = dy.data(), w = weight.value.data(), y = s.y.data(),
                         g = s.g.data(), dx_ = dx.data()] {
            for (std::int64_t r = 0; r < n; ++r) {
                for (std::int64_t k = 0; k < o; ++k) g[r * o + k] = dy_[r * o + k] * (1 - y[r * o + k] * y[r * o + k]);
                for (std::int64_t j = 0; j < i; ++j) {
                    dx_[r * i + j] = 0;
                    for (std::int64_t k = 0; k < o; ++k) dx_[r * i + j] += g[r * o + k] * w[j * o + k];
                }
            }
        });
        return dx;
    }
    void backward_weight(context& c, saved& s) { // adds: gradients accumulate over the micro-batches of a step
        float* const dw = weight.gradient.data();
        c.stream.launch([n = s.x.size(0), i = in, o = out, x = s.x.data(), g = s.g.data(), dw] {
            for (std::int64_t r = 0; r < n; ++r)
                for (std::int64_t j = 0; j < i; ++j)
                    for (std::int64_t k = 0; k < o; ++k) dw[j * o + k] += x[r * i + j] * g[r * o + k];
        });
    }
};

// The last layer returns the loss of the micro-batch: here half the mean squared error.
struct squared_error {
    struct saved { tensor d; };
    auto forward(context& c, tensor y, saved& s) -> tensor {
        s.d = c.make(y.sizes());
        tensor loss = c.make({1});
        c.stream.launch([n = y.count(), y_ = y.data(), t = c.target.data(), d = s.d.data(), l = loss.data()] {
            *l = 0;
            for (std::size_t i = 0; i < n; ++i) d[i] = y_[i] - t[i], *l += d[i] * d[i] / (2 * static_cast<float>(n));
        });
        return loss;
    }
    auto backward_input(context& c, tensor, saved& s) -> tensor {
        tensor dx = c.make(s.d.sizes());
        c.stream.launch([n = dx.count(), d = s.d.data(), o = dx.data(), f = c.scale / static_cast<float>(dx.count())] {
            for (std::size_t i = 0; i < n; ++i) o[i] = d[i] * f;
        });
        return dx;
    }
};

struct sine { // micro-batch `index` is always the same 16 points
    static auto size() -> std::uint64_t { return 100; }
    static void load(std::uint64_t index, copipe::host_array& input, copipe::host_array& target) {
        float* const x = input.resize<float>({16, 1}, copipe::dtype::f32);
        float* const y = target.resize<float>({16, 1}, copipe::dtype::f32);
        copipe::counter_random const random{1, index};
        for (std::uint64_t i = 0; i < 16; ++i)
            y[i] = 0.8F * std::sin(3 * (x[i] = 2 * static_cast<float>(random.uniform(i)) - 1));
    }
};

auto main() -> int {
    copipe::model<copipe::host_device> layers;
    layers.add(dense{1, 32}).add(dense{32, 32}).add(dense{32, 1}).add(squared_error{});
    copipe::trainer<copipe::dualpipe_v> trainer{
        layers, {.ranks = 2, .micro_batches = 8, .learning_rate = copipe::constant_rate{1e-2}}};
    for (int step = 0; step <= 300; ++step) {
        auto const report = trainer.step(sine{});
        if (step % 100 == 0) std::printf("step %3d  loss %.5f\n", step, report.loss);
    }
}
