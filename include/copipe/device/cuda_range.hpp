// SPDX-License-Identifier: Apache-2.0
// Ranges in a profiler's timeline (NVTX), named by rank, stage, what is done and micro-batch.
#pragma once

#include "copipe/device/device.hpp"

#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <string>
#include <utility>

namespace copipe {

/// "rank 1, stage 2, forward 7".
[[nodiscard]] inline auto text_of(work_label const& label) -> std::string {
    return "rank " + std::to_string(label.rank) + ", stage " + std::to_string(label.stage) + ", " +
           std::string(label.what) + " " + std::to_string(label.micro_batch);
}

/// A range from its construction to its destruction. The halves of an overlapped pair take turns on one thread, so it
/// is of the kind that need not nest. Without a profiler, or built without NVTX, it does nothing.
class cuda_range {
public:
    cuda_range() = default;
    explicit cuda_range([[maybe_unused]] work_label const& label) {
#if __has_include(<nvtx3/nvToolsExt.h>)
        id_ = nvtxRangeStartA(text_of(label).c_str());
        open_ = true;
#endif
    }
    cuda_range(cuda_range&& other) noexcept : id_(other.id_), open_(std::exchange(other.open_, false)) {}
    auto operator=(cuda_range&&) -> cuda_range& = delete;
    ~cuda_range() {
#if __has_include(<nvtx3/nvToolsExt.h>)
        if (open_) nvtxRangeEnd(id_);
#endif
    }

    /// Whether a profiler has started this program: it says so in the environment.
    [[nodiscard]] static auto wanted() -> bool { return std::getenv("NVTX_INJECTION64_PATH") != nullptr; }

private:
    std::uint64_t id_ = 0;
    bool open_ = false;
};

} // namespace copipe
