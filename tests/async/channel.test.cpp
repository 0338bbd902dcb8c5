// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"

#include "copipe/async/channel.hpp"
#include "copipe/async/scope.hpp"

#include <atomic>
#include <cstddef>
#include <deque>
#include <memory>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using namespace copipe;

namespace {

auto take(channel<int>& from, int count, std::vector<int>& got) -> task<> {
    for (int i = 0; i < count; ++i) {
        int const value = co_await from.receive();
        got.push_back(value);
    }
}
auto take_named(channel<int>& from, std::string name, std::vector<std::string>& log) -> task<> {
    try {
        int const value = co_await from.receive();
        log.push_back(name + std::to_string(value));
    } catch (std::exception const& e) {
        log.push_back(name + " " + e.what());
    }
}

} // namespace

TEST_CASE("a channel gives each value once, in the order sent, whether sent before or after the receive") {
    executor exec;
    channel<int> values{2};
    std::vector<int> got;
    auto const body = [&]() -> task<> {
        for (int i = 0; i < 5; ++i) CHECK(values.send(i));
        scope children{co_await this_environment{}};
        children.spawn(take(values, 8, got));
        for (int i = 5; i < 8; ++i) CHECK(values.send(i));
        co_await children.join();
    };
    run(exec, body());
    CHECK(got == std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7});
    CHECK_FALSE(values.try_receive());
}

TEST_CASE("a channel keeps its order while it grows past its expected length and wraps around") {
    executor exec;
    channel<int> values{3};
    int next_in = 0, next_out = 0;
    std::size_t wrong = 0;
    for (int round = 0; round < 200; ++round) {
        for (int i = 0; i < round % 23; ++i) values.send(next_in++);
        for (int i = 0; i < round % 19; ++i) {
            auto const value = values.try_receive();
            if (value) wrong += *value != next_out++;
        }
    }
    while (auto const value = values.try_receive()) wrong += *value != next_out++;
    CHECK(wrong == 0);
    CHECK(next_out == next_in);
}

TEST_CASE("receivers of a channel are served in the order they came") {
    executor exec;
    channel<int> values;
    std::vector<std::string> log;
    auto const body = [&]() -> task<> {
        scope children{co_await this_environment{}};
        children.spawn(take_named(values, "a", log));
        children.spawn(take_named(values, "b", log));
        children.spawn(take_named(values, "c", log));
        for (int i = 1; i <= 3; ++i) values.send(i);
        co_await children.join();
    };
    run(exec, body());
    CHECK(log == std::vector<std::string>{"a1", "b2", "c3"});
}

TEST_CASE("a channel moves what cannot be copied") {
    executor exec;
    channel<std::unique_ptr<int>> values;
    values.send(std::make_unique<int>(3));
    auto const body = [&]() -> task<int> {
        auto const got = co_await values.receive();
        co_return *got;
    };
    CHECK(run(exec, body()) == 3);
}

TEST_CASE("closing a channel ends all receives with the reason, drops what is queued, refuses what is sent") {
    executor exec;
    channel<int> values;
    std::vector<std::string> log;
    auto const body = [&]() -> task<> {
        scope children{co_await this_environment{}};
        children.spawn(take_named(values, "a", log));
        children.spawn(take_named(values, "b", log));
        values.close(std::make_exception_ptr(std::runtime_error("gone")));
        values.close(std::make_exception_ptr(std::runtime_error("gone again")));
        CHECK_FALSE(values.send(1));
        children.spawn(take_named(values, "c", log));
        co_await children.join();
    };
    run(exec, body());
    std::sort(log.begin(), log.end());
    CHECK(log == std::vector<std::string>{"a gone", "b gone", "c gone"});

    values.reset();
    CHECK(values.send(4));
    values.close(std::make_exception_ptr(std::runtime_error("dropped")));
    values.reset();
    CHECK_FALSE(values.try_receive());
    CHECK(values.send(5));
    CHECK(values.try_receive() == 5);
}

TEST_CASE("a receiver whose value is already on its way gets it although the channel closes or the task is stopped") {
    executor exec;
    channel<int> values;
    std::vector<std::string> log;
    std::stop_source stop;
    auto const body = [&]() -> task<> {
        scope children{co_await this_environment{}};
        children.spawn(take_named(values, "a", log));
        children.spawn(take_named(values, "b", log));
        values.send(1);
        values.close(std::make_exception_ptr(std::runtime_error("gone")));
        stop.request_stop();
        co_await children.join();
    };
    CHECK_THROWS_AS(run(exec, body(), stop.get_token()), cancelled);
    CHECK(log == std::vector<std::string>{"a1", "b gone"});
}

TEST_CASE("stopping ends a receive with cancelled and loses no value") {
    executor exec;
    channel<int> values;
    std::vector<std::string> log;
    std::stop_source stop;
    auto const body = [&]() -> task<> {
        scope children{co_await this_environment{}};
        children.spawn(take_named(values, "a", log));
        stop.request_stop();
        values.send(7);
        children.spawn(take_named(values, "b", log));
        co_await children.join();
    };
    CHECK_THROWS_AS(run(exec, body(), stop.get_token()), cancelled);
    REQUIRE(log.size() == 2);
    CHECK(log[0].find("b cancelled") == 0);
    CHECK(log[1].find("a cancelled") == 0);
    CHECK(values.try_receive() == 7);
}

TEST_CASE("many threads send to one receiver: nothing is lost, and each sender's values stay in order") {
    constexpr int senders = 4;
    constexpr int each = 5000;
    executor exec;
    channel<std::pair<int, int>> values;
    std::vector<std::thread> threads;
    for (int s = 0; s < senders; ++s) {
        threads.emplace_back([&values, s] {
            for (int i = 0; i < each; ++i) values.send({s, i});
        });
    }
    std::vector<int> next(senders, 0);
    int wrong = 0;
    auto const body = [&]() -> task<> {
        for (int i = 0; i < senders * each; ++i) {
            auto const [from, number] = co_await values.receive();
            wrong += number != next[static_cast<std::size_t>(from)]++;
        }
    };
    run(exec, body());
    for (std::thread& t : threads) t.join();
    CHECK(wrong == 0);
    CHECK(next == std::vector<int>(senders, each));
}

TEST_CASE("two threads play ping-pong through two channels") {
    constexpr int rounds = 5000;
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
        executor exec;
        other_last = run(exec, player(there, back, false));
    }};
    executor exec;
    int const last = run(exec, player(back, there, true));
    other.join();
    CHECK(last + other_last == 2 * rounds + 1);
}

TEST_CASE("closing from another thread ends a receiver that sleeps, every time") {
    for (int i = 0; i < 300; ++i) {
        executor exec;
        channel<int> values;
        std::vector<std::string> log;
        std::thread other{[&] { values.close(std::make_exception_ptr(std::runtime_error("gone"))); }};
        run(exec, take_named(values, "a", log));
        other.join();
        REQUIRE(log == std::vector<std::string>{"a gone"});
    }
}
