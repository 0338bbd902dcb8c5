// SPDX-License-Identifier: Apache-2.0
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized" // false, in asio's use_future, with sanitizers
#endif

#include "catch.hpp"

#include "copipe/async/asio.hpp"
#include "copipe/async/channel.hpp"
#include "copipe/async/scope.hpp"

#include <boost/asio/bind_executor.hpp>
#include <boost/asio/connect_pipe.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/readable_pipe.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_future.hpp>
#include <boost/asio/writable_pipe.hpp>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <deque>
#include <future>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

using namespace copipe;
using namespace std::chrono_literals;
namespace asio = boost::asio;

namespace {

auto nap(asio::io_context& io, std::chrono::milliseconds time) -> task<int> {
    asio::steady_timer timer{io, time};
    co_await timer.async_wait(use_task);
    co_return static_cast<int>(time.count());
}
auto failing(asio::io_context& io) -> task<int> {
    co_await asio::post(io, use_task);
    throw std::runtime_error("task failed");
    co_return 0;
}
auto receive_one(channel<int>& from) -> task<int> { co_return co_await from.receive(); }

} // namespace

TEST_CASE("a task awaits an asio timer, driven by run") {
    asio::io_context io{1};
    asio_executor exec{io};
    auto const begin = std::chrono::steady_clock::now();
    CHECK(run(exec, nap(io, 20ms)) == 20);
    CHECK(std::chrono::steady_clock::now() - begin >= 20ms);
    CHECK(run(exec, nap(io, 1ms)) == 1); // and again on the same io_context
}

TEST_CASE("several tasks wait for asio timers at the same time") {
    asio::io_context io{1};
    asio_executor exec{io};
    std::vector<int> order;
    auto const noted = [&](std::chrono::milliseconds time) -> task<> {
        int const value = co_await nap(io, time);
        order.push_back(value);
    };
    auto const body = [&]() -> task<> {
        scope children{co_await this_environment{}};
        for (auto const time : {60ms, 5ms, 30ms}) children.spawn(noted(time));
        co_await children.join();
    };
    run(exec, body());
    CHECK(order == std::vector<int>{5, 30, 60});
}

TEST_CASE("an asio error code becomes an exception, other results are returned") {
    asio::io_context io{1};
    asio_executor exec{io};
    auto const body = [&]() -> task<std::string> {
        asio::readable_pipe in{io};
        asio::writable_pipe out{io};
        asio::connect_pipe(in, out);
        std::size_t const sent = co_await out.async_write_some(asio::buffer("hello", 5), use_task);
        CHECK(sent == 5);
        out.close();
        std::array<char, 16> buffer{};
        std::size_t const got = co_await in.async_read_some(asio::buffer(buffer), use_task);
        std::string text(buffer.data(), got);
        try {
            static_cast<void>(co_await in.async_read_some(asio::buffer(buffer), use_task));
        } catch (boost::system::system_error const& e) {
            if (e.code() == asio::error::eof) text += ", end of file";
        }
        co_return text;
    };
    CHECK(run(exec, body()) == "hello, end of file");
}

TEST_CASE("stopping a task cancels the asio operation it awaits") {
    asio::io_context io{1};
    asio_executor exec{io};
    std::stop_source stop;
    auto const begin = std::chrono::steady_clock::now();
    auto const body = [&]() -> task<> {
        scope children{co_await this_environment{}};
        auto const sleeper = [&]() -> task<> { static_cast<void>(co_await nap(io, 60s)); };
        children.spawn(sleeper());
        stop.request_stop();
        co_await children.join();
    };
    CHECK_THROWS_AS(run(exec, body(), stop.get_token()), cancelled);
    auto const too_late = [&]() -> task<> { static_cast<void>(co_await nap(io, 60s)); };
    CHECK_THROWS_AS(run(exec, too_late(), stop.get_token()), cancelled);
    CHECK(std::chrono::steady_clock::now() - begin < 30s);
}

TEST_CASE("an asio program spawns a task and gets its result in a callback, under io.run()") {
    asio::io_context io{1};
    std::optional<int> result;
    std::exception_ptr failure;
    co_spawn(io, nap(io, 5ms), [&](std::exception_ptr e, int value) {
        failure = e;
        result = value;
    });
    CHECK_FALSE(result.has_value());
    io.run();
    CHECK(result == 5);
    CHECK_FALSE(failure);
}

