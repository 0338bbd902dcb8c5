// SPDX-License-Identifier: Apache-2.0
// What CUDA reports, as exceptions that name the call, the GPU and the stream; and which GPUs there are.
#pragma once

#include "copipe/error.hpp"

#include <cuda_runtime_api.h>

#include <string>
#include <string_view>

namespace copipe {

/// Where a call was made: on which GPU, for which stream or other purpose.
struct cuda_place {
    int device = 0;
    std::string_view what{};
};

/// A call of the CUDA runtime that failed. Failures of kernels show at a later call: the one that is named noticed.
class cuda_error : public error {
public:
    cuda_error(cudaError_t reported, std::string_view failed, cuda_place const& at)
        : error(sentence(reported, failed, at)), code(reported), call(failed), device(at.device), place(at.what) {}

    cudaError_t code;
    std::string call;  ///< "cudaMemcpyAsync", or the name of a kernel
    int device;        ///< number of the GPU
    std::string place; ///< the stream's name, or what else the call was for

private:
    static auto sentence(cudaError_t reported, std::string_view failed, cuda_place const& at) -> std::string {
        std::string text = "GPU " + std::to_string(at.device);
        if (!at.what.empty()) text += ", " + std::string(at.what);
        text += ": " + std::string(failed) + ": " + cudaGetErrorString(reported) + " (" + cudaGetErrorName(reported);
        if (reported == cudaErrorMemoryAllocation)
            return text + "); use fewer micro-batches in flight, recompute layers, or a smaller model";
        return text + "); compute-sanitizer, or CUDA_LAUNCH_BLOCKING=1, shows which kernel is at fault";
    }
};

/// No GPU of that number can be used here.
class no_such_gpu : public error {
public:
    no_such_gpu(int wanted, std::string const& there_are)
        : error("there is no GPU " + std::to_string(wanted) + ": " + there_are), device(wanted) {}
    int device;
};

/// Throws cuda_error unless the call succeeded. An error that later calls would repeat is taken off CUDA's record.
inline void require_cuda(cudaError_t reported, std::string_view call, cuda_place const& at) {
    if (reported == cudaSuccess) return;
    static_cast<void>(cudaGetLastError());
    throw cuda_error(reported, call, at);
}

/// The GPUs of this machine, numbered from 0. Without a driver there are none, and `why` says so in one sentence.
struct cuda_gpus {
    int count = 0;
    std::string why{}; ///< there are none, or how many there are

    [[nodiscard]] static auto here() -> cuda_gpus {
        cuda_gpus found;
        cudaError_t const reported = cudaGetDeviceCount(&found.count);
        if (reported != cudaSuccess) {
            static_cast<void>(cudaGetLastError());
            found.count = 0;
            found.why = "this machine has none that CUDA can use (" + std::string(cudaGetErrorString(reported)) + ")";
        } else if (found.count == 0) {
            found.why = "this machine has none";
        } else {
            found.why = "this machine has " + std::to_string(found.count) +
                        (found.count == 1 ? ", number 0" : ", numbered 0 to " + std::to_string(found.count - 1));
        }
        return found;
    }
    /// Throws no_such_gpu.
    void require(int number) const {
        if (number < 0 || number >= count) throw no_such_gpu(number, why);
    }
};

} // namespace copipe
