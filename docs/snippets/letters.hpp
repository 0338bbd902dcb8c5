// SPDX-License-Identifier: Apache-2.0
// The model of docs/guide.md: the next letter from the letters before it. Its embedding and its head share one table.
#pragma once

#include "copipe/device/host.hpp"
#include "copipe/model/layer.hpp"
#include "copipe/pipeline/dataset.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace letters {

using context = copipe::context<copipe::host_device>;
using copipe::parameter;
using copipe::tensor;

inline constexpr std::int64_t symbols = 27; ///< a to z and the space

// Kernels: plain functions of pointers and sizes. A real model calls a BLAS here, or launches its own .cu code.

/// y (n x m) = a (n x k) times b (k x m), or times the transpose of b (m x k).
inline void multiply(float* y, float const* a, float const* b, std::array<std::int64_t, 3> nkm,
                     bool transposed = false) {
    auto const [n, k, m] = nkm;
    for (std::int64_t i = 0; i < n; ++i)
        for (std::int64_t j = 0; j < m; ++j) {
            float sum = 0;
            for (std::int64_t l = 0; l < k; ++l) sum += a[i * k + l] * (transposed ? b[j * k + l] : b[l * m + j]);
            y[i * m + j] = sum;
        }
}
/// y (k x m) += a's transpose (a: n x k) times b (n x m).
inline void add_outer(float* y, float const* a, float const* b, std::array<std::int64_t, 3> nkm) {
    auto const [n, k, m] = nkm;
    for (std::int64_t i = 0; i < n; ++i)
        for (std::int64_t l = 0; l < k; ++l)
            for (std::int64_t j = 0; j < m; ++j) y[l * m + j] += a[i * k + l] * b[i * m + j];
}

/// Letters [rows, before] (i32) to [rows, before * width]: for each letter its row of the table.
struct embedding {
    std::int64_t width;
    parameter table{.name = "table", .sizes = {symbols, width}, .first = copipe::normal(0.3), .tie = "letters"};
    struct saved {
        tensor x, dy;
    };
    auto parameters() { return std::array{&table}; }

    auto forward(context& c, tensor x, saved& s) -> tensor {
        s.x = x;
        tensor y = c.make({x.size(0), x.size(1) * width});
        c.stream.launch(
            [n = x.count(), w = width, in = x.data<std::int32_t>(), from = table.value.data(), to = y.data()] {
                for (std::size_t i = 0; i < n; ++i)
                    std::copy_n(from + in[i] * w, w, to + static_cast<std::int64_t>(i) * w);
            });
        return y;
    }
    auto backward_input(context&, tensor dy, saved& s) -> tensor {
        s.dy = std::move(dy);
        return {}; // nobody needs the gradient of the letters
    }
    void backward_weight(context& c, saved& s) {
        c.stream.launch(
            [n = s.x.count(), w = width, in = s.x.data<std::int32_t>(), d = s.dy.data(), sum = table.gradient.data()] {
                for (std::size_t i = 0; i < n; ++i)
                    for (std::int64_t j = 0; j < w; ++j) sum[in[i] * w + j] += d[static_cast<std::int64_t>(i) * w + j];
            });
    }
};

/// y = tanh(x W): [rows, in] to [rows, out].
struct dense {
    std::int64_t in, out;
    parameter weight{
        .name = "weight", .sizes = {in, out}, .first = copipe::normal(1 / std::sqrt(static_cast<double>(in)))};
    struct saved {
        tensor x, y, g;
    };
    auto parameters() { return std::array{&weight}; }

    auto forward(context& c, tensor x, saved& s) -> tensor {
        tensor y = c.make({x.size(0), out});
        c.stream.launch([size = std::array{x.size(0), in, out}, from = x.data(), w = weight.value.data(), to = y.data(),
                         n = y.count()] {
            multiply(to, from, w, size);
            for (std::size_t i = 0; i < n; ++i) to[i] = std::tanh(to[i]);
        });
        if (c.training) { // in evaluation no backward follows
            s.x = x;
            s.y = y;
        }
        return y;
    }
    auto backward_input(context& c, tensor dy, saved& s) -> tensor {
        s.g = c.make(dy.sizes()); // the gradient before the tanh: backward_weight needs it, perhaps much later
        tensor dx = c.make(s.x.sizes());
        c.stream.launch([size = std::array{dy.size(0), out, in}, n = dy.count(), d = dy.data(), y = s.y.data(),
                         g = s.g.data(), w = weight.value.data(), to = dx.data()] {
            for (std::size_t i = 0; i < n; ++i) g[i] = d[i] * (1 - y[i] * y[i]);
            multiply(to, g, w, size, true);
        });
        s.y = {}; // not needed any more: its memory may serve what is launched later
        return dx;
    }
    void backward_weight(context& c, saved& s) {
        c.stream.launch(
            [size = std::array{s.x.size(0), in, out}, x = s.x.data(), g = s.g.data(), sum = weight.gradient.data()] {
                add_outer(sum, x, g, size); // adds to what earlier micro-batches left
            });
    }
};

