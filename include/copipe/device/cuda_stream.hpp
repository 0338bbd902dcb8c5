// SPDX-License-Identifier: Apache-2.0
// A CUDA stream and its events as copipe's device concept wants them. Nothing here makes the host wait but
// `synchronize`, and copies of more than a mebibyte between a GPU and ordinary host memory.
#pragma once

#include "copipe/device/cuda_event.hpp"
#include "copipe/device/cuda_kernel.hpp"
#include "copipe/device/cuda_memory.hpp"
#include "copipe/device/host_stream.hpp"

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <string>
#include <string_view>
#include <utility>

namespace copipe {

class cuda_stream;

/// What all streams of a device share.
struct cuda_shared {
    cuda_shared(int number, cuda_polling how)
        : device(number), pool(number), staging(number), kernels(number), events(number), poller(number, events, how) {}

    int device;
    memory_ledger ledger{};
    cuda_pool pool;
    cuda_staging staging;
    cuda_kernels kernels;
    cuda_event_pool events;
    cuda_poller poller;
    cuda_record* anchor = nullptr; ///< a timed event whose moment on the host's clock is known
    double anchored_at = 0;

    /// When a timed event completed, on the host's clock.
    [[nodiscard]] auto time_of(cuda_record& record) -> double {
        float milliseconds = 0;
        require_cuda(cudaEventElapsedTime(&milliseconds, anchor->handle, record.handle), "cudaEventElapsedTime",
                     {device, "clock"});
        record.seconds = anchored_at + 1e-3 * static_cast<double>(milliseconds);
        // A float of milliseconds grows coarse with distance: move the anchor along, where nobody looks at the record.
        if (milliseconds > 500 && record.references.load(std::memory_order_acquire) == 1) {
            std::swap(anchor->handle, record.handle);
            anchored_at = record.seconds;
        }
        return record.seconds;
    }
};

/// An event of a cuda_stream. The work before it is over, too, when it has failed: `check` throws that. After `check`
/// of an event that is done, what was copied to ordinary host memory before it is there. `check` and `time` are for
/// the thread of its stream's rank.
class cuda_event {
public:
    cuda_event() = default;
    cuda_event(cuda_event&& other) noexcept
        : stream_(std::exchange(other.stream_, nullptr)), record_(std::exchange(other.record_, nullptr)) {}
    auto operator=(cuda_event&& other) noexcept -> cuda_event& {
        std::swap(stream_, other.stream_);
        std::swap(record_, other.record_);
        return *this;
    }
    inline ~cuda_event();

    [[nodiscard]] auto done() const noexcept -> bool { return !record_ || record_->over(); }
    [[nodiscard]] inline auto time() const -> double;
    [[nodiscard]] inline auto on_completion(waiter& w) const -> bool;
    inline void check() const;
    /// CUDA's own; null for one that was default-constructed.
    [[nodiscard]] auto handle() const noexcept -> cudaEvent_t { return record_ ? record_->handle : nullptr; }

    [[nodiscard]] auto completion() const noexcept { return completion_awaiter{*this}; }

private:
    friend class cuda_stream;
    cuda_event(cuda_stream& stream, cuda_record& record) noexcept : stream_(&stream), record_(&record) {}
    cuda_stream* stream_ = nullptr;
    cuda_record* record_ = nullptr;
};

/// A stream of one device. Every call that may fail throws cuda_error, naming the stream.
///
/// Host memory on either side of a copy may be ordinary: up to a mebibyte it travels through pinned memory. What is
/// copied from it is read at once. What is copied to it is there when a later event, asked through `done`, `check` or
/// `completion`, is found over, or after `synchronize`; until then it must stay.
class cuda_stream {
public:
    using event = cuda_event;

    /// Takes over `handle`.
    cuda_stream(cuda_shared& shared, std::size_t index, std::string_view name, cudaStream_t handle)
        : shared_(&shared),
          index_(index),
          name_("stream " + std::string(name)),
          handle_(handle),
          memory_(shared.pool, handle, place(), shared.ledger) {}
    cuda_stream(cuda_stream const&) = delete;
    auto operator=(cuda_stream const&) -> cuda_stream& = delete;
    ~cuda_stream() {
        settle();
        cudaStreamDestroy(handle_); // a failure now has been seen before
    }

    /// The stream for calls of one's own. Makes its GPU the calling thread's current one.
    [[nodiscard]] auto handle() -> cudaStream_t {
        require_cuda(cudaSetDevice(shared_->device), "cudaSetDevice", place());
        return handle_;
    }
    [[nodiscard]] auto device() const noexcept -> int { return shared_->device; }
    [[nodiscard]] auto place() const noexcept -> cuda_place { return {shared_->device, name_}; }

    /// Calls `enqueue(cudaStream_t)`, which launches kernels, and throws if a launch was refused.
    template <std::invocable<cudaStream_t> Enqueue>
    void launch(std::string_view name, Enqueue&& enqueue) {
        enqueue(handle());
        require_cuda(cudaGetLastError(), name, place());
    }
    /// Launches a kernel in PTX on `blocks` blocks; the arguments must have the types it declares.
    template <class... Arguments>
    void launch(cuda_kernel const& kernel, unsigned blocks, Arguments... arguments) {
        cudaStream_t const on = handle();
        void* addresses[] = {&arguments...};
        require_cuda(cudaLaunchKernel(shared_->kernels.load(kernel), dim3{blocks}, dim3{cuda_kernel::threads},
                                      addresses, 0, on),
                     kernel.name, place());
    }