TEST_CASE("an exception of a spawned task reaches the callback and the future") {
    asio::io_context io{1};
    std::exception_ptr failure;
    co_spawn(io, failing(io), [&](std::exception_ptr e, int) { failure = e; });
    std::future<int> future = co_spawn(io, failing(io), asio::use_future);
    std::future<int> fine = co_spawn(io, nap(io, 1ms), asio::use_future);
    io.run();
    REQUIRE(failure);
    CHECK_THROWS_WITH(std::rethrow_exception(failure), "task failed");
    CHECK_THROWS_WITH(future.get(), "task failed");
    CHECK(fine.get() == 1);
}

TEST_CASE("io.run() does not return before a spawned task has ended, though asio knows nothing of what it waits for") {
    asio::io_context io{1};
    channel<int> values;
    std::optional<int> got;
    co_spawn(io, receive_one(values), [&](std::exception_ptr, int value) { got = value; });
    std::thread other{[&] {
        std::this_thread::sleep_for(20ms);
        values.send(11);
    }};
    io.run();
    other.join();
    CHECK(got == 11);
}

TEST_CASE("a detached task runs, and one without result completes with the exception alone") {
    asio::io_context io{1};
    int steps = 0;
    auto const body = [&]() -> task<> {
        static_cast<void>(co_await nap(io, 1ms));
        ++steps;
    };
    co_spawn(io, body(), asio::detached);
    co_spawn(io, body(), [&](std::exception_ptr e) { steps += e ? 100 : 10; });
    io.run();
    CHECK(steps == 12);
}

TEST_CASE("a spawned task is cancelled by its stop token") {
    asio::io_context io{1};
    std::stop_source stop;
    std::exception_ptr failure;
    co_spawn(io, nap(io, 60000ms), [&](std::exception_ptr e, int) { failure = e; }, stop.get_token());
    asio::post(io, [&] { stop.request_stop(); });
    io.run();
    REQUIRE(failure);
    CHECK_THROWS_AS(std::rethrow_exception(failure), cancelled);
}

TEST_CASE("the completion of a spawned task runs on the executor bound to its handler") {
    asio::io_context io{1}, other{1};
    std::thread::id ran_on{};
    auto work = asio::make_work_guard(other);
    std::thread elsewhere{[&] { other.run(); }};
    co_spawn(io, nap(io, 1ms), asio::bind_executor(other.get_executor(), [&](std::exception_ptr, int) {
                 ran_on = std::this_thread::get_id();
             }));
    auto const expected = elsewhere.get_id();
    io.run();
    work.reset();
    elsewhere.join();
    CHECK(ran_on == expected);
}

TEST_CASE("two executors on two threads exchange messages, each idle in its io_context") {
    constexpr int rounds = 2000;
    channel<int> there, back;
    auto const player = [](channel<int>& in, channel<int>& out, bool serves) -> task<int> {
        if (serves) out.send(0);
        int last = 0;
        while (last < rounds) {
            last = co_await in.receive();
            out.send(last + 1);
        }
        co_return last;
    };
    int other_last = 0;
    std::thread other{[&] {
        asio::io_context io{1};
        asio_executor exec{io};
        other_last = run(exec, player(there, back, false));
    }};
    asio::io_context io{1};
    int last = 0;
    co_spawn(io, player(back, there, true), [&](std::exception_ptr, int value) { last = value; });
    io.run();
    other.join();
    CHECK(last + other_last == 2 * rounds + 1);
}

TEST_CASE("a spawned task may end while the thread that woke it is still at it") {
    asio::io_context io{1};
    auto work = asio::make_work_guard(io);
    std::thread driver{[&] { io.run(); }};
    std::deque<channel<int>> values(2000);
    int sum = 0;
    for (auto& each : values) co_spawn(io, receive_one(each), [&](std::exception_ptr, int value) { sum += value; });
    for (auto& each : values) each.send(1);
    work.reset();
    driver.join();
    CHECK(sum == 2000);
}
