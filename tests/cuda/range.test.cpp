// SPDX-License-Identifier: Apache-2.0
// What a profiler is told, by a profiler that is linked in: NVTX looks for one at its first call.
#include <cstdint>

extern "C" {
/// Where NVTX looks; it declares one that stays null where nobody else does.
extern int (*InitializeInjectionNvtx2_fnptr)(void const* (*tables)(std::uint32_t));
}
#define NVTX_STATIC_INJECTION_IMPL

#include "catch.hpp"
#include "cuda/toy.hpp"

#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/zb_h1.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

using namespace copipe;

namespace {

std::vector<std::string> begun;
std::size_t ended = 0;

auto begin_range(char const* name) -> nvtxRangeId_t {
    begun.emplace_back(name);
    return begun.size();
}
void end_range(nvtxRangeId_t) { ++ended; }

auto take_over(NvtxGetExportTableFunc_t tables) -> int {
    auto const* const known = static_cast<NvtxExportTableCallbacks const*>(tables(NVTX_ETID_CALLBACKS));
    NvtxFunctionTable core = nullptr;
    unsigned size = 0;
    if (known->GetModuleFunctionTable(NVTX_CB_MODULE_CORE, &core, &size) == 0) return 0;
    *core[NVTX_CBID_CORE_RangeStartA] = reinterpret_cast<NvtxFunctionPointer>(begin_range);
    *core[NVTX_CBID_CORE_RangeEnd] = reinterpret_cast<NvtxFunctionPointer>(end_range);
    return 1;
}

/// What the profiler is told in a step of two ranks with four micro-batches, with its word in the environment or not.
template <class Policy>
auto told_in_a_step(Policy const& policy, bool profiled) -> std::vector<std::string> {
    fake::machine gpus{fake::drive::by_test};
    if (profiled) ::setenv("NVTX_INJECTION64_PATH", "a profiler's library", 1);
    std::optional<cuda_toy::pipeline> piped;
    piped.emplace(gpus, policy, shape{2, 4}, cuda_toy::network(std::vector<cuda_toy::wave>(3)));
    ::unsetenv("NVTX_INJECTION64_PATH"); // it is not NVTX's to load
    begun.clear();
    ended = 0;
    piped->step_by_test();
    CHECK(ended == begun.size());
    std::sort(begun.begin(), begun.end());
    return begun;
}

} // namespace

NvtxInitializeInjectionNvtxFunc_t InitializeInjectionNvtx2_fnptr = take_over;

TEST_CASE("every chunk of a step is a range for a profiler, named by rank, stage, what is done, and micro-batch") {
    CHECK(told_in_a_step(zb_h1{}, false).empty());
    std::vector<std::string> expected;
    for (char const* const stage : {"rank 0, stage 0, ", "rank 1, stage 1, "})
        for (char const* const what : {"backward input ", "backward weight ", "forward "})
            for (char const* const micro_batch : {"0", "1", "2", "3"})
                expected.push_back(std::string(stage) + what + micro_batch);
    CHECK(told_in_a_step(zb_h1{}, true) == expected);

    auto const both_ways = told_in_a_step(dualpipe{}, true); // micro-batches 0 and 1 one way, 2 and 3 the other
    for (char const* const range : {"rank 0, stage 0, forward 1", "rank 0, stage 3, forward 3",
                                    "rank 1, stage 1, backward 0", "rank 1, stage 2, backward 2"})
        CHECK(std::count(both_ways.begin(), both_ways.end(), range) == 1);
}
