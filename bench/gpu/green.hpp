// SPDX-License-Identifier: Apache-2.0
// Green contexts: one GPU cut into parts with multiprocessors of their own. Reached through the runtime, so that a
// program that links no driver library still starts everywhere.
#pragma once

#include "copipe/error.hpp"

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <string>
#include <vector>

namespace bench {

/// A function of the driver. Its type is named after the version of CUDA that it came with: who asks for an older one
/// does not get it. Throws copipe::error.
template <class Function>
auto driver(char const* name, unsigned version) -> Function {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    cudaError_t const reported = cudaGetDriverEntryPointByVersion(name, &found, version, cudaEnableDefault, &result);
    if (reported != cudaSuccess || result != cudaDriverEntryPointSuccess || !found)
        throw copipe::error(std::string("the driver has no ") + name);
    return reinterpret_cast<Function>(found);
}
template <class Function, class... Arguments>
void call_driver(char const* name, unsigned version, Arguments... arguments) {
    CUresult const reported = driver<Function>(name, version)(arguments...);
    if (reported != CUDA_SUCCESS)
        throw copipe::error(std::string(name) + " reports " + std::to_string(static_cast<int>(reported)));
}

/// Parts of GPU 0 with equally many multiprocessors.
class green_parts {
public:
    explicit green_parts(unsigned wanted) {
        CUdevice gpu{};
        call_driver<PFN_cuDeviceGet_v2000>("cuDeviceGet", 2000, &gpu, 0);
        CUdevResource all{};
        call_driver<PFN_cuDeviceGetDevResource_v12040>("cuDeviceGetDevResource", 12040, gpu, &all,
                                                       CU_DEV_RESOURCE_TYPE_SM);
        unsigned const each = all.sm.smCount / wanted / 8 * 8; // groups come in eights on Hopper
        std::vector<CUdevResource> parts(wanted);
        unsigned count = wanted;
        call_driver<PFN_cuDevSmResourceSplitByCount_v12040>("cuDevSmResourceSplitByCount", 12040, parts.data(), &count,
                                                            &all, nullptr, 0U, each);
        if (count < wanted) throw copipe::error("the GPU cannot be cut into " + std::to_string(wanted) + " parts");
        for (CUdevResource& part : parts) {
            CUdevResourceDesc description{};
            call_driver<PFN_cuDevResourceGenerateDesc_v12040>("cuDevResourceGenerateDesc", 12040, &description, &part,
                                                              1U);
            CUgreenCtx made{};
            call_driver<PFN_cuGreenCtxCreate_v12040>("cuGreenCtxCreate", 12040, &made, description, gpu,
                                                     static_cast<unsigned>(CU_GREEN_CTX_DEFAULT_STREAM));
            contexts_.push_back(made);
            multiprocessors = part.sm.smCount;
        }
    }
    green_parts(green_parts const&) = delete;
    auto operator=(green_parts const&) -> green_parts& = delete;
    ~green_parts() {
        for (CUgreenCtx each : contexts_) driver<PFN_cuGreenCtxDestroy_v12040>("cuGreenCtxDestroy", 12040)(each);
    }

    [[nodiscard]] auto make_stream(std::size_t part, int priority) const -> cudaStream_t {
        CUstream made{};
        call_driver<PFN_cuGreenCtxStreamCreate_v12050>("cuGreenCtxStreamCreate", 12050, &made, contexts_[part],
                                                       static_cast<unsigned>(CU_STREAM_NON_BLOCKING), priority);
        return made;
    }

    unsigned multiprocessors = 0; ///< of each part

private:
    std::vector<CUgreenCtx> contexts_{};
};

} // namespace bench
