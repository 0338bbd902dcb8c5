// SPDX-License-Identifier: Apache-2.0
// Where coroutines of one rank run: a run queue driven by one thread, and the environment every coroutine carries.
// Waiting allocates nothing, because a suspended coroutine's awaiter is itself the queue's node.
#pragma once

#include "copipe/error.hpp"

#include <atomic>
#include <concepts>
#include <coroutine>
#include <cstddef>
#include <functional>
#include <stop_token>
#include <thread>
#include <utility>

namespace copipe {

class alternation;
class executor;
class wait_list;

/// What a coroutine inherits from the one that awaits it: the executor that resumes it, the stop token that cancels its
/// awaits, and, inside an overlapped pair, its place in the alternation. Handed down by pointer, never looked up.
/// Outlives every coroutine that was given it.
struct environment {
    executor* exec = nullptr;
    std::stop_token stop{};
    wait_list* waits = nullptr;  ///< of the scope it runs in, if any: what `stop` ends without a callback of its own
    alternation* pair = nullptr; ///< the pair of `alternate(a, b)` this coroutine is one side of, if any
    int side = 0;                ///< 0 for a, 1 for b
};

/// Thrown by an await that was cancelled through the stop token of its environment.
class cancelled : public error {
public:
    cancelled() : error("cancelled: a sibling failed or the step was stopped") {}
};

/// Every coroutine of an executor waits, and nothing is under way that could wake one.
class deadlock_error : public error {
public:
    using error::error;
};

/// A suspended coroutine, as the list node that its awaiter embeds.
struct waiter {
    std::coroutine_handle<> handle{};
    environment const* env = nullptr;
    waiter* next = nullptr;

    /// Continues the coroutine, or, inside a pair, as soon as it is its side's turn. Only on the executor's thread.
    inline void resume();
};

/// A FIFO run queue for one thread. `post` is for that thread, `wake` for any other (a stream's worker, another rank).
///
/// Derived executors say what "nothing is ready" means: the base class sleeps until `wake`, `asio_executor` serves its
/// io_context, a simulation advances its clock. All coroutines of an executor must have ended before it is destroyed; a
/// thread that has just woken the last of them may still be inside `wake`, and is waited for.
class executor {
public:
    executor() = default;
    executor(executor const&) = delete;
    auto operator=(executor const&) -> executor& = delete;
    virtual ~executor() { await_wakers(); }

    /// Appends a coroutine to the run queue. Executor's thread only.
    void post(waiter& ready) noexcept {
        ready.next = nullptr;
        *std::exchange(tail_, &ready.next) = &ready;
    }

    /// Hands a coroutine over from any thread. The waiter may be resumed, and gone, before this returns.
    void wake(waiter& ready) noexcept {
        waking_.fetch_add(1, std::memory_order_relaxed);
        waiter* first = remote_.load(std::memory_order_relaxed);
        do ready.next = first;
        while (!remote_.compare_exchange_weak(first, &ready, std::memory_order_acq_rel, std::memory_order_relaxed));
        if (!first) notify();
        waking_.fetch_sub(1, std::memory_order_release);
    }

    /// Resumes coroutines in order until `done()`, asked after each; waits when there is none.
    template <std::predicate Done>
    void run_until(Done done) {
        while (!done()) {
            if (!run_one()) idle();
        }
    }

    /// Resumes the next ready coroutine; false when there is none.
    auto run_one() -> bool {
        waiter* const next = head_;
        if (!next) return false;
        head_ = next->next;
        if (!head_) tail_ = &head_;
        ++resumed_;
        next->resume();
        return true;
    }

    /// What to do when every coroutine waits and nothing is under way that could wake one, for instance to abort the
    /// transport so that every await ends. It must make something ready, and is called once. Only an executor that can
    /// know, such as a simulation, ever calls it; without it, that one throws deadlock_error out of run_until and
    /// leaves the coroutines suspended.
    void on_deadlock(std::function<void()> resolve) { resolve_deadlock_ = std::move(resolve); }

    /// How many coroutines this executor has resumed: the host suspensions of its ranks.
    [[nodiscard]] auto resumed() const noexcept -> std::size_t { return resumed_; }

protected:
    /// Called when the run queue is empty: returns when something may be in it, after `notify()` and `take_woken()`.
    virtual void idle() {
        remote_.wait(nullptr, std::memory_order_acquire);
        take_woken();
    }