/// The last layer: [rows, width] times the embedding's table, and the mean cross-entropy with the target [rows] (i32).
struct head {
    std::int64_t width;
    parameter table{.name = "table", .sizes = {symbols, width}, .first = copipe::normal(0.3), .tie = "letters"};
    struct saved {
        tensor x, p, target;
    };
    auto parameters() { return std::array{&table}; }

    auto forward(context& c, tensor x, saved& s) -> tensor {
        s.x = x;
        s.target = c.target; // given in forward only
        s.p = c.make({x.size(0), symbols});
        tensor loss = c.make({1}); // one float: the loss of this micro-batch
        c.stream.launch([size = std::array{x.size(0), width, symbols}, from = x.data(), w = table.value.data(),
                         p = s.p.data(), t = c.target.data<std::int32_t>(), l = loss.data()] {
            multiply(p, from, w, size, true);
            *l = 0;
            for (std::int64_t r = 0; r < size[0]; ++r) {
                float* const row = p + r * symbols;
                float const most = *std::max_element(row, row + symbols);
                float sum = 0;
                for (std::int64_t k = 0; k < symbols; ++k) sum += row[k] = std::exp(row[k] - most);
                for (std::int64_t k = 0; k < symbols; ++k) row[k] /= sum;
                *l -= std::log(row[t[r]]) / static_cast<float>(size[0]);
            }
        });
        return loss;
    }
    auto backward_input(context& c, tensor /*empty: nothing follows*/, saved& s) -> tensor {
        tensor dx = c.make(s.x.sizes());
        c.stream.launch([size = std::array{s.x.size(0), symbols, width}, w = table.value.data(), p = s.p.data(),
                         t = s.target.data<std::int32_t>(), to = dx.data(), share = c.scale] {
            float const f = share / static_cast<float>(size[0]); // the micro-batch's share of the step's loss
            for (std::int64_t r = 0; r < size[0]; ++r)
                for (std::int64_t k = 0; k < symbols; ++k) {
                    float& each = p[r * symbols + k]; // becomes the gradient of the scores
                    each = f * (each - (k == t[r] ? 1.0F : 0.0F));
                }
            multiply(to, p, w, size);
        });
        return dx;
    }
    void backward_weight(context& c, saved& s) {
        c.stream.launch([size = std::array{s.x.size(0), symbols, width}, p = s.p.data(), x = s.x.data(),
                         sum = table.gradient.data()] { add_outer(sum, p, x, size); });
    }
};

/// Places in a text, drawn at random: `before` letters and the one that follows.
class phrases {
public:
    phrases(std::string_view text, std::uint64_t seed, std::int64_t rows = 16, std::int64_t before = 5)
        : seed_(seed), rows_(rows), before_(before) {
        for (char each : text) text_.push_back(each == ' ' ? 26 : each - 'a');
    }
    [[nodiscard]] auto size() const -> std::uint64_t { return text_.size() / static_cast<std::uint64_t>(rows_); }

    void load(std::uint64_t index, copipe::host_array& input, copipe::host_array& target) const {
        std::int32_t* const x = input.resize<std::int32_t>({rows_, before_}, copipe::dtype::i32);
        std::int32_t* const y = target.resize<std::int32_t>({rows_}, copipe::dtype::i32);
        copipe::counter_random const random{seed_, index}; // the same index gives the same rows, on whichever rank
        for (std::int64_t r = 0; r < rows_; ++r) {
            auto const places = text_.size() - static_cast<std::size_t>(before_);
            auto const at = static_cast<std::ptrdiff_t>(random.bits(static_cast<std::uint64_t>(r)) % places);
            std::copy_n(text_.begin() + at, before_, x + r * before_);
            y[r] = text_[static_cast<std::size_t>(at + before_)];
        }
    }

private:
    std::vector<std::int32_t> text_{};
    std::uint64_t seed_;
    std::int64_t rows_, before_;
};
static_assert(copipe::dataset<phrases>);

inline auto make_model(int depth = 3, std::int64_t width = 16, std::int64_t before = 5)
    -> copipe::model<copipe::host_device> {
    copipe::model<copipe::host_device> layers;
    layers.add(embedding{width}).add(dense{before * width, width});
    for (int i = 0; i < depth; ++i) layers.add(dense{width, width});
    layers.add(head{width});
    return layers;
}

inline constexpr std::string_view text = "the pipeline has a stage on every rank and every stage waits for the one "
                                         "before it and for the one behind it while one "
                                         "stage waits another one works and when the last micro batch has come back "
                                         "the gradients are summed and the weights are "
                                         "moved a little way down the slope and the next step begins with the next "
                                         "batch of the text and the loss falls again ";

} // namespace letters
