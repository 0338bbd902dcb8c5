// SPDX-License-Identifier: Apache-2.0
// Structured concurrency for one rank: a scope starts tasks, cancels all of them when one fails, and is left only when
// every one has ended. And alternate(a, b): two tasks that take turns.
#pragma once

#include "copipe/async/task.hpp"
#include "copipe/async/wait_queue.hpp"

#include <cassert>
#include <coroutine>
#include <cstddef>
#include <exception>
#include <stop_token>
#include <type_traits>
#include <utility>
#include <variant>

namespace copipe {

/// Starts tasks that run beside each other on one executor.
///
///     scope children{co_await this_environment{}};
///     children.spawn(chunk(0));
///     children.spawn(chunk(1));
///     co_await children.join();
///
/// The first exception of a child is kept, requests a stop (awaits of the others throw `cancelled`), and is thrown by
/// `join`. Stopping the parent stops the children. Rules: `join` must have been awaited to its end before the scope is
/// destroyed (also when the body fails: `in_scope` sees to that); all calls on the executor's thread.
class scope final : task_owner {
public:
    explicit scope(environment const& parent)
        : env_{.exec = parent.exec, .stop = stop_.get_token(), .waits = &waits_},
          parent_stopped_(parent.stop, stop_all{this}) {}
    scope(scope const&) = delete;
    auto operator=(scope const&) -> scope& = delete;
    ~scope() { assert(running_ == 0 && "a scope was left before join() had ended"); }

    /// Starts a task; it runs at once until it first suspends.
    void spawn(task<> child) {
        std::coroutine_handle<> const start = child.prepare(*this, env_);
        child.release();
        ++running_;
        start.resume();
    }

    /// Makes every await of the children end with `cancelled`; `join` then throws `reason`, if it is the first failure.
    void cancel(std::exception_ptr reason) noexcept {
        if (!failure_) failure_ = std::move(reason);
        stop_.request_stop();
        waits_.cancel_all();
    }

    /// Ends when all children have; throws the first failure. Not cancellable itself: the children are.
    [[nodiscard]] auto join() -> task<> {
        while (running_ != 0) co_await idle_waiter{this};
        if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
    }

    [[nodiscard]] auto failed() const noexcept -> bool { return failure_ != nullptr; }

private:
    struct stop_all {
        scope* self;
        void operator()() const noexcept { self->cancel(std::make_exception_ptr(cancelled{})); }
    };
    struct idle_waiter : waiter {
        scope* self;
        explicit idle_waiter(scope* s) noexcept : self(s) {}
        [[nodiscard]] static constexpr auto await_ready() noexcept -> bool { return false; }
        void await_suspend(std::coroutine_handle<> awaiting, environment const* inherited) noexcept {
            handle = awaiting;
            env = inherited;
            self->joining_ = this;
        }
        static constexpr void await_resume() noexcept {}
    };

    auto finished(std::coroutine_handle<> child, std::exception_ptr failure) noexcept
        -> std::coroutine_handle<> override {
        child.destroy();
        if (failure) cancel(std::move(failure));
        if (--running_ == 0 && joining_) {
            waiter& joined = *std::exchange(joining_, nullptr);
            joined.env->exec->post(joined);
        }
        return std::noop_coroutine();
    }

    std::stop_source stop_{};
    wait_list waits_{};
    environment env_;
    std::size_t running_ = 0;
    waiter* joining_ = nullptr;
    std::exception_ptr failure_{};
    std::stop_callback<stop_all> parent_stopped_;
};

/// Runs `body(scope&) -> task<>` and joins the scope whether the body returns or throws. `body` must outlive the await:
/// name the lambda (g++ 12 destroys a capturing temporary in a co_await expression twice).
template <class Body>
    requires std::is_invocable_r_v<task<>, Body&, scope&>
auto in_scope(Body& body) -> task<> {
    environment const& env = co_await this_environment{};
    scope children{env};
    std::exception_ptr failure;
    try {
        co_await body(children);
    } catch (...) {
        failure = std::current_exception();
    }
    if (failure) children.cancel(failure);
    co_await children.join();
}

template <class T>
using value_or_monostate = std::conditional_t<std::is_void_v<T>, std::monostate, T>;

/// The awaitable behind `alternate`.
template <class A, class B>
class [[nodiscard("nothing runs until it is awaited")]] alternate final : task_owner {
public:
    alternate(task<A> a, task<B> b) noexcept : a_(std::move(a)), b_(std::move(b)) {}
    alternate(alternate const&) = delete;
    auto operator=(alternate const&) -> alternate& = delete;

    [[nodiscard]] static constexpr auto await_ready() noexcept -> bool { return false; }
    [[nodiscard]] auto await_suspend(std::coroutine_handle<> awaiting, environment const* inherited)
        -> std::coroutine_handle<> {
        awaiting_ = awaiting;
        for (int side : {0, 1})
            env_[side] = {inherited->exec, inherited->stop, inherited->waits, &turns_, side};
        first_ = a_.prepare(*this, env_[0]);
        turns_.prime(*inherited, b_.prepare(*this, env_[1]));
        return first_;
    }
    /// Both results (std::monostate for void); throws a's failure, else b's.
    auto await_resume() -> std::pair<value_or_monostate<A>, value_or_monostate<B>> { return {take(a_), take(b_)}; }

private:
    auto finished(std::coroutine_handle<> done, std::exception_ptr) noexcept -> std::coroutine_handle<> override {
        std::coroutine_handle<> const next = turns_.finish(done == first_ ? 0 : 1);
        return next ? next : awaiting_;
    }
    template <class T>
    static auto take(task<T>& t) -> value_or_monostate<T> {
        if constexpr (std::is_void_v<T>)
            return t.result(), std::monostate{};
        else
            return t.result();
    }

    task<A> a_;
    task<B> b_;
    alternation turns_{};
    environment env_[2];
    std::coroutine_handle<> first_{};
    std::coroutine_handle<> awaiting_{};
};

} // namespace copipe
