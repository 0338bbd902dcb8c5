// SPDX-License-Identifier: Apache-2.0
// Kernels written in PTX, which the driver compiles when they are first used: so copipe's few need no CUDA compiler.
#pragma once

#include "copipe/device/cuda_error.hpp"

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace copipe {

/// A kernel: the name of its entry, and the entry in PTX, which follows `preamble`. Threads of a block: 256. It loops
/// over its items in strides of the whole grid, so that any grid will do.
struct cuda_kernel {
    char const* name;
    char const* ptx;

    static constexpr std::string_view preamble = ".version 7.0\n.target sm_75\n.address_size 64\n";
    static constexpr unsigned threads = 256;
    /// Enough blocks for the items, and no more than keep a large GPU busy.
    [[nodiscard]] static constexpr auto blocks(std::size_t items) noexcept -> unsigned {
        return static_cast<unsigned>(std::clamp<std::size_t>((items + threads - 1) / threads, 1, 1024));
    }
};

/// sum[i] += addend[i], of `count` floats.
inline constexpr cuda_kernel cuda_add{.name = "copipe_add", .ptx = R"(
.visible .entry copipe_add(.param .u64 sum, .param .u64 addend, .param .u64 count)
{
    .reg .pred %end;
    .reg .b32 %block, %size, %thread, %grid;
    .reg .b64 %i, %n, %step, %to, %from, %a, %b;
    .reg .f32 %x, %y;
    ld.param.u64 %to, [sum];
    ld.param.u64 %from, [addend];
    ld.param.u64 %n, [count];
    cvta.to.global.u64 %to, %to;
    cvta.to.global.u64 %from, %from;
    mov.u32 %block, %ctaid.x;
    mov.u32 %size, %ntid.x;
    mov.u32 %thread, %tid.x;
    mov.u32 %grid, %nctaid.x;
    cvt.u64.u32 %i, %thread;
    mul.wide.u32 %step, %block, %size;
    add.u64 %i, %i, %step;
    mul.wide.u32 %step, %grid, %size;
next:
    setp.ge.u64 %end, %i, %n;
    @%end bra done;
    shl.b64 %b, %i, 2;
    add.u64 %a, %to, %b;
    add.u64 %b, %from, %b;
    ld.global.f32 %x, [%a];
    ld.global.f32 %y, [%b];
    add.rn.f32 %x, %x, %y;
    st.global.f32 [%a], %x;
    add.u64 %i, %i, %step;
    bra next;
done:
    ret;
}
)"};

/// The kernels that one device has loaded.
class cuda_kernels {
public:
    explicit cuda_kernels(int device) noexcept : device_(device) {}
    cuda_kernels(cuda_kernels const&) = delete;
    auto operator=(cuda_kernels const&) -> cuda_kernels& = delete;
    ~cuda_kernels() {
        for (auto const& each : loaded_) cudaLibraryUnload(each.library); // a failure now has been seen before
    }

    /// What cudaLaunchKernel takes. Throws cuda_error.
    [[nodiscard]] auto load(cuda_kernel const& wanted) -> void const* {
        for (auto const& each : loaded_) {
            if (each.name == wanted.name) return each.kernel;
        }
        loaded_.reserve(loaded_.size() + 1);
        entry made{.name = wanted.name, .library = nullptr, .kernel = nullptr};
        std::string const module = std::string(cuda_kernel::preamble) + wanted.ptx;
        require_cuda(cudaLibraryLoadData(&made.library, module.c_str(), nullptr, nullptr, 0, nullptr, nullptr, 0),
                     "cudaLibraryLoadData", {device_, wanted.name});
        loaded_.push_back(made);
        cudaKernel_t kernel = nullptr;
        require_cuda(cudaLibraryGetKernel(&kernel, made.library, wanted.name), "cudaLibraryGetKernel",
                     {device_, wanted.name});
        return loaded_.back().kernel = kernel;
    }

private:
    struct entry {
        char const* name;
        cudaLibrary_t library;
        void const* kernel;
    };
    int device_;
    std::vector<entry> loaded_{};
};

} // namespace copipe
