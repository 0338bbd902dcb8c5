// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "counting_new.hpp"

#include "copipe/async/task.hpp"

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

using namespace copipe;

namespace {

auto answer() -> task<int> { co_return 42; }
auto nothing() -> task<> { co_return; }
auto failing() -> task<int> {
    throw std::runtime_error("out of paper");
    co_return 0;
}
auto marked(bool& started) -> task<> {
    started = true;
    co_return;
}
auto caught_from_child() -> task<std::string> {
    try {
        static_cast<void>(co_await failing());
    } catch (std::runtime_error const& e) {
        co_return e.what();
    }
    co_return "nothing was thrown";
}
auto many_awaits(int n) -> task<std::int64_t> {
    std::int64_t sum = 0;
    for (int i = 0; i < n; ++i) {
        sum += co_await answer();
        co_await nothing();
        co_await let_partner_run{};
    }
    co_return sum;
}
auto nested(int depth) -> task<int> {
    if (depth == 0) co_return 0;
    int const below = co_await nested(depth - 1);
    co_return below + 1;
}
auto exec_seen() -> task<environment const*> { co_return &co_await this_environment{}; }
auto same_environment_below() -> task<bool> {
    environment const* const own = &co_await this_environment{};
    environment const* const below = co_await exec_seen();
    co_return own == below;
}

/// Counts how often an awaitable of one's own is asked what.
struct scripted {
    bool ready;
    bool suspend;
    std::vector<std::string>* log;
    environment const** seen;

    auto await_ready() const -> bool {
        log->push_back("ready?");
        return ready;
    }
    auto await_suspend(std::coroutine_handle<>, environment const* env) const -> bool {
        log->push_back("suspend");
        *seen = env;
        return suspend;
    }
    auto await_resume() const -> int {
        log->push_back("resume");
        return 7;
    }
};
struct throws_in_suspend {
    static auto await_ready() -> bool { return false; }
    static void await_suspend(std::coroutine_handle<>, environment const*) { throw std::logic_error("no"); }
    static void await_resume() {}
};
struct not_awaitable {};

/// Over-aligned locals must be aligned in the frame.
auto aligned_local() -> task<bool> {
    struct alignas(64) line {
        char bytes[64];
    };
    line here{};
    co_await let_partner_run{};
    co_return reinterpret_cast<std::uintptr_t>(&here) % 64 == 0;
}

} // namespace

TEST_CASE("a task does nothing until it is awaited") {
    bool started = false;
    executor exec;
    {
        task<> const dropped = marked(started);
    }
    CHECK_FALSE(started);
    run(exec, marked(started));
    CHECK(started);
}

TEST_CASE("a task returns its value to whoever awaits it, also one that cannot be copied") {
    executor exec;
    CHECK(run(exec, answer()) == 42);
    auto const make = []() -> task<std::unique_ptr<int>> { co_return std::make_unique<int>(5); };
    CHECK(*run(exec, make()) == 5);
    run(exec, nothing());
}

TEST_CASE("an exception passes through every await up to the first that catches it") {
    executor exec;
    CHECK_THROWS_AS(run(exec, failing()), std::runtime_error);
    CHECK(run(exec, caught_from_child()) == "out of paper");
    auto const through = []() -> task<int> { co_return co_await failing() + 1; };
    CHECK_THROWS_AS(run(exec, through()), std::runtime_error);
}

TEST_CASE("a million awaits in a loop do not grow the stack") {
    executor exec;
    CHECK(run(exec, many_awaits(1'000'000)) == 42'000'000);
}

TEST_CASE("tasks nested two hundred thousand deep do not grow the stack, neither on the way down nor up") {
    executor exec;
    CHECK(run(exec, nested(200'000)) == 200'000);
}

TEST_CASE("frames are recycled: after the first await the heap is asked for nothing") {
    executor exec;
    static_cast<void>(run(exec, many_awaits(3)));
    std::size_t const before = heap_allocations;
    static_cast<void>(run(exec, many_awaits(1000)));
    CHECK(heap_allocations == before);
}

TEST_CASE("a task inherits the environment of the one that awaits it") {
    executor exec;
    CHECK(run(exec, same_environment_below()));
    std::stop_source stop;
    auto const inherits = [&exec, &stop]() -> task<bool> {
        environment const& env = *co_await exec_seen();
        co_return env.exec == &exec && env.stop == stop.get_token() && env.pair == nullptr;
    };
    CHECK(run(exec, inherits(), stop.get_token()));
}

TEST_CASE("an awaitable of one's own is asked in order, gets the environment, and goes on at once if it says so") {
    executor exec;
    std::vector<std::string> log;
    environment const* seen = nullptr;
    auto const body = [&](bool ready) -> task<int> {
        scripted once{ready, false, &log, &seen};
        int const got = co_await once;
        co_return got;
    };
    CHECK(run(exec, body(true)) == 7);
    CHECK(log == std::vector<std::string>{"ready?", "resume"});
    log.clear();
    CHECK(run(exec, body(false)) == 7);
    CHECK(log == std::vector<std::string>{"ready?", "suspend", "resume"});
    REQUIRE(seen != nullptr);
}

TEST_CASE("an exception from await_suspend arrives at the co_await") {
    executor exec;
    auto const body = []() -> task<bool> {
        try {
            co_await throws_in_suspend{};
        } catch (std::logic_error const&) {
            co_return true;
        }
        co_return false;
    };
    CHECK(run(exec, body()));
}

TEST_CASE("over-aligned locals of a task are aligned") {
    executor exec;
    CHECK(run(exec, aligned_local()));
}

TEST_CASE("a result that is known and a task are awaited alike, and only the task takes a frame") {
    executor exec;
    auto const body = []() -> task<int> {
        result_or_task<int> known{40};
        result_or_task<int> later{answer()};
        result_or_task<> done;
        result_or_task<> not_yet{nothing()};
        CHECK(known.await_ready());
        CHECK_FALSE(later.await_ready());
        co_await done;
        co_await not_yet;
        int const first = co_await known;
        int const second = co_await later;
        co_return first + second;
    };
    CHECK(run(exec, body()) == 82);
    auto const failed = []() -> task<int> {
        result_or_task<int> later{failing()};
        co_return co_await later;
    };
    CHECK_THROWS_WITH(run(exec, failed()), "out of paper");
}

TEST_CASE("only what takes an environment can be awaited") {
    STATIC_REQUIRE(awaitable<task<int>>);
    STATIC_REQUIRE(awaitable<scripted>);
    STATIC_REQUIRE(awaitable<this_environment>);
    STATIC_REQUIRE_FALSE(awaitable<int>);
    STATIC_REQUIRE_FALSE(awaitable<not_awaitable>);
    STATIC_REQUIRE_FALSE(awaitable<std::suspend_always>);
    STATIC_REQUIRE_FALSE(std::is_copy_constructible_v<task<int>>);
}
