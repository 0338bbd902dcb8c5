// SPDX-License-Identifier: Apache-2.0
// CUDA's events as copipe's: pooled, counted, and awaited through a poller that asks only for the head of each stream.
#pragma once

#include "copipe/device/cuda_error.hpp"
#include "copipe/device/device.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace copipe {

/// One CUDA event, and what is known of its last record. Shared by a cuda_event and by those who wait for it.
struct cuda_record {
    static constexpr int unknown = -1;

    cudaEvent_t handle = nullptr;
    timing timed = timing::off;
    std::size_t stream = 0;           ///< index of the stream it was recorded in
    std::uint64_t number = 0;         ///< of the record in its stream, from 1
    std::atomic<int> outcome{unknown}; ///< of the work before it: a cudaError_t once it is over
    std::atomic<int> references{0};
    double seconds = 0; ///< when it completed, once someone has asked; 0 before

    /// Whether the work is over, well or not. From any thread.
    [[nodiscard]] auto over() noexcept -> bool {
        if (outcome.load(std::memory_order_acquire) != unknown) return true;
        cudaError_t const reported = cudaEventQuery(handle);
        if (reported == cudaErrorNotReady) return false;
        if (reported != cudaSuccess) cudaEventSynchronize(handle); // over, even so, unless the GPU is lost
        outcome.store(reported, std::memory_order_release);
        return true;
    }
    [[nodiscard]] auto succeeded() const noexcept -> bool {
        return outcome.load(std::memory_order_acquire) == cudaSuccess;
    }
};

/// The events of one device, created when needed and used again; those without timing cost a tenth.
class cuda_event_pool {
public:
    explicit cuda_event_pool(int device) noexcept : device_(device) {}
    cuda_event_pool(cuda_event_pool const&) = delete;
    auto operator=(cuda_event_pool const&) -> cuda_event_pool& = delete;
    ~cuda_event_pool() {
        for (cuda_record& each : all_) cudaEventDestroy(each.handle); // a failure now has been seen before
    }

    [[nodiscard]] auto take(timing timed) -> cuda_record& {
        std::scoped_lock const lock{mutex_};
        auto& free = free_[timed == timing::on ? 1 : 0];
        if (free.empty()) {
            cudaEvent_t handle = nullptr;
            require_cuda(
                cudaEventCreateWithFlags(&handle, timed == timing::on ? cudaEventDefault : cudaEventDisableTiming),
                "cudaEventCreateWithFlags", {device_, "events"});
            cuda_record& made = all_.emplace_back();
            made.handle = handle;
            made.timed = timed;
            free_[0].reserve(all_.size());
            free_[1].reserve(all_.size());
            free.push_back(&made);
        }
        cuda_record& taken = *free.back();
        free.pop_back();
        taken.outcome.store(cuda_record::unknown, std::memory_order_relaxed);
        taken.references.store(1, std::memory_order_relaxed);
        taken.seconds = 0;
        return taken;
    }
    void release(cuda_record& used) noexcept {
        if (used.references.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
        std::scoped_lock const lock{mutex_};
        free_[used.timed == timing::on ? 1 : 0].push_back(&used);
    }

private:
    int device_;
    std::mutex mutex_{};
    std::deque<cuda_record> all_{};
    std::vector<cuda_record*> free_[2]{};
};

/// Who asks whether events are over: a thread of the device, or the program, which calls `poll` when it has time.
enum class cuda_polling : bool { own_thread, by_program };

/// Wakes coroutines when the event they wait for is over. Asks CUDA only for the oldest event of each stream; not by a
/// host function on the stream, which would hold the stream up and never be called after an error.
class cuda_poller {
public:
    cuda_poller(int device, cuda_event_pool& events, cuda_polling how) : device_(device), events_(&events) {
        if (how == cuda_polling::own_thread) thread_ = std::thread([this] { work(); });
    }
    cuda_poller(cuda_poller const&) = delete;
    auto operator=(cuda_poller const&) -> cuda_poller& = delete;
    /// Nobody may be waiting.
    ~cuda_poller() {
        if (!thread_.joinable()) return;
        stopping_ = true;
        waiting_.fetch_add(1);
        waiting_.notify_one();
        thread_.join();
    }

