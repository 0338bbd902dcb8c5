// SPDX-License-Identifier: Apache-2.0
// A GPU as a copipe device, through the CUDA runtime alone: plain C++, to be linked with the CMake target copipe::cuda.
#pragma once

#include "copipe/device/cuda_range.hpp"
#include "copipe/device/cuda_stream.hpp"

#include <cstddef>
#include <deque>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

namespace copipe {

/// How a cuda_device is made.
struct cuda_options {
    int gpu = 0; ///< its number; several ranks may share one
    cuda_polling polling = cuda_polling::own_thread;
    /// Makes the device's streams; for those of a green context, or under a tool. Priorities are CUDA's: lower is more
    /// urgent. Left out, streams that do not wait for the default stream.
    std::function<cudaStream_t(int priority)> make_stream{};
};

/// A device of one rank on a GPU. Links, on which messages arrive, are more urgent than other streams. Times are the
/// GPU's, set to the host's clock when the first stream is opened, so that those of several GPUs compare to some
/// microseconds.
class cuda_device {
public:
    using stream = cuda_stream;
    using event = cuda_event;

    cuda_device() : cuda_device(cuda_options{}) {}
    /// Throws no_such_gpu or cuda_error.
    explicit cuda_device(cuda_options options)
        : options_(checked(std::move(options))), shared_(options_.gpu, options_.polling) {
        require_cuda(cudaDeviceGetStreamPriorityRange(&least_, &greatest_), "cudaDeviceGetStreamPriorityRange",
                     {gpu(), "device"});
    }
    cuda_device(cuda_device const&) = delete;
    auto operator=(cuda_device const&) -> cuda_device& = delete;
    /// Waits for all enqueued work: streams wait for each other's events and use each other's memory.
    ~cuda_device() {
        for (cuda_stream& each : streams_) each.settle();
        if (shared_.anchor) shared_.events.release(*shared_.anchor);
    }

    [[nodiscard]] auto open_stream(std::string_view name) -> cuda_stream& { return open(name, least_); }
    [[nodiscard]] auto open_link(int peer) -> cuda_stream& {
        return open("from rank " + std::to_string(peer), greatest_);
    }
    [[nodiscard]] auto now() const noexcept -> double { return host_seconds(); }
    [[nodiscard]] auto memory_in_use() const noexcept -> std::size_t { return shared_.ledger.in_use; }
    [[nodiscard]] auto peak_memory() const noexcept -> std::size_t { return shared_.ledger.peak; }
    void reset_peak_memory() noexcept { shared_.ledger.peak = shared_.ledger.in_use; }

    /// A range in the profiler's timeline, if the program runs under one.
    [[nodiscard]] auto range(work_label const& label) const -> cuda_range {
        return profiled_ ? cuda_range{label} : cuda_range{};
    }
    /// What kind of GPU it is. Throws cuda_error.
    [[nodiscard]] auto name() const -> std::string {
        cudaDeviceProp known{};
        require_cuda(cudaGetDeviceProperties(&known, gpu()), "cudaGetDeviceProperties", {gpu(), "device"});
        return known.name;
    }
    /// Bytes of the GPU's memory that nobody uses at the time. Throws cuda_error.
    [[nodiscard]] auto free_memory() const -> std::size_t {
        std::size_t unused = 0, all = 0;
        require_cuda(cudaSetDevice(gpu()), "cudaSetDevice", {gpu(), "device"});
        require_cuda(cudaMemGetInfo(&unused, &all), "cudaMemGetInfo", {gpu(), "device"});
        return unused;
    }
    /// Number of the GPU.
    [[nodiscard]] auto gpu() const noexcept -> int { return options_.gpu; }
    /// Who waits for events; a program that said `by_program` calls its `poll`.
    [[nodiscard]] auto poller() noexcept -> cuda_poller& { return shared_.poller; }

private:
    [[nodiscard]] static auto checked(cuda_options options) -> cuda_options {
        cuda_gpus::here().require(options.gpu);
        require_cuda(cudaSetDevice(options.gpu), "cudaSetDevice", {options.gpu, "device"});
        return options;
    }

    auto open(std::string_view name, int priority) -> cuda_stream& {
        cuda_place const at{gpu(), name};
        require_cuda(cudaSetDevice(gpu()), "cudaSetDevice", at);
        cudaStream_t handle = nullptr;
        if (options_.make_stream)
            handle = options_.make_stream(priority);
        else
            require_cuda(cudaStreamCreateWithPriority(&handle, cudaStreamNonBlocking, priority),
                         "cudaStreamCreateWithPriority", at);
        cuda_stream& opened = streams_.emplace_back(shared_, streams_.size(), name, handle);
        if (!shared_.anchor) set_clock(opened, handle);
        return opened;
    }

    /// Notes when the host's clock showed what: the stream is empty, so that its first event completes at once.
    void set_clock(cuda_stream& on, cudaStream_t handle) {
        cuda_record& anchor = shared_.events.take(timing::on);
        shared_.anchor = &anchor;
        require_cuda(cudaEventRecord(anchor.handle, handle), "cudaEventRecord", on.place());
        on.synchronize();
        shared_.anchored_at = now();
    }

    cuda_options options_;
    cuda_shared shared_;
    bool profiled_ = cuda_range::wanted();
    int least_ = 0;
    int greatest_ = 0;
    std::deque<cuda_stream> streams_{};
};

static_assert(device<cuda_device>);

} // namespace copipe
