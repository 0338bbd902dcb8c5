// SPDX-License-Identifier: Apache-2.0
// What the layers of the GPT are made of: launching a kernel on tensors, linear maps, layer normalization.
#pragma once

#include "copipe/device/host.hpp"
#include "copipe/model/layer.hpp"
#include "gpt/kernels.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace gpt {

using copipe::parameter;
using copipe::tensor;
using context = copipe::context<copipe::host_device>;

/// The address of a tensor, as a pointer to whatever element type the kernel wants.
struct address {
    void* data;
    template <class T>
    operator T*() const noexcept {
        return static_cast<T*>(data);
    }
};
[[nodiscard]] inline auto argument(tensor const& t) noexcept -> address { return {t.data<void>()}; }

/// A parameter that products multiply by, and a copy of it as a device's products may want it, made when first needed
/// in a run of the pipeline.
struct factor : parameter {
    mutable tensor copy{};
    mutable std::uint64_t copied_in = 0; ///< the run
};
[[nodiscard]] inline auto argument(factor const& f) noexcept -> address { return argument(f.value); }
template <class T>
[[nodiscard]] auto argument(T const& value) noexcept -> T {
    return value;
}

/// How a device runs what `Kernel`, a function of kernels.hpp, does on the CPU; a device brings a specialization.
template <class Device>
struct kernels_of;

template <>
struct kernels_of<copipe::host_device> {
    template <auto Kernel, class... Arguments>
    static void launch(context& c, Arguments const&... arguments) {
        c.stream.launch([... values = argument(arguments)] { Kernel(values...); });
    }
    /// Floats of working memory that attention's backward needs.
    [[nodiscard]] static auto scratch(attention_shape s) -> copipe::extents { return {s.time, s.time}; }
};

/// Enqueues `Kernel(arguments...)` on the compute stream, tensors passed by their addresses.
template <auto Kernel, class Device, class... Arguments>
void launch(copipe::context<Device>& c, Arguments const&... arguments) {
    kernels_of<Device>::template launch<Kernel>(c, arguments...);
}

/// The number of rows of a tensor [batch, time, ...].
[[nodiscard]] inline auto rows(tensor const& x) -> int { return static_cast<int>(x.size(0) * x.size(1)); }

/// Enqueues b += a and returns b.
template <class Device>
auto added(copipe::context<Device>& c, tensor const& a, tensor b) -> tensor {
    launch<residual_add>(c, static_cast<std::ptrdiff_t>(b.count()), a, b, b);
    return b;
}

/// y = x transpose(weight) + bias. Like `norm` below it is shaped as a layer, and is part of one.
struct linear {
    struct saved {
        tensor x, dy;
    };
    factor weight;
    parameter bias;

    linear(std::string const& name, int in, int out, double deviation)
        : weight{{.name = name + ".weight", .sizes = {out, in}, .first = copipe::normal(deviation)}},
          bias{.name = name + ".bias", .sizes = {out}, .first = copipe::constant(0)} {}

    template <class Device>
    auto forward(copipe::context<Device>& c, tensor x, saved& s) const -> tensor {
        tensor y = c.make({x.size(0), x.size(1), weight.sizes[0]});
        launch<linear_forward>(c, shape(x), x, weight, bias.value, y);
        s.x = std::move(x);
        return y;
    }
    template <class Device>
    auto backward_input(copipe::context<Device>& c, tensor dy, saved& s) const -> tensor {
        tensor dx = c.make(s.x.sizes());
        launch<linear_backward_input>(c, shape(dy), dy, weight, dx);
        s.dy = std::move(dy);
        return dx;
    }
    template <class Device>
    void backward_weight(copipe::context<Device>& c, saved& s) const {
        launch<linear_backward_weight>(c, shape(s.x), s.x, s.dy, weight.gradient, bias.gradient);
    }

private:
    [[nodiscard]] auto shape(tensor const& x) const -> linear_shape {
        return {rows(x), static_cast<int>(weight.sizes[1]), static_cast<int>(weight.sizes[0])};
    }
};

/// Layer normalization with a gain and a bias.
struct norm {
    struct saved {
        tensor x, mean, rstd, dy;
    };
    parameter gain;
    parameter bias;

    norm(std::string const& name, int width)
        : gain{.name = name + ".gain", .sizes = {width}, .first = copipe::constant(1)},
          bias{.name = name + ".bias", .sizes = {width}, .first = copipe::constant(0)} {}

    template <class Device>
    auto forward(copipe::context<Device>& c, tensor x, saved& s) const -> tensor {
        tensor y = c.make(x.sizes());
        s.mean = c.make({rows(x)});
        s.rstd = c.make({rows(x)});
        launch<layer_norm_forward>(c, shape(x), x, gain.value, bias.value, y, s.mean, s.rstd);
        s.x = std::move(x);
        return y;
    }
    template <class Device>
    auto backward_input(copipe::context<Device>& c, tensor dy, saved& s) const -> tensor {
        tensor dx = c.make(dy.sizes());
        launch<layer_norm_backward_input>(c, shape(dy), dy, s.x, gain.value, s.mean, s.rstd, dx);
        s.dy = std::move(dy);
        return dx;
    }
    template <class Device>
    void backward_weight(copipe::context<Device>& c, saved& s) const {
        launch<layer_norm_backward_weight>(c, shape(s.x), s.dy, s.x, s.mean, s.rstd, gain.gradient, bias.gradient);
    }

private:
    [[nodiscard]] auto shape(tensor const& x) const -> norm_shape { return {rows(x), static_cast<int>(gain.sizes[0])}; }
};

} // namespace gpt
