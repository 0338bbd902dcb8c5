// SPDX-License-Identifier: Apache-2.0
// The examples of docs/coroutines.md.
#include "copipe/async/asio.hpp"
#include "copipe/async/channel.hpp"
#include "copipe/async/scope.hpp"
#include "copipe/async/task.hpp"
#include "copipe/async/wait_queue.hpp"
#include "copipe/device/host.hpp"

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>

#include <chrono>
#include <concepts>
#include <coroutine>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <functional>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>

namespace {

void expect(bool holds, char const* what) {
    if (!holds) throw std::logic_error(what);
}

// tasks

auto square(int x) -> copipe::task<int> { co_return x* x; }

auto sum_of_squares(int x, int y) -> copipe::task<int> {
    int const a = co_await square(x); // runs now, and returns here
    int const b = co_await square(y);
    co_return a + b;
}

void tasks() {
    copipe::executor exec;
    int const sum = copipe::run(exec, sum_of_squares(3, 4));
    expect(sum == 25, "a task returns its value");
}

// scopes

auto wait_for(copipe::one_shot_event& event, std::string name, std::string& log) -> copipe::task<> {
    try {
        co_await event.wait();
        log += name + " went on; ";
    } catch (copipe::cancelled const&) {
        log += name + " was cancelled; ";
        throw; // a task that swallows it counts as one that has ended well
    }
}

auto fail_when(copipe::one_shot_event& event) -> copipe::task<> {
    co_await event.wait();
    throw std::runtime_error("no more");
}

auto beside_each_other(std::string& log) -> copipe::task<> {
    copipe::one_shot_event go, never; // outlive the scope, because the children refer to them
    copipe::scope children{co_await copipe::this_environment{}};
    children.spawn(wait_for(go, "first", log)); // runs at once, until it waits
    children.spawn(wait_for(never, "second", log));
    children.spawn(fail_when(go));
    go.set();
    co_await children.join(); // all have ended; throws what the first that failed threw
}

auto body_that_may_throw(std::string& log) -> copipe::task<> {
    copipe::one_shot_event never;
    auto body = [&](copipe::scope& children) -> copipe::task<> { // named: it must outlive the await
        children.spawn(wait_for(never, "child", log));
        throw std::runtime_error("the body failed");
        co_return;
    };
    co_await copipe::in_scope(body); // joins also when the body throws
}

void scopes() {
    copipe::executor exec;
    std::string log;
    try {
        copipe::run(exec, beside_each_other(log));
        expect(false, "join throws");
    } catch (std::runtime_error const& failure) {
        expect(std::string(failure.what()) == "no more", "the first failure is thrown");
    }
    expect(log == "first went on; second was cancelled; ", "siblings are cancelled");
    log.clear();
    try {
        copipe::run(exec, body_that_may_throw(log));
        expect(false, "in_scope throws");
    } catch (std::runtime_error const& failure) {
        expect(std::string(failure.what()) == "the body failed", "the body's failure is thrown");
    }
    expect(log == "child was cancelled; ", "in_scope joins");
}

// alternate

auto letters(char letter, int count, std::string& order) -> copipe::task<> {
    for (int i = 0; i < count; ++i) {
        order += letter;
        co_await copipe::let_partner_run{}; // what a stream-ordered await does
    }
}

auto a_pair(std::string& order) -> copipe::task<> {
    co_await copipe::alternate(letters('f', 3, order), letters('b', 5, order)); // order is now "fbfbfbbb"
}

void pairs() {
    copipe::executor exec;
    std::string order;
    copipe::run(exec, a_pair(order));
    expect(order == "fbfbfbbb", "sides take turns");
}

// channels

auto add_up(copipe::channel<int>& numbers, int count) -> copipe::task<int> {
    int sum = 0;
    for (int i = 0; i < count; ++i) sum += co_await numbers.receive();
    co_return sum;
}

void channels() {
    copipe::executor exec;
    copipe::channel<int> numbers;
    std::jthread const other{[&] {
        for (int i = 1; i <= 4; ++i) numbers.send(i); // any thread may send
    }};
    expect(copipe::run(exec, add_up(numbers, 4)) == 10, "values cross threads");

    numbers.close(std::make_exception_ptr(std::runtime_error("the source is gone")));
    try {
        copipe::run(exec, add_up(numbers, 1));
        expect(false, "a closed channel throws");
    } catch (std::runtime_error const& failure) {
        expect(std::string(failure.what()) == "the source is gone", "with the reason");
    }
}

// conditions of one rank

auto in_turn(copipe::turnstile& door, std::uint64_t ticket, std::string& order) -> copipe::task<> {
    co_await door.turn(ticket);
    order += std::to_string(ticket);
    door.pass(); // ticket + 1 may go
}

auto three_in_order(std::string& order) -> copipe::task<> {
    copipe::turnstile door;
    copipe::scope children{co_await copipe::this_environment{}};
    for (unsigned ticket : {2U, 0U, 1U}) children.spawn(in_turn(door, ticket, order));
    co_await children.join(); // order is now "012"
}

void turns() {
    copipe::executor exec;
    std::string order;
    copipe::run(exec, three_in_order(order));
    expect(order == "012", "tickets in order");
}

// an awaitable of your own

/// Runs a function on a thread of its own; the coroutine goes on with its result, on its own executor.
template <std::invocable F>
class [[nodiscard]] on_a_thread : copipe::waiter {
public:
    explicit on_a_thread(F work) : work_(std::move(work)) {}
    on_a_thread(on_a_thread const&) = delete;
    auto operator=(on_a_thread const&) -> on_a_thread& = delete;

