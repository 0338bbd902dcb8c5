// SPDX-License-Identifier: Apache-2.0
// What copipe asks of a device: CUDA's programming model. The engine, the transports and the trainer are written
// against these concepts and know no device by name.
#pragma once

#include "copipe/async/task.hpp"

#include <concepts>
#include <coroutine>
#include <cstddef>
#include <memory_resource>
#include <string_view>

namespace copipe {

/// Whether an event notes when it completes. A timed event costs more: record one only where it is read.
enum class timing : bool { off, on };

/// What `completion()` of an event returns.
template <class Event>
class [[nodiscard]] completion_awaiter : waiter {
public:
    explicit completion_awaiter(Event const& event) noexcept : event_(&event) {}
    [[nodiscard]] auto await_ready() const noexcept -> bool { return event_->done(); }
    [[nodiscard]] auto await_suspend(std::coroutine_handle<> self, environment const* inherited) -> bool {
        handle = self;
        env = inherited;
        return event_->on_completion(*this);
    }
    static constexpr void await_resume() noexcept {}

private:
    Event const* event_;
};

/// A point in a stream. Move-only; it may outlive its completion, not its device. One that was default-constructed is
/// done. Another rank's thread may ask an event without timing whether it is done, await it, and destroy it.
///
/// Semantics: `done()` is true once all work enqueued before the record has completed. `time()`, of a timed event that
/// is done, is that moment in seconds on the device's clock. `co_await e.completion()` is the host-ordered await: it
/// suspends until done. It is not cancellable, because memory is freed after it, and does not throw: `check()`, of an
/// event that is done, throws what failed on the stream before it. `on_completion(waiter)` is what the await is made
/// of: false if already done, else the waiter is woken later (its executor's `wake`, from any thread).
template <class E>
concept device_event = std::movable<E> && std::default_initializable<E> && requires(E const& e, waiter& w) {
    { e.done() } -> std::same_as<bool>;
    { e.time() } -> std::same_as<double>;
    { e.completion() } -> awaitable;
    e.check();
    { e.on_completion(w) } -> std::same_as<bool>;
};

/// A FIFO of device work. Enqueuing never waits for earlier work (up to the launch queue's limit); `wait(event)` makes
/// later work of this stream wait for the event, not the host. Used from one host thread at a time, its rank's.
///
/// `memory()` is stream-ordered: a block freed by the host may be handed out again at once, because all later work of
/// this stream runs after the earlier. Whoever uses a block on another stream must keep it until that use has
/// completed.
template <class S>
concept device_stream = requires(S& s, typename S::event const& e, void* to, void const* from, float* sum,
                                 float const* addend, std::size_t count) {
    requires device_event<typename S::event>;
    { s.record(timing::on) } -> std::same_as<typename S::event>;
    s.wait(e);
    s.copy(to, from, count);   // count bytes; either side may be host memory
    s.zero(to, count);         // count bytes
    s.add(sum, addend, count); // sum[i] += addend[i], count floats
    s.synchronize();           // host waits for all enqueued work; throws what failed, and clears it
    { s.memory() } -> std::convertible_to<std::pmr::memory_resource*>;
};

/// A device of one rank. `open_stream(name)` returns a stream that lives as long as the device; `open_link(peer)` one
/// for what arrives from a rank, so that a late message of one peer does not hold up another's. `now()` is its clock,
/// in seconds, comparable between the ranks of one process. Memory figures are bytes handed out by its streams' memory.
template <class D>
concept device = requires(D& d, D const& c, std::string_view name, int peer) {
    requires device_stream<typename D::stream>;
    requires std::same_as<typename D::event, typename D::stream::event>;
    { d.open_stream(name) } -> std::same_as<typename D::stream&>;
    { d.open_link(peer) } -> std::same_as<typename D::stream&>;
    { c.now() } -> std::same_as<double>;
    { c.memory_in_use() } -> std::same_as<std::size_t>;
    { c.peak_memory() } -> std::same_as<std::size_t>;
    d.reset_peak_memory();
};

/// What a rank enqueues next, for a profiler.
struct work_label {
    int rank;
    int stage;
    int micro_batch; ///< numbered within the step
    std::string_view what;
};

/// What the device makes of a label until it is destroyed, if it has a `range`: a range in a profiler's timeline.
template <device D>
[[nodiscard]] auto range_on([[maybe_unused]] D& dev, [[maybe_unused]] work_label const& label) {
    if constexpr (requires { dev.range(label); })
        return dev.range(label);
    else
        return nullptr;
}

} // namespace copipe
