// SPDX-License-Identifier: Apache-2.0
// The default device: CUDA's streams, events and stream-ordered memory on CPU threads, so that an ordering mistake
// shows on a laptop.
#pragma once

#include "copipe/device/host_stream.hpp"

#include <atomic>
#include <cstddef>
#include <deque>
#include <string_view>

namespace copipe {

/// A device of one rank on the host. Each stream has a worker thread; with `host_execution::inline_` it has none, and
/// work runs where it is enqueued (for tests of ordering-free code and for measuring the engine itself).
template <class = void> class basic_host_device {
public:
    using stream = host_stream;
    using event = host_event;

    basic_host_device() = default;
    explicit basic_host_device(host_execution execution) : execution_(execution) {}
    basic_host_device(basic_host_device const&) = delete;
    auto operator=(basic_host_device const&) -> basic_host_device& = delete;
    /// Waits for all enqueued work: streams wait for each other's events and use each other's memory.
    ~basic_host_device() {
        for (host_stream& each : streams_) {
            try {
                each.synchronize();
            } catch (...) { // whoever wants to know has synchronized
            }
        }
    }

    [[nodiscard]] auto open_stream(std::string_view) -> host_stream& {
        return streams_.emplace_back(ledger_, execution_, &slowness_);
    }
    [[nodiscard]] auto open_link(int) -> host_stream& { return open_stream("link"); }
    [[nodiscard]] auto now() const noexcept -> double { return host_seconds(); }
    [[nodiscard]] auto memory_in_use() const noexcept -> std::size_t { return ledger_.in_use; }
    [[nodiscard]] auto peak_memory() const noexcept -> std::size_t { return ledger_.peak; }
    void reset_peak_memory() noexcept { ledger_.peak = ledger_.in_use; }
    /// From now on all work takes `factor` times as long, at least 1: for trying out what a slow rank does to the
    /// others. From any thread.
    void slow_down(double factor) noexcept { slowness_.store(factor, std::memory_order_relaxed); }

private:
    host_execution execution_ = host_execution::worker_thread;
    memory_ledger ledger_{};
    std::atomic<double> slowness_{1};
    std::deque<host_stream> streams_{};
};

using host_device = basic_host_device<>;

static_assert(device<host_device>);

} // namespace copipe