    [[nodiscard]] static constexpr auto await_ready() noexcept -> bool { return false; }
    void await_suspend(std::coroutine_handle<> self, copipe::environment const* inherited) {
        handle = self;
        env = inherited;
        thread_ = std::jthread{[this] {
            try {
                value_.emplace(work_());
            } catch (...) {
                failure_ = std::current_exception();
            }
            env->exec->wake(*this); // from any thread; the last thing this thread does with the awaiter
        }};
    }
    auto await_resume() -> std::invoke_result_t<F&> {
        if (failure_) std::rethrow_exception(failure_);
        return *std::move(value_);
    }

private:
    F work_;
    std::optional<std::invoke_result_t<F&>> value_{};
    std::exception_ptr failure_{};
    std::jthread thread_{}; // joined before the rest is destroyed
};
static_assert(copipe::awaitable<on_a_thread<int (*)()>>);

auto slow_answer() -> int { return 42; }

auto ask() -> copipe::task<int> {
    int const answer = co_await on_a_thread{&slow_answer};
    co_return answer;
}

void own_awaitable() {
    copipe::executor exec;
    expect(copipe::run(exec, ask()) == 42, "the other thread's result");
}

// the two awaits of a device

auto copied(copipe::host_stream& compute, copipe::host_stream& link, float const* from, float* to)
    -> copipe::task<float> {
    link.copy(to, from, sizeof(float));
    copipe::host_event const arrived = link.record();
    compute.wait(arrived); // stream-ordered: later work of `compute` runs after the copy, the host goes on
    compute.add(to, to, 1);
    copipe::host_event const added = compute.record();
    co_await added.completion(); // host-ordered: this coroutine waits, others run
    added.check();               // throws what failed in the stream before the event
    co_return *to;
}

void streams() {
    copipe::executor exec;
    copipe::host_device device;
    auto& compute = device.open_stream("compute");
    auto& link = device.open_stream("link");
    float const from = 21;
    float to = 0;
    expect(copipe::run(exec, copied(compute, link, &from, &to)) == 42.0F, "work in order");
}

// Asio, both ways

auto tick(boost::asio::io_context& io, std::chrono::milliseconds time) -> copipe::task<int> {
    boost::asio::steady_timer timer{io, time};
    co_await timer.async_wait(copipe::use_task); // any operation of Asio; an error becomes boost::system::system_error
    co_return 1;
}

void copipe_drives_asio() {
    boost::asio::io_context io{1};
    copipe::asio_executor exec{io}; // its idle time serves `io`
    expect(copipe::run(exec, tick(io, std::chrono::milliseconds{1})) == 1, "a task awaits a timer");
}

void asio_drives_copipe() {
    boost::asio::io_context io{1};
    int ticks = 0;
    copipe::co_spawn(io, tick(io, std::chrono::milliseconds{1}), [&](std::exception_ptr failure, int ticked) {
        if (!failure) ticks += ticked;
    });
    io.run(); // ends when the task has
    expect(ticks == 1, "an Asio program runs tasks");
}

// stopping

auto until_stopped(boost::asio::io_context& io) -> copipe::task<> {
    boost::asio::steady_timer timer{io, std::chrono::hours{1}};
    co_await timer.async_wait(copipe::use_task);
}

void stopping() {
    boost::asio::io_context io{1};
    copipe::asio_executor exec{io};
    std::stop_source stop;
    boost::asio::steady_timer soon{io, std::chrono::milliseconds{1}};
    soon.async_wait([&](auto) { stop.request_stop(); }); // runs on the executor's thread, as it must
    bool stopped = false;
    try {
        copipe::run(exec, until_stopped(io), stop.get_token());
    } catch (copipe::cancelled const&) {
        stopped = true;
    }
    expect(stopped, "the await was cancelled");
}

} // namespace

auto main() -> int {
    try {
        tasks();
        scopes();
        pairs();
        channels();
        turns();
        own_awaitable();
        streams();
        copipe_drives_asio();
        asio_drives_copipe();
        stopping();
    } catch (std::exception const& failure) {
        std::fprintf(stderr, "%s\n", failure.what());
        return 1;
    }
}
