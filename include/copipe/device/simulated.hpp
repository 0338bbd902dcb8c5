// SPDX-License-Identifier: Apache-2.0
// The device model in virtual time: the engine's own coroutines, thousands of ranks in one thread, no work done and
// none waited for. Streams know when their work will end the moment it is enqueued, because they only wait for events
// already recorded.
#pragma once

#include "copipe/device/device.hpp"
#include "copipe/error.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <memory_resource>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace copipe {

/// The executor of all simulated ranks and their clock. Idle time does not pass: the clock jumps to the next
/// completion.
template <class = void> class basic_simulation final : public executor {
public:
    [[nodiscard]] auto now() const noexcept -> double { return now_; }

    /// Wakes a waiter at a moment of virtual time; waiters of one moment in the order of the calls.
    void wake_at(double time, waiter& w) { time > now_ ? enter({bits(time), &w}) : post(w); }

private:
    /// Moments are never negative, so their bits are ordered as they are.
    struct appointment {
        std::uint64_t when;
        waiter* who;
    };

    [[nodiscard]] static auto bits(double time) noexcept -> std::uint64_t { return std::bit_cast<std::uint64_t>(time); }

    /// A radix heap: an appointment lies in the bucket of the highest bit in which it differs from the present.
    void enter(appointment const& later) {
        auto const bucket = static_cast<std::size_t>(std::bit_width(later.when ^ bits(now_)) - 1);
        agenda_[bucket].push_back(later);
        used_ |= std::uint64_t{1} << bucket;
    }

    void idle() override {
        take_woken();
        if (run_one()) return;
        if (used_ == 0) return deadlocked();
        opened_.swap(agenda_[static_cast<std::size_t>(std::countr_zero(used_))]);
        used_ &= used_ - 1;
        auto const earlier = [](appointment const& a, appointment const& b) { return a.when < b.when; };
        now_ = std::bit_cast<double>(std::min_element(opened_.begin(), opened_.end(), earlier)->when);
        for (appointment const& each : opened_) each.when == bits(now_) ? post(*each.who) : enter(each);
        opened_.clear();
    }

    double now_ = 0;
    std::array<std::vector<appointment>, 64> agenda_{};
    std::uint64_t used_ = 0; ///< which buckets hold something, as bits
    std::vector<appointment> opened_{};
};

using simulation = basic_simulation<>;

/// How one simulated rank behaves. Seconds are virtual.
struct simulated_behaviour {
    double latency = 0;          ///< of a message to arrive here
    double seconds_per_byte = 0; ///< that a message keeps its link busy
    /// What a launch of `seconds` at `start` really takes: slowness, throttling, jitter (see seeded_stretch). As given
    /// if left out.
    std::function<double(double start, double seconds)> stretch{};
    double fails_at = std::numeric_limits<double>::infinity(); ///< launches that would end later than this throw
};

/// A `stretch` that is the same in every run from one seed: each launch takes `slowness` times as long, and up to
/// `jitter` of that more, drawn anew for every launch.
class seeded_stretch {
public:
    explicit seeded_stretch(std::uint64_t seed, double jitter, double slowness = 1) noexcept
        : state_(seed), jitter_(jitter), slowness_(slowness) {}

    [[nodiscard]] auto operator()(double, double seconds) noexcept -> double {
        std::uint64_t z = state_ += 0x9e3779b97f4a7c15ULL; // splitmix64
        z = (z ^ (z >> 30U)) * 0xbf58476d1ce4e5b9ULL;
        z = (z ^ (z >> 27U)) * 0x94d049bb133111ebULL;
        double const drawn = static_cast<double>((z ^ (z >> 31U)) >> 11U) * 0x1p-53;
        return seconds * slowness_ * (1 + jitter_ * drawn);
    }

private:
    std::uint64_t state_;
    double jitter_, slowness_;
};

template <class = void> class basic_simulated_stream;

/// A moment of virtual time.
template <class Lazy = void> class basic_simulated_event {
public:
    basic_simulated_event() = default;
    [[nodiscard]] auto done() const noexcept -> bool { return !stream_ || time_ <= stream_->clock_->now(); }
    [[nodiscard]] auto time() const noexcept -> double { return time_; }
    [[nodiscard]] auto on_completion(waiter& w) const -> bool {
        if (done()) return false;
        stream_->clock_->wake_at(time_, w);
        return true;
    }
    void check() const {
        if (stream_ && time_ > stream_->how_->fails_at) stream_->fail();
    }

    [[nodiscard]] auto completion() const noexcept { return completion_awaiter{*this}; }

private:
    using simulated_stream = basic_simulated_stream<Lazy>;
    friend simulated_stream;
    basic_simulated_event(simulated_stream* stream, double time) noexcept : stream_(stream), time_(time) {}
    simulated_stream* stream_ = nullptr;
    double time_ = 0;
};

