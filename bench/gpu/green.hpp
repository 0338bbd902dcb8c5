// SPDX-License-Identifier: Apache-2.0
// Green contexts: one GPU cut into parts with multiprocessors of their own. Reached through the runtime, so that a
// program that links no driver library still starts everywhere.
#pragma once

#include "copipe/error.hpp"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <string>
#include <vector>

namespace bench {

/// Finds a function of the driver. Throws copipe::error.
template <class Function>
auto driver(char const* name, Function*) -> Function* {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    cudaError_t const reported = cudaGetDriverEntryPointByVersion(name, &found, 12040, cudaEnableDefault, &result);
    if (reported != cudaSuccess || result != cudaDriverEntryPointSuccess || !found)
        throw copipe::error(std::string("the driver has no ") + name);
    return reinterpret_cast<Function*>(found);
}

/// Parts of GPU 0 with equally many multiprocessors.
class green_parts {
public:
    explicit green_parts(unsigned wanted) {
        CUdevice gpu{};
        require(driver("cuDeviceGet", &cuDeviceGet)(&gpu, 0), "cuDeviceGet");
        CUdevResource all{};
        require(driver("cuDeviceGetDevResource", &cuDeviceGetDevResource)(gpu, &all, CU_DEV_RESOURCE_TYPE_SM),
                "cuDeviceGetDevResource");
        unsigned const each = all.sm.smCount / wanted / 8 * 8; // groups come in eights on Hopper
        std::vector<CUdevResource> parts(wanted);
        unsigned count = wanted;
        require(driver("cuDevSmResourceSplitByCount", &cuDevSmResourceSplitByCount)(parts.data(), &count, &all, nullptr,
                                                                                   0, each),
                "cuDevSmResourceSplitByCount");
        if (count < wanted) throw copipe::error("the GPU cannot be cut into " + std::to_string(wanted) + " parts");
        for (CUdevResource& part : parts) {
            CUdevResourceDesc description{};
            require(driver("cuDevResourceGenerateDesc", &cuDevResourceGenerateDesc)(&description, &part, 1),
                    "cuDevResourceGenerateDesc");
            CUgreenCtx made{};
            require(driver("cuGreenCtxCreate", &cuGreenCtxCreate)(&made, description, gpu, CU_GREEN_CTX_DEFAULT_STREAM),
                    "cuGreenCtxCreate");
            contexts_.push_back(made);
            multiprocessors = part.sm.smCount;
        }
    }
    green_parts(green_parts const&) = delete;
    auto operator=(green_parts const&) -> green_parts& = delete;
    ~green_parts() {
        for (CUgreenCtx each : contexts_) driver("cuGreenCtxDestroy", &cuGreenCtxDestroy)(each);
    }

    [[nodiscard]] auto make_stream(std::size_t part, int priority) const -> cudaStream_t {
        CUstream made{};
        require(driver("cuGreenCtxStreamCreate", &cuGreenCtxStreamCreate)(&made, contexts_[part],
                                                                         CU_STREAM_NON_BLOCKING, priority),
                "cuGreenCtxStreamCreate");
        return made;
    }

    unsigned multiprocessors = 0; ///< of each part

private:
    static void require(CUresult reported, char const* call) {
        if (reported != CUDA_SUCCESS)
            throw copipe::error(std::string(call) + " reports " + std::to_string(static_cast<int>(reported)));
    }
    std::vector<CUgreenCtx> contexts_{};
};

} // namespace bench