    /// False if the event is over already; else the waiter is woken when it is. From any thread.
    auto add(cuda_record& record, waiter& who) -> bool {
        if (record.over()) return false;
        {
            std::scoped_lock const lock{mutex_};
            if (lists_.size() <= record.stream) lists_.resize(record.stream + 1);
            auto& list = lists_[record.stream];
            auto const later = [](std::uint64_t number, pending const& each) { return number < each.record->number; };
            list.insert(std::upper_bound(list.begin(), list.end(), record.number, later), pending{&record, &who});
            record.references.fetch_add(1, std::memory_order_relaxed);
            ++waits_;
        }
        if (waiting_.fetch_add(1, std::memory_order_release) == 0) waiting_.notify_one();
        return true;
    }

    /// Asks once for each stream that someone waits for; returns how many waiters were woken. One thread at a time.
    auto poll() -> std::size_t {
        std::size_t woken = 0;
        for (std::size_t stream = 0; cuda_record* const oldest = head(stream); ++stream) {
            if (oldest == &nobody_) continue;
            if (oldest->over()) woken += wake(stream, oldest->number);
            events_->release(*oldest);
        }
        return woken;
    }

    /// How often a coroutine has been suspended until the device came to an event.
    [[nodiscard]] auto waits() const -> std::uint64_t {
        std::scoped_lock const lock{mutex_};
        return waits_;
    }

private:
    struct pending {
        cuda_record* record;
        waiter* who;
    };

    /// The oldest event that someone waits for on a stream, held; `nobody_` if nobody does, null after the last stream.
    auto head(std::size_t stream) -> cuda_record* {
        std::scoped_lock const lock{mutex_};
        if (stream >= lists_.size()) return nullptr;
        if (lists_[stream].empty()) return &nobody_;
        cuda_record* const oldest = lists_[stream].front().record;
        oldest->references.fetch_add(1, std::memory_order_relaxed);
        return oldest;
    }

    auto wake(std::size_t stream, std::uint64_t number) -> std::size_t {
        {
            std::scoped_lock const lock{mutex_};
            auto& list = lists_[stream];
            auto const end = std::find_if(list.begin(), list.end(),
                                          [&](pending const& each) { return each.record->number > number; });
            woken_.assign(list.begin(), end);
            list.erase(list.begin(), end);
        }
        waiting_.fetch_sub(woken_.size(), std::memory_order_relaxed);
        for (pending const& each : woken_) {
            each.who->env->exec->wake(*each.who);
            events_->release(*each.record);
        }
        return woken_.size();
    }

    void work() {
        static_cast<void>(cudaSetDevice(device_));
        auto mode = cudaStreamCaptureModeThreadLocal; // a capture on another thread does not forbid the queries here
        static_cast<void>(cudaThreadExchangeStreamCaptureMode(&mode));
        for (std::size_t in_vain = 0; true;) {
            waiting_.wait(0, std::memory_order_acquire);
            if (stopping_) return;
            in_vain = poll() != 0 ? 0 : in_vain + 1;
            if (in_vain < 2000)
                std::this_thread::yield();
            else
                std::this_thread::sleep_for(std::chrono::microseconds(20));
        }
    }

    int device_;
    cuda_event_pool* events_;
    cuda_record nobody_{};
    mutable std::mutex mutex_{};
    std::vector<std::vector<pending>> lists_{}; ///< by stream, in order of record
    std::vector<pending> woken_{};
    std::uint64_t waits_ = 0;
    std::atomic<std::size_t> waiting_{0};
    std::atomic<bool> stopping_{false};
    std::thread thread_{};
};

} // namespace copipe
