// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"

#include "copipe/async/scope.hpp"
#include "copipe/device/host.hpp"

#include <atomic>
#include <chrono>
#include <cstddef>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

using namespace copipe;
using namespace std::chrono_literals;

namespace {

/// Holds a stream's worker until it is opened.
class gate {
public:
    void open() {
        open_ = true;
        open_.notify_all();
    }
    void pass() const { open_.wait(false); }

private:
    std::atomic<bool> open_{false};
};

auto both = [] { return GENERATE(host_execution::worker_thread, host_execution::inline_); };

} // namespace

TEST_CASE("launches of a stream run in the order in which they were enqueued, far more than the queue holds") {
    host_device dev{both()};
    host_stream& s = dev.open_stream("s");
    std::vector<int> order;
    order.reserve(5000);
    for (int i = 0; i < 5000; ++i) s.launch([i, &order] { order.push_back(i); });
    s.synchronize();
    std::vector<int> expected(5000);
    std::iota(expected.begin(), expected.end(), 0);
    CHECK(order == expected);
}

TEST_CASE("enqueuing does not wait for the work") {
    host_device dev;
    host_stream& s = dev.open_stream("s");
    gate g;
    int done = 0;
    s.launch([&] { g.pass(); });
    s.launch([&] { ++done; });
    auto const e = s.record();
    CHECK_FALSE(e.done());
    g.open();
    s.synchronize();
    CHECK(e.done());
    CHECK(done == 1);
}

TEST_CASE("a full launch queue holds the host up until the stream has caught up, and goes on") {
    host_device dev;
    host_stream& s = dev.open_stream("s");
    gate g;
    std::atomic<int> ran{0};
    std::atomic<int> enqueued{0};
    s.launch([&] { g.pass(); });
    std::thread host{[&] {
        for (int i = 0; i < 1000; ++i) {
            s.launch([&] { ++ran; });
            ++enqueued;
        }
        s.synchronize();
    }};
    while (enqueued < 255) std::this_thread::yield();
    std::this_thread::sleep_for(20ms);
    CHECK(enqueued == 255);
    CHECK(ran == 0);
    g.open();
    host.join();
    CHECK(ran == 1000);
}

TEST_CASE("an event is a snapshot: it is done when the work before it is, whatever is enqueued later") {
    host_device dev;
    host_stream& s = dev.open_stream("s");
    auto const before_all = s.record();
    CHECK(before_all.done());
    gate first, second;
    s.launch([&] { first.pass(); });
    auto const between = s.record();
    s.launch([&] { second.pass(); });
    auto const after = s.record();
    CHECK_FALSE(between.done());
    first.open();
    while (!between.done()) std::this_thread::yield();
    CHECK_FALSE(after.done());
    second.open();
    s.synchronize();
    CHECK(after.done());
    host_event const none;
    CHECK(none.done());
    none.check();
}

TEST_CASE("an event moves, and outlives its completion") {
    host_device dev{both()};
    host_stream& s = dev.open_stream("s");
    host_event held;
    {
        host_event e = s.record(timing::on);
        s.synchronize();
        held = std::move(e);
    }
    CHECK(held.done());
    CHECK(held.time() > 0);
    host_event const taken{std::move(held)};
    CHECK(taken.time() > 0);
    CHECK(s.record().time() == 0);
}

TEST_CASE("work after a wait for another stream's event runs after the work before the event") {
    host_device dev;
    host_device other_rank;
    host_stream& a = dev.open_stream("a");
    host_stream& b = other_rank.open_stream("b");
    for (int round = 0; round < 200; ++round) {
        int value = 0, seen = -1;
        a.launch([&] {
            std::this_thread::yield();
            value = 42;
        });
        auto const written = a.record();
        a.launch([] { std::this_thread::yield(); });
        b.wait(written);
        b.launch([&] { seen = value; });
        auto const read = b.record();
        a.wait(read); // and back: a write after the read
        a.launch([&] { value = 0; });
        b.synchronize();
        a.synchronize();
        REQUIRE(seen == 42);
        REQUIRE(value == 0);
    }
}

TEST_CASE("a wait for the stream's own event, a done one or none costs nothing") {
    host_device dev;
    host_stream& s = dev.open_stream("s");
    gate g;
    s.launch([&] { g.pass(); });
    s.wait(s.record());
    s.wait(host_event{});
    auto const e = s.record();
    g.open();
    s.synchronize();
    CHECK(e.done());
}

