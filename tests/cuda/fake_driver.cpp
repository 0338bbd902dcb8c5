// SPDX-License-Identifier: Apache-2.0
// The functions of the driver that cut a GPU into green contexts, as the runtime hands them out: each only to those who
// ask for a version of CUDA that has it. A part is 32 of 132 multiprocessors that do nothing.
#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <string_view>

namespace {

auto get_device(CUdevice* device, int number) -> CUresult { return *device = number, CUDA_SUCCESS; }
auto get_resource(CUdevice, CUdevResource* found, CUdevResourceType type) -> CUresult {
    *found = {};
    found->type = type;
    found->sm.smCount = 132;
    return CUDA_SUCCESS;
}
auto split(CUdevResource* parts, unsigned* count, CUdevResource const* all, CUdevResource*, unsigned, unsigned least)
    -> CUresult {
    if (least == 0 || least % 8 != 0) return CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION;
    *count = std::min(*count, all->sm.smCount / least);
    for (unsigned i = 0; i < *count; ++i) {
        parts[i] = *all;
        parts[i].sm.smCount = least;
    }
    return CUDA_SUCCESS;
}
auto describe(CUdevResourceDesc* made, CUdevResource* part, unsigned) -> CUresult {
    *made = reinterpret_cast<CUdevResourceDesc>(part);
    return CUDA_SUCCESS;
}
auto create(CUgreenCtx* made, CUdevResourceDesc part, CUdevice, unsigned flags) -> CUresult {
    if ((flags & CU_GREEN_CTX_DEFAULT_STREAM) == 0) return CUDA_ERROR_INVALID_VALUE;
    *made = reinterpret_cast<CUgreenCtx>(part);
    return CUDA_SUCCESS;
}
auto destroy(CUgreenCtx) -> CUresult { return CUDA_SUCCESS; }
auto create_stream(CUstream* made, CUgreenCtx, unsigned flags, int priority) -> CUresult {
    return cudaStreamCreateWithPriority(made, flags, priority) == cudaSuccess ? CUDA_SUCCESS : CUDA_ERROR_UNKNOWN;
}

struct entry {
    std::string_view name;
    unsigned since; ///< version of CUDA
    void* function;

    /// `Typed` has the version in its name, as CUDA's header spells it.
    template <class Typed>
    static auto of(std::string_view name, unsigned since, Typed function) -> entry {
        return {name, since, reinterpret_cast<void*>(function)};
    }
};
entry const entries[] = {
    entry::of<PFN_cuDeviceGet_v2000>("cuDeviceGet", 2000, get_device),
    entry::of<PFN_cuDeviceGetDevResource_v12040>("cuDeviceGetDevResource", 12040, get_resource),
    entry::of<PFN_cuDevSmResourceSplitByCount_v12040>("cuDevSmResourceSplitByCount", 12040, split),
    entry::of<PFN_cuDevResourceGenerateDesc_v12040>("cuDevResourceGenerateDesc", 12040, describe),
    entry::of<PFN_cuGreenCtxCreate_v12040>("cuGreenCtxCreate", 12040, create),
    entry::of<PFN_cuGreenCtxDestroy_v12040>("cuGreenCtxDestroy", 12040, destroy),
    entry::of<PFN_cuGreenCtxStreamCreate_v12050>("cuGreenCtxStreamCreate", 12050, create_stream)};

} // namespace

auto cudaGetDriverEntryPointByVersion(char const* name, void** found, unsigned version, unsigned long long,
                                      cudaDriverEntryPointQueryResult* result) -> cudaError_t {
    *found = nullptr;
    *result = cudaDriverEntryPointSymbolNotFound;
    for (entry const& each : entries) {
        if (each.name != name) continue;
        *result = version < each.since ? cudaDriverEntryPointVersionNotSufficent : cudaDriverEntryPointSuccess;
        if (version >= each.since) *found = each.function;
    }
    return cudaSuccess;
}
