// SPDX-License-Identifier: Apache-2.0
// The layers of the GPT on a GPU: which kernel does there what a function of kernels.hpp does on the CPU.
#pragma once

#include "copipe/device/cuda.hpp"
#include "gpt/cuda/kernels.hpp"
#include "gpt/layers.hpp"

#include <cstddef>
#include <cstdint>

namespace gpt {

/// A kernel's name for errors, the kernel, and whether it multiplies matrices and so needs memory to work with.
template <class Function>
struct twin_kernel {
    char const* name;
    Function* function;
    bool multiplies = false;
};
template <auto Kernel>
inline constexpr auto twin = nullptr;
template <>
inline constexpr twin_kernel twin<linear_forward>{"linear_forward", on_gpu::linear_forward, true};
template <>
inline constexpr twin_kernel twin<linear_backward_input>{"linear_backward_input", on_gpu::linear_backward_input, true};
template <>
inline constexpr twin_kernel twin<linear_backward_weight>{"linear_backward_weight", on_gpu::linear_backward_weight,
                                                          true};
template <>
inline constexpr twin_kernel twin<layer_norm_forward>{"layer_norm_forward", on_gpu::layer_norm_forward};
template <>
inline constexpr twin_kernel twin<layer_norm_backward_input>{"layer_norm_backward_input",
                                                             on_gpu::layer_norm_backward_input};
template <>
inline constexpr twin_kernel twin<layer_norm_backward_weight>{"layer_norm_backward_weight",
                                                              on_gpu::layer_norm_backward_weight};
template <>
inline constexpr twin_kernel twin<attention_forward>{"attention_forward", on_gpu::attention_forward, true};
template <>
inline constexpr twin_kernel twin<attention_backward>{"attention_backward", on_gpu::attention_backward, true};
template <>
inline constexpr twin_kernel twin<gelu_forward>{"gelu_forward", on_gpu::gelu_forward};
template <>
inline constexpr twin_kernel twin<gelu_backward>{"gelu_backward", on_gpu::gelu_backward};
template <>
inline constexpr twin_kernel twin<residual_add>{"residual_add", on_gpu::residual_add};
template <>
inline constexpr twin_kernel twin<embedding_forward>{"embedding_forward", on_gpu::embedding_forward};
template <>
inline constexpr twin_kernel twin<embedding_backward>{"embedding_backward", on_gpu::embedding_backward};
template <>
inline constexpr twin_kernel twin<mean_cross_entropy_forward>{"mean_cross_entropy_forward",
                                                              on_gpu::mean_cross_entropy_forward};
template <>
inline constexpr twin_kernel twin<mean_cross_entropy_backward>{"mean_cross_entropy_backward",
                                                               on_gpu::mean_cross_entropy_backward};

/// What products compute with on GPUs. Process-wide; set it before the first product.
[[nodiscard]] inline auto gpu_precision() -> precision& {
    static precision chosen = precision::f32;
    return chosen;
}

template <>
struct kernels_of<copipe::cuda_device> {
    static constexpr std::int64_t workspace_floats = std::int64_t{1} << 23; // 32 MiB, what cuBLAS advises for Hopper

    template <auto Kernel, class Shape, class... Arguments>
    static void launch(copipe::context<copipe::cuda_device>& c, Shape shape, Arguments const&... arguments) {
        tensor workspace;
        std::uint16_t const* weight = nullptr;
        if constexpr (twin<Kernel>.multiplies) {
            bool const rounds = gpu_precision() == precision::bf16;
            workspace = c.make({workspace_floats + (rounds ? bytes_in_bf16(shape) / 4 : 0)});
            if (rounds) ((weight = weight ? weight : rounded(c, arguments)), ...);
        }
        c.stream.launch(twin<Kernel>.name, [&](cudaStream_t stream) {
            gpu const on{stream, gpu_precision(), workspace.data<void>(), workspace.bytes(), weight};
            twin<Kernel>.function(on, shape, argument(arguments)...);
        });
    }
    [[nodiscard]] static auto scratch(attention_shape s) -> copipe::extents { return {s.heads, s.time, s.time}; }

private:
    /// A weight in bf16, rounded once in a run; null if it is to be rounded for this product only.
    [[nodiscard]] static auto rounded(copipe::context<copipe::cuda_device>& c, factor const& of)
        -> std::uint16_t const* {
        if (c.run == 0) return nullptr;
        operand const x{.rows = static_cast<int>(of.sizes[1]),
                        .columns = static_cast<int>(of.sizes[0]),
                        .lead = static_cast<int>(of.sizes[1])};
        if (c.run != of.copied_in) {
            if (!of.copy) of.copy = c.make({bytes_in_bf16(x) / 4});
            c.stream.launch("round_to_bf16", [&](cudaStream_t stream) {
                on_gpu::round_to_bf16({stream, precision::bf16, nullptr, 0}, x, of.value.data(),
                                      of.copy.data<std::uint16_t>());
            });
            of.copied_in = c.run;
        }
        return of.copy.data<std::uint16_t>();
    }
    template <class Other>
    [[nodiscard]] static auto rounded(copipe::context<copipe::cuda_device>&, Other const&) -> std::uint16_t const* {
        return nullptr;
    }
};

static_assert(copipe::layer<basic_embedding<copipe::cuda_device>, copipe::cuda_device> &&
              copipe::layer<basic_block<copipe::cuda_device>, copipe::cuda_device> &&
              copipe::layer<basic_head<copipe::cuda_device>, copipe::cuda_device>);

} // namespace gpt
