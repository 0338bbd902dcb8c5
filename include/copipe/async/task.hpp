// SPDX-License-Identifier: Apache-2.0
// task<T>: a lazy coroutine. It starts when awaited, resumes its awaiter by symmetric transfer when it ends, and takes
// its frame from the thread's frame_pool.
#pragma once

#include "copipe/async/executor.hpp"
#include "copipe/async/frame_pool.hpp"

#include <coroutine>
#include <cstddef>
#include <exception>
#include <optional>
#include <type_traits>
#include <utility>
#include <variant>

namespace copipe {

/// What a copipe coroutine can `co_await`: besides another task, any type whose `await_suspend` takes the awaiting
/// handle and its environment. `await_suspend` returns void, bool or the handle to run next, with their usual meaning;
/// the coroutine counts as suspended (and gives its turn to a partner) in the first two cases.
///
///     struct my_event {
///         auto await_ready() const noexcept -> bool;
///         void await_suspend(std::coroutine_handle<> self, copipe::environment const* env); // later: env->exec->post
///         auto await_resume() -> int;
///     };
template <class A>
concept awaitable = requires(A& a, std::coroutine_handle<> self, environment const* env) {
    { a.await_ready() } -> std::convertible_to<bool>;
    a.await_suspend(self, env);
    a.await_resume();
};

/// Whoever starts a task without awaiting it (a scope, an alternation, a thread) and is told when it ends.
class task_owner {
public:
    /// Called once, when the coroutine is suspended at its end: may destroy the task; returns whom to run next.
    virtual auto finished(std::coroutine_handle<> task, std::exception_ptr failure) noexcept
        -> std::coroutine_handle<> = 0;

protected:
    ~task_owner() = default;
};

template <class T>
class task;

/// The part of a task's promise that does not depend on its result.
class promise_base {
public:
    environment const* env = nullptr;
    task_owner* owner = nullptr;
    std::coroutine_handle<> continuation = std::noop_coroutine();
    std::exception_ptr failure{};

    static auto operator new(std::size_t bytes) -> void* { return frame_pool::allocate(bytes); }
    static void operator delete(void* frame, std::size_t bytes) noexcept { frame_pool::deallocate(frame, bytes); }

    struct final_awaiter {
        [[nodiscard]] static constexpr auto await_ready() noexcept -> bool { return false; }
        template <class Promise>
        [[nodiscard]] static auto await_suspend(std::coroutine_handle<Promise> self) noexcept
            -> std::coroutine_handle<> {
            promise_base& promise = self.promise();
            return promise.owner ? promise.owner->finished(self, promise.failure) : promise.continuation;
        }
        static constexpr void await_resume() noexcept {}
    };

    [[nodiscard]] static constexpr auto initial_suspend() noexcept -> std::suspend_always { return {}; }
    [[nodiscard]] static constexpr auto final_suspend() noexcept -> final_awaiter { return {}; }
    void unhandled_exception() noexcept { failure = std::current_exception(); }

    /// Adapts an awaitable to the compiler's protocol: hands it the environment, and the turn to the partner, if any.
    template <awaitable A>
    struct adapted {
        A& inner;
        environment const* env;

        [[nodiscard]] auto await_ready() -> bool { return inner.await_ready(); }
        [[nodiscard]] auto await_suspend(std::coroutine_handle<> self) -> std::coroutine_handle<> {
            environment const* const own = env; // this frame may be resumed, and gone, once `inner` has suspended
            using result = decltype(inner.await_suspend(self, own));
            if constexpr (std::is_convertible_v<result, std::coroutine_handle<>>) {
                return inner.await_suspend(self, own);
            } else if constexpr (std::is_same_v<result, bool>) {
                if (!inner.await_suspend(self, own)) return self;
            } else {
                inner.await_suspend(self, own);
            }
            return own->pair ? own->pair->yield(own->side) : std::noop_coroutine();
        }
        decltype(auto) await_resume() { return inner.await_resume(); }
    };

