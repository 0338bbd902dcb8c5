// SPDX-License-Identifier: Apache-2.0
// NCCL without a GPU: the functions that copipe calls, with NCCL's signatures, on the streams and in the virtual time
// of the fake CUDA runtime. As in the real one, operations of a communicator run in the order in which the host issues
// them, a send blocks its stream until its receive runs, and operations of a group make progress together, and an
// all-reduce ends when all ranks have come to it; it adds in the order of ranks. Nothing takes time.
#pragma once

#include "cuda/fake_cuda.hpp"

#include <nccl.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace fake {

/// NCCL's own state while this object lives; one at a time, and within the life of a machine.
class nccl_library {
public:
    nccl_library();
    nccl_library(nccl_library const&) = delete;
    auto operator=(nccl_library const&) -> nccl_library& = delete;
    ~nccl_library();

    /// Call number `number` (from 1, since the last call of this function or the beginning) fails. Calls that only look
    /// are not counted.
    void fail_call(std::uint64_t number, ncclResult_t code = ncclSystemError);
    /// The name of the call that failed so; empty if none did.
    [[nodiscard]] auto failed_call() const -> std::string;
    /// From now on the communicators of a rank's GPU report this when asked.
    void set_async_error(int gpu, ncclResult_t code);
    /// Groups with a send and a receive on one communicator, so far.
    [[nodiscard]] auto fused() const -> std::uint64_t;
    /// All-reduces done, each counted once for all its ranks.
    [[nodiscard]] auto reduced() const -> std::uint64_t;
    /// Communicators made and neither destroyed nor aborted; empty if none.
    [[nodiscard]] auto leaks() const -> std::string;
    /// How many communicators have been aborted.
    [[nodiscard]] auto aborted() const -> std::uint64_t;
};

} // namespace fake