TEST_CASE("the times of timed events never go back, lie around their work, and agree with the device's clock") {
    host_device dev{both()};
    host_stream& s = dev.open_stream("s");
    double const begin = dev.now();
    double last = begin;
    for (int i = 0; i < 300; ++i) {
        auto const start = s.record(timing::on);
        s.launch([] { std::this_thread::sleep_for(20us); });
        auto const end = s.record(timing::on);
        s.synchronize();
        REQUIRE(start.time() >= last);
        REQUIRE(end.time() - start.time() >= 20e-6);
        last = end.time();
    }
    CHECK(last <= dev.now());
}

TEST_CASE("copy, zero and add do what they say, in order") {
    host_device dev{both()};
    host_stream& s = dev.open_stream("s");
    std::vector<float> const from{1, 2, 3};
    std::vector<float> to(3), sum{10, 20, 30};
    s.copy(to.data(), from.data(), sizeof(float) * 3);
    s.add(sum.data(), to.data(), 3);
    s.zero(to.data(), sizeof(float) * 2);
    s.synchronize();
    CHECK(sum == std::vector<float>{11, 22, 33});
    CHECK(to == std::vector<float>{0, 0, 3});
}

TEST_CASE("after a launch throws, later ones are skipped until synchronize has thrown the failure, once") {
    host_device dev{both()};
    host_stream& s = dev.open_stream("s");
    int ran = 0;
    s.launch([&] { ++ran; });
    s.launch([] { throw std::runtime_error("kernel"); });
    s.launch([&] { ran += 100; });
    s.launch([] { throw std::runtime_error("never run"); });
    auto const e = s.record(timing::on);
    CHECK_THROWS_WITH(s.synchronize(), "kernel");
    CHECK(ran == 1);
    CHECK(e.done());
    CHECK(e.time() > 0);
    s.synchronize();
    s.launch([&] { ++ran; });
    s.synchronize();
    CHECK(ran == 2);
}

TEST_CASE("check of an event throws a failure before it, not one after it") {
    host_device dev{both()};
    host_stream& s = dev.open_stream("s");
    s.launch([] {});
    auto const before = s.record();
    s.launch([] { throw std::runtime_error("kernel"); });
    auto const after = s.record();
    s.launch([] {});
    auto const later = s.record();
    while (!later.done()) std::this_thread::yield();
    before.check();
    CHECK_THROWS_WITH(after.check(), "kernel");
    later.check(); // reported already
    s.synchronize();
}

TEST_CASE("many coroutines await one event and each other's, and all go on on their executor's thread") {
    host_device dev{both()};
    host_stream& s = dev.open_stream("s");
    executor exec;
    std::vector<host_event> events;
    for (int i = 0; i < 20; ++i) {
        s.launch([] { std::this_thread::yield(); });
        events.push_back(s.record());
    }
    int resumed = 0;
    auto const here = std::this_thread::get_id();
    auto const follow = [&](host_event const& e) -> task<> {
        co_await e.completion();
        CHECK(e.done());
        CHECK(std::this_thread::get_id() == here);
        ++resumed;
    };
    auto const body = [&]() -> task<> {
        scope children{co_await this_environment{}};
        for (auto e = events.rbegin(); e != events.rend(); ++e) {
            for (int i = 0; i < 3; ++i) children.spawn(follow(*e));
        }
        co_await children.join();
    };
    run(exec, body());
    CHECK(resumed == 60);
}

TEST_CASE("a coroutine that awaits an event sleeps until the work is done") {
    host_device dev;
    host_stream& s = dev.open_stream("s");
    executor exec;
    for (int i = 0; i < 300; ++i) {
        gate g;
        s.launch([&] { g.pass(); });
        auto const e = s.record();
        auto const follow = [&]() -> task<> { co_await e.completion(); };
        auto const open = [&]() -> task<> {
            g.open();
            co_return;
        };
        auto const body = [&]() -> task<> {
            scope children{co_await this_environment{}};
            children.spawn(follow());
            children.spawn(open());
            co_await children.join();
        };
        run(exec, body());
        REQUIRE(e.done());
    }
}

TEST_CASE("work without a worker thread runs where it is enqueued") {
    host_device dev{host_execution::inline_};
    host_stream& s = dev.open_stream("s");
    std::thread::id ran_on{};
    s.launch([&] { ran_on = std::this_thread::get_id(); });
    CHECK(ran_on == std::this_thread::get_id());
    CHECK(s.record().done());
}
