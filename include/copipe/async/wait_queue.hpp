// SPDX-License-Identifier: Apache-2.0
// The coroutines that wait for one condition of their own rank, and the simplest conditions: a one-shot event, a
// counter that only grows, and a turnstile. All are for one executor's thread; a channel is what crosses threads.
#pragma once

#include "copipe/async/executor.hpp"
#include "copipe/async/task.hpp"

#include <coroutine>
#include <cstdint>
#include <optional>
#include <stop_token>

namespace copipe {

/// A stop callback without type erasure or allocation: calls `Owner::on_stop()` when the token is stopped.
template <class Owner>
class on_stop_request {
public:
    void arm(std::stop_token const& stop, Owner& owner) {
        if (stop.stop_possible()) callback_.emplace(stop, call{&owner});
    }
    void disarm() noexcept { callback_.reset(); }

private:
    struct call {
        Owner* owner;
        void operator()() const noexcept { owner->on_stop(); }
    };
    std::optional<std::stop_callback<call>> callback_{};
};

/// Coroutines waiting for a number to be reached. Waiting allocates nothing; cancelling ends a wait with `cancelled`.
class wait_queue {
public:
    wait_queue() = default;
    wait_queue(wait_queue const&) = delete;
    auto operator=(wait_queue const&) -> wait_queue& = delete;

    /// One wait, until `wake(value)` with value >= `wanted`. Lives in the frame of the coroutine that waits.
    class [[nodiscard]] awaiter : waiter {
    public:
        /// For a number that outlives it and wakes the queue whenever it grows.
        awaiter(wait_queue& queue, std::uint64_t wanted, std::uint64_t const& reached) noexcept
            : queue_(&queue), wanted_(wanted), reached_(&reached) {}
        awaiter(awaiter const&) = delete;
        auto operator=(awaiter const&) -> awaiter& = delete;
        ~awaiter() { leave(); }

        [[nodiscard]] auto await_ready() const noexcept -> bool { return *reached_ >= wanted_; }
        [[nodiscard]] auto await_suspend(std::coroutine_handle<> self, environment const* inherited) -> bool {
            handle = self;
            env = inherited;
            if (inherited->stop.stop_requested()) throw cancelled{};
            queue_->insert(*this);
            inherited->waits ? enter(*inherited->waits) : stop_.arm(inherited->stop, *this);
            return true;
        }
        void await_resume() const {
            if (cancelled_) throw cancelled{};
        }

    private:
        friend class wait_queue;
        friend class wait_list;
        friend class on_stop_request<awaiter>;

        inline void enter(wait_list& of) noexcept;
        void leave() noexcept {
            if (!place_) return;
            *place_ = beside_;
            if (beside_) beside_->place_ = place_;
            place_ = nullptr;
        }
        void on_stop() noexcept {
            leave();
            if (!queue_) return; // already woken: the wait ends with its result
            queue_->erase(*this);
            cancelled_ = true;
            env->exec->post(*this);
        }

        wait_queue* queue_;
        awaiter* after_ = nullptr;
        awaiter* beside_ = nullptr; ///< in a wait_list
        awaiter** place_ = nullptr; ///< what points here in a wait_list, if in one
        std::uint64_t wanted_;
        std::uint64_t const* reached_;
        bool cancelled_ = false;
        on_stop_request<awaiter> stop_{};
    };

    /// Resumes, in the order of what they want, all that want at most `value`.
    void wake(std::uint64_t value) noexcept {
        while (first_ && first_->wanted_ <= value) {
            awaiter& woken = *first_;
            first_ = woken.after_;
            woken.queue_ = nullptr;
            woken.env->exec->post(woken);
        }
    }

private:
    void insert(awaiter& added) noexcept {
        awaiter** place = first_ && last_->wanted_ <= added.wanted_ ? &last_->after_ : &first_;
        while (*place && (*place)->wanted_ <= added.wanted_) place = &(*place)->after_;
        added.after_ = *place;
        *place = &added;
        if (!added.after_) last_ = &added;
    }
    void erase(awaiter& gone) noexcept {
        awaiter** place = &first_;
        awaiter* before = nullptr;
        while (*place != &gone) place = &(before = *place)->after_;
        *place = gone.after_;
        if (!gone.after_) last_ = before;
        gone.queue_ = nullptr;
    }

    awaiter* first_ = nullptr;
    awaiter* last_ = nullptr; ///< meaningful while first_ is
};

/// The waits of a scope's coroutines, to end them together: cheaper than a stop callback for each.
class wait_list {
public:
    wait_list() = default;
    wait_list(wait_list const&) = delete;
    auto operator=(wait_list const&) -> wait_list& = delete;

    void cancel_all() noexcept {
        while (first_) first_->on_stop();
    }

private:
    friend class wait_queue::awaiter;
    wait_queue::awaiter* first_ = nullptr;
};

inline void wait_queue::awaiter::enter(wait_list& of) noexcept {
    beside_ = of.first_;
    if (beside_) beside_->place_ = &beside_;
    place_ = &of.first_;
    of.first_ = this;
}

/// A number that only grows, and coroutines that wait for it to reach a value: the primitive of a pipeline.
class progress_counter {
public:
    [[nodiscard]] auto value() const noexcept -> std::uint64_t { return value_; }
    /// `co_await counter.reached(n)` goes on when the counter is at least n; throws `cancelled` if stopped before.
    [[nodiscard]] auto reached(std::uint64_t wanted) noexcept -> wait_queue::awaiter {
        return {waiting_, wanted, value_};
    }
    void advance(std::uint64_t by = 1) noexcept { waiting_.wake(value_ += by); }
    /// Back to zero, for the next step. Nobody may be waiting.
    void reset() noexcept { value_ = 0; }

private:
    std::uint64_t value_ = 0;
    wait_queue waiting_{};
};

/// An event that happens at most once until it is reset: `co_await event.wait()` goes on when it has been `set`.
class one_shot_event {
public:
    [[nodiscard]] auto is_set() const noexcept -> bool { return happened_.value() != 0; }
    [[nodiscard]] auto wait() noexcept -> wait_queue::awaiter { return happened_.reached(1); }
    void set() noexcept {
        if (!is_set()) happened_.advance();
    }
    void reset() noexcept { happened_.reset(); }

private:
    progress_counter happened_{};
};

/// Admits chunks to a rank's compute stream in program order, whatever order they become ready in.
class turnstile {
public:
    /// `co_await turnstile.turn(i)` goes on when turns 0 to i-1 have been passed on.
    [[nodiscard]] auto turn(std::uint64_t ticket) noexcept -> wait_queue::awaiter { return passed_.reached(ticket); }
    /// How many turns have been passed on.
    [[nodiscard]] auto passed() const noexcept -> std::uint64_t { return passed_.value(); }
    /// Ends the current turn.
    void pass() noexcept { passed_.advance(); }
    void reset() noexcept { passed_.reset(); }

private:
    progress_counter passed_{};
};

static_assert(awaitable<wait_queue::awaiter>);

} // namespace copipe