    /// For those that can know: nothing is ready and nothing is under way.
    void deadlocked() {
        if (!resolve_deadlock_) throw deadlock_error("everything waits and no work is under way: this can never end");
        std::exchange(resolve_deadlock_, nullptr)();
    }

    /// Called by `wake` from any thread when the hand-over list was empty: makes `idle` return.
    virtual void notify() noexcept { remote_.notify_one(); }

    /// Moves the coroutines handed over from outside into the run queue.
    void take_woken() noexcept {
        waiter* newest = remote_.exchange(nullptr, std::memory_order_acq_rel);
        waiter* oldest = nullptr;
        while (newest) {
            waiter* const next = std::exchange(newest->next, oldest);
            oldest = std::exchange(newest, next);
        }
        while (oldest) {
            waiter* const next = oldest->next;
            post(*std::exchange(oldest, next));
        }
    }

    /// For destructors: waits until no thread is inside `wake`.
    void await_wakers() const noexcept {
        while (waking_.load(std::memory_order_acquire) != 0) std::this_thread::yield();
    }

private:
    waiter* head_ = nullptr;
    waiter** tail_ = &head_;
    std::size_t resumed_ = 0;
    std::atomic<waiter*> remote_{nullptr};
    std::atomic<int> waking_{0};
    std::function<void()> resolve_deadlock_{};
};

/// Two tasks of one rank that take turns: the state behind `alternate(a, b)`. A side keeps the turn until it suspends;
/// the other side then runs as soon as it can. The order of their steps therefore does not depend on timing.
class alternation {
public:
    /// Side 0 is about to run, in the environment `around`; side 1 will start with `second`.
    void prime(environment const& around, std::coroutine_handle<> second) noexcept {
        around_ = &around;
        next_[1] = second;
    }

    /// The side can go on with `next`: at once if it has the turn, else when the turn comes.
    void ready(int side, std::coroutine_handle<> next) {
        next_[side] = next;
        if (turn_ != side) return;
        if (around_->pair)
            around_->pair->ready(around_->side, take(side));
        else
            take(side).resume();
    }

    /// The side has suspended: whom to run now. When the other side is not ready yet either, the partner of a pair
    /// around this one, or a noop coroutine.
    [[nodiscard]] auto yield(int side) noexcept -> std::coroutine_handle<> {
        if (!done_[1 - side]) turn_ = 1 - side;
        if (next_[turn_]) return take(turn_);
        return around_->pair ? around_->pair->yield(around_->side) : std::noop_coroutine();
    }

    /// The side suspends only to let its partner run: it is ready again already.
    [[nodiscard]] auto offer(int side, std::coroutine_handle<> self) noexcept -> std::coroutine_handle<> {
        next_[side] = self;
        return yield(side);
    }

    /// The side has ended: whom to run now; null when both have.
    [[nodiscard]] auto finish(int side) noexcept -> std::coroutine_handle<> {
        done_[side] = true;
        return done_[1 - side] ? nullptr : yield(side);
    }

private:
    auto take(int side) noexcept -> std::coroutine_handle<> { return std::exchange(next_[side], nullptr); }

    environment const* around_ = nullptr;
    std::coroutine_handle<> next_[2]{};
    bool done_[2]{};
    int turn_ = 0;
};

inline void waiter::resume() {
    if (env && env->pair)
        env->pair->ready(env->side, handle);
    else
        handle.resume();
}

/// `co_await let_partner_run{}`: inside an overlapped pair, gives the turn to the partner; elsewhere goes on at once.
/// This is what a stream-ordered await does.
struct let_partner_run {
    [[nodiscard]] static constexpr auto await_ready() noexcept -> bool { return false; }
    [[nodiscard]] static auto await_suspend(std::coroutine_handle<> self, environment const* env) noexcept
        -> std::coroutine_handle<> {
        return env->pair ? env->pair->offer(env->side, self) : self;
    }
    static constexpr void await_resume() noexcept {}
};

/// `environment const& env = co_await this_environment{}`: what this coroutine inherited.
struct this_environment {
    environment const* env = nullptr;
    [[nodiscard]] static constexpr auto await_ready() noexcept -> bool { return false; }
    [[nodiscard]] auto await_suspend(std::coroutine_handle<>, environment const* own) noexcept -> bool {
        env = own;
        return false;
    }
    [[nodiscard]] auto await_resume() const noexcept -> environment const& { return *env; }
};

} // namespace copipe