    void copy(void* to, void const* from, std::size_t bytes) {
        if (bytes == 0) return;
        cudaStream_t const on = handle();
        cudaPointerAttributes const target = attributes(to);
        cudaPointerAttributes const source = attributes(from);
        bool const from_gpu = source.type == cudaMemoryTypeDevice;
        bool const to_gpu = target.type == cudaMemoryTypeDevice;
        bool const staged = shared_->staging.fits(bytes);
        if (staged && from_gpu && target.type == cudaMemoryTypeUnregistered) {
            download(to, from, bytes);
        } else if (staged && to_gpu && source.type == cudaMemoryTypeUnregistered) {
            upload(to, from, bytes);
        } else if (from_gpu && to_gpu && source.device != target.device) {
            require_cuda(cudaMemcpyPeerAsync(to, target.device, from, source.device, bytes, on), "cudaMemcpyPeerAsync",
                         place());
        } else {
            enqueue_copy(to, from, bytes);
        }
    }
    void zero(void* to, std::size_t bytes) {
        if (bytes != 0) require_cuda(cudaMemsetAsync(to, 0, bytes, handle()), "cudaMemsetAsync", place());
    }
    void add(float* sum, float const* addend, std::size_t count) {
        if (count != 0) launch(cuda_add, cuda_kernel::blocks(count), sum, addend, std::uint64_t{count});
    }

    [[nodiscard]] auto record(timing timed = timing::off) -> cuda_event {
        cudaStream_t const on = handle();
        cuda_record& taken = shared_->events.take(timed);
        taken.stream = index_;
        taken.number = ++recorded_;
        cuda_event made{*this, taken};
        require_cuda(cudaEventRecord(taken.handle, on), "cudaEventRecord", place());
        return made;
    }
    void wait(cuda_event const& e) {
        if (!e.record_ || e.stream_ == this || e.record_->succeeded()) return;
        require_cuda(cudaStreamWaitEvent(handle(), e.record_->handle, 0), "cudaStreamWaitEvent", place());
    }
    void synchronize() {
        cudaError_t const reported = cudaStreamSynchronize(handle());
        if (reported != cudaSuccess) drop_landings();
        require_cuda(reported, "cudaStreamSynchronize", place());
        land(recorded_ + 1);
    }
    /// Waits for the work without a look at how it went, nor at what it should still have copied to host memory.
    void settle() noexcept {
        cudaStreamSynchronize(handle_);
        drop_landings();
    }

    [[nodiscard]] auto memory() noexcept -> std::pmr::memory_resource* { return &memory_; }

private:
    friend class cuda_event;

    /// A block of pinned memory in use until record `number` is over; if `to`, what lies in it is then copied there.
    struct landing {
        std::uint64_t number;
        void* block;
        void* to;
        std::size_t bytes;
    };

    [[nodiscard]] auto attributes(void const* pointer) const -> cudaPointerAttributes {
        cudaPointerAttributes found{};
        require_cuda(cudaPointerGetAttributes(&found, pointer), "cudaPointerGetAttributes", place());
        return found;
    }
    void enqueue_copy(void* to, void const* from, std::size_t bytes) {
        require_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, handle_), "cudaMemcpyAsync", place());
    }
    void download(void* to, void const* from, std::size_t bytes) {
        landing& next = stage(bytes);
        next.to = to;
        enqueue_copy(next.block, from, bytes);
    }
    void upload(void* to, void const* from, std::size_t bytes) {
        landing const& next = stage(bytes);
        std::memcpy(next.block, from, bytes);
        enqueue_copy(to, next.block, bytes);
    }
    auto stage(std::size_t bytes) -> landing& {
        landing& next = landings_.emplace_back(landing{recorded_ + 1, nullptr, nullptr, bytes});
        try {
            next.block = shared_->staging.take(bytes);
        } catch (...) {
            landings_.pop_back();
            throw;
        }
        return next;
    }
    void land(std::uint64_t number) noexcept {
        while (!landings_.empty() && landings_.front().number <= number) {
            landing const& arrived = landings_.front();
            if (arrived.to) std::memcpy(arrived.to, arrived.block, arrived.bytes);
            shared_->staging.give_back(arrived.block, arrived.bytes);
            landings_.pop_front();
        }
    }
    /// After a failure, when what is in the pinned memory counts for nothing.
    void drop_landings() noexcept {
        for (landing& each : landings_) each.to = nullptr;
        land(recorded_ + 1);
    }

    cuda_shared* shared_;
    std::size_t index_;
    std::string name_;
    cudaStream_t handle_;
    cuda_memory memory_;
    std::uint64_t recorded_ = 0;
    std::deque<landing> landings_{};
};

inline cuda_event::~cuda_event() {
    if (record_) stream_->shared_->events.release(*record_);
}
inline auto cuda_event::time() const -> double {
    if (!record_ || record_->timed == timing::off || !record_->over() || !record_->succeeded()) return 0;
    return record_->seconds != 0 ? record_->seconds : stream_->shared_->time_of(*record_);
}
inline auto cuda_event::on_completion(waiter& w) const -> bool {
    return record_ && stream_->shared_->poller.add(*record_, w);
}
inline void cuda_event::check() const {
    if (!record_ || !record_->over()) return;
    if (record_->succeeded()) return stream_->land(record_->number);
    auto const reported = static_cast<cudaError_t>(record_->outcome.load(std::memory_order_relaxed));
    require_cuda(reported, "cudaEventQuery", stream_->place());
}

static_assert(device_event<cuda_event> && device_stream<cuda_stream>);

} // namespace copipe