    template <class A>
        requires awaitable<std::remove_reference_t<A>>
    [[nodiscard]] auto await_transform(A&& a) noexcept { return adapted<std::remove_reference_t<A>>{a, env}; }
    template <class A>
        requires(!awaitable<std::remove_reference_t<A>>)
    void await_transform(A&&) const {
        static_assert(sizeof(A) == 0,
                      "this cannot be awaited in a copipe::task: await a task, a copipe awaitable, or an Asio "
                      "operation with the completion token copipe::use_task");
    }
};

template <class T>
class promise final : public promise_base {
public:
    auto get_return_object() noexcept -> task<T>;
    template <class U = T>
        requires std::is_constructible_v<T, U&&>
    void return_value(U&& value) { value_.emplace(std::forward<U>(value)); }
    [[nodiscard]] auto result() -> T {
        if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
        return *std::move(value_);
    }

private:
    std::optional<T> value_{};
};

template <>
class promise<void> final : public promise_base {
public:
    inline auto get_return_object() noexcept -> task<void>;
    static constexpr void return_void() noexcept {}
    void result() {
        if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
    }
};

/// A lazy coroutine that yields a T or throws.
///
/// Lifetime: a task is either never started, or run to its end, before it is destroyed; arguments taken by reference
/// must outlive it. It runs on the executor of whoever awaits it. Cancelling never destroys a suspended task: its
/// current await throws `cancelled`, and it unwinds like on any exception.
template <class T = void>
class [[nodiscard("a task does nothing until it is awaited")]] task {
public:
    using promise_type = promise<T>;

    task(task&& other) noexcept : coroutine_(std::exchange(other.coroutine_, nullptr)) {}
    auto operator=(task&& other) noexcept -> task& {
        std::swap(coroutine_, other.coroutine_);
        return *this;
    }
    ~task() {
        if (coroutine_) coroutine_.destroy();
    }

    [[nodiscard]] static constexpr auto await_ready() noexcept -> bool { return false; }
    [[nodiscard]] auto await_suspend(std::coroutine_handle<> awaiting, environment const* env) noexcept
        -> std::coroutine_handle<> {
        coroutine_.promise().env = env;
        coroutine_.promise().continuation = awaiting;
        return coroutine_;
    }
    auto await_resume() -> T { return coroutine_.promise().result(); }

    /// For owners: sets who is told of the end and what the coroutine inherits; the returned handle starts it.
    [[nodiscard]] auto prepare(task_owner& owner, environment const& env) noexcept -> std::coroutine_handle<> {
        coroutine_.promise().env = &env;
        coroutine_.promise().owner = &owner;
        return coroutine_;
    }
    /// For owners: gives up the frame; `finished` must destroy the handle it is called with.
    void release() noexcept { coroutine_ = nullptr; }
    /// For owners, after `finished`: the value, or throws what the task threw.
    auto result() -> T { return coroutine_.promise().result(); }

private:
    friend promise_type;
    explicit task(std::coroutine_handle<promise_type> coroutine) noexcept : coroutine_(coroutine) {}

    std::coroutine_handle<promise_type> coroutine_;
};

static_assert(awaitable<task<int>> && awaitable<task<>> && awaitable<let_partner_run>);

template <class T>
auto promise<T>::get_return_object() noexcept -> task<T> {
    return task<T>{std::coroutine_handle<promise>::from_promise(*this)};
}
inline auto promise<void>::get_return_object() noexcept -> task<void> {
    return task<void>{std::coroutine_handle<promise>::from_promise(*this)};
}

/// A result that is there already, or the task that will have it: to return where most calls have nothing to await, and
/// a coroutine's frame would be for nothing.
template <class T = void>
class [[nodiscard("what it holds may not have been done until it is awaited")]] result_or_task {
    using value = std::conditional_t<std::is_void_v<T>, std::monostate, T>;

public:
    result_or_task(value known = {}) : held_(std::move(known)) {}
    result_or_task(task<T> later) noexcept : held_(std::move(later)) {}

    [[nodiscard]] auto await_ready() const noexcept -> bool { return held_.index() == 0; }
    [[nodiscard]] auto await_suspend(std::coroutine_handle<> awaiting, environment const* env) noexcept
        -> std::coroutine_handle<> {
        return std::get_if<1>(&held_)->await_suspend(awaiting, env);
    }
    auto await_resume() -> T {
        if (auto* const later = std::get_if<1>(&held_)) return later->await_resume();
        return static_cast<T>(std::move(*std::get_if<0>(&held_)));
    }

private:
    std::variant<value, task<T>> held_;
};

/// Runs a task, and everything it awaits, to its end on the calling thread; returns its result or throws what it threw.
template <class T>
auto run(executor& exec, task<T> root, std::stop_token stop = {}) -> T {
    struct : task_owner {
        bool done = false;
        auto finished(std::coroutine_handle<>, std::exception_ptr) noexcept -> std::coroutine_handle<> override {
            done = true;
            return std::noop_coroutine();
        }
    } owner;
    environment const env{.exec = &exec, .stop = std::move(stop)};
    root.prepare(owner, env).resume();
    exec.run_until([&owner] { return owner.done; });
    return root.result();
}

} // namespace copipe
