// SPDX-License-Identifier: Apache-2.0
// A CUDA-like stream on the CPU: a FIFO of launches executed by a worker thread, events as snapshots of its progress.
#pragma once

#include "copipe/device/device.hpp"
#include "copipe/device/host_memory.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace copipe {

template <class = void> class basic_host_stream;

/// Seconds on the host's monotonic clock.
[[nodiscard]] inline auto host_seconds() noexcept -> double {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// The moment a timed event completed; recycled by the stream it was recorded in.
struct host_timestamp {
    double seconds = 0;
    host_timestamp* next = nullptr;
};

/// An event of a host_stream: "the first n launches have completed".
template <class Lazy = void> class basic_host_event {
public:
    basic_host_event() = default;
    basic_host_event(basic_host_event&& other) noexcept
        : stream_(std::exchange(other.stream_, nullptr)), launches_(other.launches_),
          stamp_(std::exchange(other.stamp_, nullptr)) {}
    auto operator=(basic_host_event&& other) noexcept -> basic_host_event& {
        std::swap(stream_, other.stream_);
        std::swap(launches_, other.launches_);
        std::swap(stamp_, other.stamp_);
        return *this;
    }
    ~basic_host_event() {
        if (stamp_) stamp_->next = std::exchange(stream_->free_stamps_, stamp_);
    }

    [[nodiscard]] auto done() const noexcept -> bool {
        return !stream_ || stream_->completed_.load(std::memory_order_acquire) >= launches_;
    }
    [[nodiscard]] auto time() const noexcept -> double { return stamp_ ? stamp_->seconds : 0; }
    [[nodiscard]] auto on_completion(waiter& w) const -> bool { return stream_ && stream_->notify_at(launches_, w); }
    void check() const {
        if (stream_ && stream_->failed_at_.load(std::memory_order_acquire) <= launches_) stream_->rethrow();
    }

    [[nodiscard]] auto completion() const noexcept { return completion_awaiter{*this}; }

private:
    using host_stream = basic_host_stream<Lazy>;
    friend host_stream;
    basic_host_event(host_stream& stream, std::uint64_t launches, host_timestamp* stamp) noexcept
        : stream_(&stream), launches_(launches), stamp_(stamp) {}

    host_stream* stream_ = nullptr;
    std::uint64_t launches_ = 0;
    host_timestamp* stamp_ = nullptr;
};

using host_event = basic_host_event<>;

/// Whether a stream has a worker thread of its own, or runs each launch at once on the thread that enqueues it.
enum class host_execution : bool { worker_thread, inline_ };

/// A FIFO of launches. One host thread enqueues (the rank's); a full queue of 256 launches blocks it, as CUDA does.
///
/// `launch(f)` enqueues any trivially destructible callable of at most 232 bytes: it must capture pointers and sizes,
/// never tensors, as a CUDA kernel would. If it throws, later launches are skipped until the failure has been reported:
/// by `check` of a later event, or by `synchronize`.
template <class Lazy> class basic_host_stream {
public:
    using event = basic_host_event<Lazy>;

    /// With `slowness`, which outlives the stream, launches take so many times as long; below 1 as long as they do.
    basic_host_stream(memory_ledger& ledger, host_execution execution, std::atomic<double> const* slowness = nullptr)
        : memory_(ledger), slowness_(slowness) {
        if (execution == host_execution::worker_thread) {
            queue_ = std::make_unique<queue>();
            worker_ = std::thread([this] { work(); });
        }
    }
    basic_host_stream(basic_host_stream const&) = delete;
    auto operator=(basic_host_stream const&) -> basic_host_stream& = delete;
    ~basic_host_stream() {
        if (worker_.joinable()) {
            enqueue([this] { stopping_ = true; });
            worker_.join();
        }
        while (free_stamps_) delete std::exchange(free_stamps_, free_stamps_->next);
    }

    template <std::invocable F>
    void launch(F f) {
        enqueue([this, f]() mutable noexcept {
            if (failed_at_.load(std::memory_order_relaxed) != never) return;
            try {
                at_speed(f);
            } catch (...) {
                failure_ = std::current_exception();
                failed_at_.store(completed_.load(std::memory_order_relaxed) + 1, std::memory_order_release);
            }
        });
    }

    void copy(void* to, void const* from, std::size_t bytes) {
        launch([=] {
            if (bytes != 0) std::memcpy(to, from, bytes); // of nothing, the addresses may be null
        });
    }
    void zero(void* to, std::size_t bytes) {
        launch([=] { std::memset(to, 0, bytes); });
    }
    void add(float* sum, float const* addend, std::size_t count) {
        launch([=] { std::transform(sum, sum + count, addend, sum, std::plus<>{}); });
    }

    [[nodiscard]] auto record(timing timed = timing::off) -> event {
        host_timestamp* stamp = nullptr;
        if (timed == timing::on) {
            stamp = free_stamps_ ? std::exchange(free_stamps_, free_stamps_->next) : new host_timestamp;
            enqueue([stamp]() noexcept { stamp->seconds = host_seconds(); });
        }
        return {*this, launched_, stamp};
    }

    void wait(event const& e) {
        if (!e.stream_ || e.stream_ == this || e.done()) return;
        enqueue([other = e.stream_, n = e.launches_]() noexcept { other->wait_on_host(n); });
    }

    void synchronize() {
        wait_on_host(launched_);
        if (failed_at_.load(std::memory_order_acquire) != never) rethrow();
    }

    [[nodiscard]] auto memory() noexcept -> std::pmr::memory_resource* { return &memory_; }

private:
    friend event;
    static constexpr std::uint64_t never = std::numeric_limits<std::uint64_t>::max();
    static constexpr std::size_t capacity = 256;

    struct slot {
        void (*run)(void*) = nullptr;
        alignas(16) std::array<std::byte, 240> callable;
    };
    using queue = std::array<slot, capacity>;

    /// Runs a launch, and lets as much time pass as a slower device would need more; asleep for most of it, so that it
    /// takes none of the others' cores.
    template <class F>
    void at_speed(F& f) {
        double const factor = slowness_ ? slowness_->load(std::memory_order_relaxed) : 1;
        double const start = factor > 1 ? host_seconds() : 0;
        f();
        if (factor <= 1) return;
        double const end = start + factor * (host_seconds() - start);
        double const nap = end - host_seconds() - 1e-4; // what a sleep may take longer
        if (nap > 1e-4) std::this_thread::sleep_for(std::chrono::duration<double>(nap));
        while (host_seconds() < end) {}
    }

    template <class F>
    void enqueue(F f) {
        static_assert(sizeof(F) <= sizeof(slot::callable) && alignof(F) <= 16,
                      "a launch captures at most 232 bytes: pass a pointer to what lives until it has run");
        static_assert(std::is_trivially_destructible_v<F>,
                      "a launch captures pointers and sizes, not owners: keep tensors alive on the host instead");
        if (!queue_) {
            f();
            completed_.store(++launched_, std::memory_order_release);
            return;
        }
        if (launched_ >= capacity) wait_on_host(launched_ - capacity + 1);
        slot& next = (*queue_)[launched_ % capacity];
        ::new (static_cast<void*>(next.callable.data())) F(std::move(f));
        next.run = [](void* callable) { (*std::launder(static_cast<F*>(callable)))(); };
        enqueued_.store(++launched_, std::memory_order_release);
        enqueued_.notify_one();
    }

    void work() {
        for (std::uint64_t next = 0; !stopping_; ++next) {
            enqueued_.wait(next, std::memory_order_acquire);
            slot& current = (*queue_)[next % capacity];
            current.run(current.callable.data());
            completed_.store(next + 1, std::memory_order_seq_cst);
            completed_.notify_all();
            if (waiting_.load(std::memory_order_seq_cst)) wake_waiters(next + 1);
        }
    }

    void wait_on_host(std::uint64_t launches) const noexcept {
        for (std::uint64_t seen; (seen = completed_.load(std::memory_order_acquire)) < launches;) completed_.wait(seen);
    }

    /// Waiters are few (at most one per chunk in flight) and come nearly in order.
    auto notify_at(std::uint64_t launches, waiter& w) -> bool {
        std::scoped_lock const lock{mutex_};
        waiting_.store(true, std::memory_order_seq_cst);
        if (completed_.load(std::memory_order_seq_cst) >= launches) return false;
        waiters_.push_back({launches, &w});
        return true;
    }
    void wake_waiters(std::uint64_t completed) {
        std::scoped_lock const lock{mutex_};
        std::size_t kept = 0;
        for (auto& each : waiters_) {
            if (each.launches <= completed)
                each.who->env->exec->wake(*each.who);
            else
                waiters_[kept++] = each;
        }
        waiters_.resize(kept);
        waiting_.store(kept != 0, std::memory_order_seq_cst);
    }

    void rethrow() {
        wait_on_host(launched_);
        failed_at_.store(never, std::memory_order_relaxed);
        std::rethrow_exception(std::exchange(failure_, nullptr));
    }

    struct pending {
        std::uint64_t launches;
        waiter* who;
    };

    host_memory memory_;
    std::atomic<double> const* slowness_;
    std::unique_ptr<queue> queue_{};
    std::uint64_t launched_ = 0;
    std::atomic<std::uint64_t> enqueued_{0};
    std::atomic<std::uint64_t> completed_{0};
    std::atomic<std::uint64_t> failed_at_{never};
    std::exception_ptr failure_{};
    host_timestamp* free_stamps_ = nullptr;
    std::atomic<bool> waiting_{false};
    std::mutex mutex_{};
    std::vector<pending> waiters_{};
    bool stopping_ = false;
    std::thread worker_{};
};

using host_stream = basic_host_stream<>;

static_assert(device_event<host_event> && device_stream<host_stream>);

} // namespace copipe
