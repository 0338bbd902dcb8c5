// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"

#include "copipe/async/task.hpp"

#include <atomic>
#include <chrono>
#include <cstddef>
#include <deque>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

using namespace copipe;

namespace {

/// Suspends, and is continued by whoever holds it: `exec.post(*held)` or `exec.wake(*held)`.
struct parked : waiter {
    explicit parked(std::atomic<waiter*>& where) noexcept : held(&where) {}
    static auto await_ready() noexcept -> bool { return false; }
    void await_suspend(std::coroutine_handle<> self, environment const* inherited) noexcept {
        handle = self;
        env = inherited;
        held->store(this);
        held->notify_one();
    }
    static void await_resume() noexcept {}
    std::atomic<waiter*>* held;
};

auto park_often(std::atomic<waiter*>& held, int times) -> task<std::thread::id> {
    for (int i = 0; i < times; ++i) co_await parked{held};
    co_return std::this_thread::get_id();
}

/// Continues whatever parks in `held`, from this thread, `times` times.
void wake_often(executor& exec, std::atomic<waiter*>& held, int times) {
    for (int i = 0; i < times; ++i) {
        waiter* next = nullptr;
        while (!(next = held.exchange(nullptr))) held.wait(nullptr);
        exec.wake(*next);
    }
}

struct side_by_side final : task_owner {
    std::size_t left = 0;
    auto finished(std::coroutine_handle<>, std::exception_ptr) noexcept -> std::coroutine_handle<> override {
        --left;
        return std::noop_coroutine();
    }
};

auto note(std::atomic<waiter*>& held, std::vector<int>& order, int name) -> task<> {
    co_await parked{held};
    order.push_back(name);
}

} // namespace

TEST_CASE("coroutines are resumed in the order in which they were posted") {
    executor exec;
    environment const env{.exec = &exec};
    side_by_side owner;
    std::vector<int> order;
    std::deque<std::atomic<waiter*>> held(5);
    std::deque<task<>> tasks;
    for (int i = 0; i < 5; ++i) {
        tasks.push_back(note(held[static_cast<std::size_t>(i)], order, i));
        ++owner.left;
        tasks.back().prepare(owner, env).resume();
    }
    for (std::size_t i : {3U, 0U, 4U, 1U, 2U}) exec.post(*held[i].load());
    exec.run_until([&] { return owner.left == 0; });
    CHECK(order == std::vector<int>{3, 0, 4, 1, 2});
    CHECK(exec.resumed() == 5);
    CHECK_FALSE(exec.run_one());
}

TEST_CASE("coroutines handed over by one thread are resumed in that order") {
    executor exec;
    environment const env{.exec = &exec};
    side_by_side owner;
    std::vector<int> order;
    std::deque<std::atomic<waiter*>> held(6);
    std::deque<task<>> tasks;
    for (int i = 0; i < 6; ++i) {
        tasks.push_back(note(held[static_cast<std::size_t>(i)], order, i));
        ++owner.left;
        tasks.back().prepare(owner, env).resume();
    }
    std::thread other{[&] {
        for (std::size_t i : {5U, 1U, 0U, 2U, 4U, 3U}) exec.wake(*held[i].load());
    }};
    other.join();
    exec.run_until([&] { return owner.left == 0; });
    CHECK(order == std::vector<int>{5, 1, 0, 2, 4, 3});
}

TEST_CASE("a coroutine woken by another thread goes on where its executor is driven") {
    executor exec;
    std::atomic<waiter*> held{nullptr};
    std::thread other{[&] { wake_often(exec, held, 1000); }};
    CHECK(run(exec, park_often(held, 1000)) == std::this_thread::get_id());
    other.join();
}

TEST_CASE("no wake is lost when many threads hand over at once") {
    constexpr int threads = 6;
    constexpr int times = 3000;
    executor exec;
    environment const env{.exec = &exec};
    side_by_side owner;
    std::deque<std::atomic<waiter*>> held(threads);
    std::deque<task<std::thread::id>> tasks;
    std::vector<std::thread> others;
    for (std::size_t i = 0; i < threads; ++i) {
        tasks.push_back(park_often(held[i], times));
        ++owner.left;
        tasks.back().prepare(owner, env).resume();
        others.emplace_back([&exec, &held, i] { wake_often(exec, held[i], times); });
    }
    exec.run_until([&] { return owner.left == 0; });
    for (std::thread& each : others) each.join();
    CHECK(exec.resumed() == threads * times);
}

TEST_CASE("an executor may be destroyed once its last coroutine has ended, though its waker is still at it") {
    std::atomic<waiter*> held{nullptr};
    constexpr int times = 3000;
    std::thread other{[&] {
        for (int i = 0; i < times; ++i) {
            waiter* next = nullptr;
            while (!(next = held.exchange(nullptr))) held.wait(nullptr);
            next->env->exec->wake(*next);
        }
    }};
    for (int i = 0; i < times; ++i) {
        auto exec = std::make_unique<executor>();
        static_cast<void>(run(*exec, park_often(held, 1)));
    }
    other.join();
    SUCCEED();
}