using simulated_event = basic_simulated_event<>;

/// Hands out an address, its own, not memory, and counts the bytes. Aligned as those who allocate ask for.
class alignas(64) simulated_memory final : public std::pmr::memory_resource {
public:
    [[nodiscard]] auto in_use() const noexcept -> std::size_t { return in_use_; }
    [[nodiscard]] auto peak() const noexcept -> std::size_t { return peak_; }
    void reset_peak() noexcept { peak_ = in_use_; }

private:
    auto do_allocate(std::size_t bytes, std::size_t) -> void* override {
        peak_ = std::max(peak_, in_use_ += bytes);
        return this;
    }
    void do_deallocate(void*, std::size_t bytes, std::size_t) override { in_use_ -= bytes; }
    [[nodiscard]] auto do_is_equal(std::pmr::memory_resource const& other) const noexcept -> bool override {
        return this == &other;
    }

    std::size_t in_use_ = 0;
    std::size_t peak_ = 0;
};

/// A stream as the time at which all its work will have ended. A link's copies take its bandwidth, and arrive its
/// latency later.
template <class Lazy> class basic_simulated_stream {
public:
    using event = basic_simulated_event<Lazy>;

    basic_simulated_stream(simulation& clock, simulated_behaviour const& how, simulated_memory& memory,
                           bool link) noexcept
        : clock_(&clock), how_(&how), memory_(&memory), link_(link) {}

    /// Enqueues work that takes `seconds`.
    void launch(double seconds) {
        double const start = std::max(tail_, clock_->now());
        if (how_->stretch) seconds = how_->stretch(start, seconds);
        tail_ = start + seconds;
        failed_ = failed_ || tail_ > how_->fails_at;
    }
    void copy(void*, void const*, std::size_t bytes) {
        if (link_) tail_ = std::max(tail_, clock_->now()) + static_cast<double>(bytes) * how_->seconds_per_byte;
    }
    void zero(void*, std::size_t) noexcept {}
    void add(float*, float const*, std::size_t) noexcept {}
    [[nodiscard]] auto record(timing = timing::off) noexcept -> event {
        return {this, std::max(tail_, clock_->now()) + (link_ ? how_->latency : 0)};
    }
    void wait(event const& e) noexcept { tail_ = std::max(tail_, e.time_); }
    /// The host cannot wait in virtual time outside a coroutine; what was enqueued has an end already. Throws what
    /// failed.
    void synchronize() {
        if (std::exchange(failed_, false)) fail();
    }
    [[nodiscard]] auto memory() const noexcept -> std::pmr::memory_resource* { return memory_; }

private:
    friend event;
    [[noreturn]] void fail() const {
        throw error("the simulated device failed at " + std::to_string(how_->fails_at) + " s, as it was told to");
    }

    simulation* clock_;
    simulated_behaviour const* how_;
    simulated_memory* memory_;
    bool link_;
    bool failed_ = false;
    double tail_ = 0;
};

using simulated_stream = basic_simulated_stream<>;

/// A device of one simulated rank.
template <class = void> class basic_simulated_device {
public:
    using stream = simulated_stream;
    using event = simulated_event;

    explicit basic_simulated_device(simulation& clock, simulated_behaviour how = {})
        : clock_(&clock), how_(std::move(how)) {}

    [[nodiscard]] auto open_stream(std::string_view) -> simulated_stream& {
        return streams_.emplace_back(*clock_, how_, memory_, false);
    }
    [[nodiscard]] auto open_link(int) -> simulated_stream& {
        return streams_.emplace_back(*clock_, how_, memory_, true);
    }
    [[nodiscard]] auto now() const noexcept -> double { return clock_->now(); }
    [[nodiscard]] auto memory_in_use() const noexcept -> std::size_t { return memory_.in_use(); }
    [[nodiscard]] auto peak_memory() const noexcept -> std::size_t { return memory_.peak(); }
    void reset_peak_memory() noexcept { memory_.reset_peak(); }

private:
    simulation* clock_;
    simulated_behaviour how_;
    simulated_memory memory_{};
    std::deque<simulated_stream> streams_{};
};

using simulated_device = basic_simulated_device<>;

static_assert(device<simulated_device>);

} // namespace copipe
