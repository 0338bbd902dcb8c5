// SPDX-License-Identifier: Apache-2.0
// NCCL's communicators and groups as owning types: a send outside a group cannot be written, an error is an exception.
#pragma once

#include "copipe/error.hpp"

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <atomic>
#include <cstddef>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

namespace copipe {

/// A call of NCCL that failed.
class nccl_error : public error {
public:
    nccl_error(ncclResult_t reported, std::string_view failed, std::string_view where)
        : error(sentence(reported, failed, where)), code(reported), call(failed) {}
    ncclResult_t code;
    std::string call; ///< "ncclGroupEnd"

private:
    static auto sentence(ncclResult_t reported, std::string_view failed, std::string_view where) -> std::string {
        std::string text = std::string(where) + (where.empty() ? "" : ": ") + std::string(failed) + ": " +
                           ncclGetErrorString(reported);
        if (char const* const last = ncclGetLastError(nullptr); last && *last) text += " (" + std::string(last) + ")";
        return text + "; NCCL_DEBUG=WARN says more";
    }
};

/// Throws nccl_error unless the call succeeded; `where` names rank and peer.
inline void require_nccl(ncclResult_t reported, std::string_view call, std::string_view where = {}) {
    if (reported != ncclSuccess) throw nccl_error(reported, call, where);
}

/// Operations between its construction and `end` run together. On one thread, one at a time.
class nccl_group {
public:
    nccl_group() { require_nccl(ncclGroupStart(), "ncclGroupStart"); }
    nccl_group(nccl_group const&) = delete;
    auto operator=(nccl_group const&) -> nccl_group& = delete;
    /// Without `end`, because of an exception: what was begun may run or not, its communicators are to be aborted.
    ~nccl_group() {
        if (open_) ncclGroupEnd();
    }
    void end(std::string_view where) {
        open_ = false;
        require_nccl(ncclGroupEnd(), "ncclGroupEnd", where);
    }
    /// On a thread that does no more with NCCL: what was begun never runs.
    void forget() noexcept { open_ = false; }

private:
    bool open_ = true;
};

/// One rank's end of a communicator. Operations are for the rank's thread; `check` and `abort` for any.
class nccl_communicator {
public:
    /// The communicator exists when the group has ended on both sides; until then this object must stay where it is.
    /// `own` is this end's number among `ranks`. Uses the thread's current GPU. `where` is said in errors.
    nccl_communicator(nccl_group&, ncclUniqueId const& id, int ranks, int own, int max_ctas, std::string where)
        : where_(std::move(where)) {
        ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
        config.blocking = 1; // a nonblocking one starts a thread for every group
        if (max_ctas > 0) config.maxCTAs = max_ctas;
        require_nccl(ncclCommInitRankConfig(&handle_, ranks, id, own, &config), "ncclCommInitRankConfig", where_);
    }
    nccl_communicator(nccl_communicator const&) = delete;
    auto operator=(nccl_communicator const&) -> nccl_communicator& = delete;
    /// Waits for its operations; whoever cannot know that they end aborts first. A failure now has been seen before.
    ~nccl_communicator() {
        if (handle_ && !aborted_) ncclCommDestroy(handle_);
    }

    void send(nccl_group&, int to, void const* data, std::size_t bytes, cudaStream_t stream) {
        std::scoped_lock const lock{in_use_};
        require_open();
        require_nccl(ncclSend(data, bytes, ncclInt8, to, handle_, stream), "ncclSend", where_);
    }
    void receive(nccl_group&, int from, void* data, std::size_t bytes, cudaStream_t stream) {
        std::scoped_lock const lock{in_use_};
        require_open();
        require_nccl(ncclRecv(data, bytes, ncclInt8, from, handle_, stream), "ncclRecv", where_);
    }
    /// Adds up 32-bit floats of all ranks, in place, in whatever order NCCL finds best.
    void all_reduce(nccl_group&, float* data, std::size_t count, cudaStream_t stream) {
        std::scoped_lock const lock{in_use_};
        require_open();
        require_nccl(ncclAllReduce(data, data, count, ncclFloat32, ncclSum, handle_, stream), "ncclAllReduce", where_);
    }
    [[nodiscard]] auto where() const noexcept -> std::string const& { return where_; }

    /// Throws nccl_error if something went wrong between the peers since.
    void check() {
        std::unique_lock const lock{in_use_, std::try_to_lock};
        if (!lock || !handle_ || aborted_) return;
        ncclResult_t state = ncclSuccess;
        require_nccl(ncclCommGetAsyncError(handle_, &state), "ncclCommGetAsyncError", where_);
        if (state != ncclInProgress) require_nccl(state, "an operation under way", where_);
    }

    /// Ends all operations, here if not on the other side; nothing but the destructor may follow. May take long.
    void abort() noexcept {
        std::unique_lock lock{in_use_, std::defer_lock};
        for (int i = 0; i < 100 && !lock.try_lock(); ++i) std::this_thread::yield();
        if (handle_ && !aborted_.exchange(true)) ncclCommAbort(handle_);
    }

private:
    void require_open() const {
        if (handle_ && !aborted_) return;
        throw nccl_error(ncclInvalidUsage, "an operation after the communicator was aborted", where_);
    }

    ncclComm_t handle_ = nullptr;
    std::string where_;
    std::mutex in_use_{};
    std::atomic<bool> aborted_{false};
};

} // namespace copipe
