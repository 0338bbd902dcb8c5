// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"

#include "copipe/async/scope.hpp"
#include "copipe/async/wait_queue.hpp"

#include <algorithm>
#include <cstdint>
#include <stop_token>
#include <string>
#include <vector>

using namespace copipe;

namespace {

using names = std::vector<std::string>;

auto note_when(progress_counter& counter, std::uint64_t wanted, std::string name, names& order) -> task<> {
    try {
        co_await counter.reached(wanted);
        order.push_back(name);
    } catch (cancelled const&) {
        order.push_back(name + " cancelled");
    }
}
auto note_turn(turnstile& gate, std::uint64_t ticket, names& order) -> task<> {
    co_await gate.turn(ticket);
    order.push_back(std::to_string(ticket));
    gate.pass();
}
auto note_event(one_shot_event& event, names& order) -> task<> {
    co_await event.wait();
    order.push_back("happened");
}
/// Lets everything that is ready run.
struct breath : waiter {
    breath() noexcept : waiter{} {}
    static auto await_ready() noexcept -> bool { return false; }
    void await_suspend(std::coroutine_handle<> self, environment const* inherited) noexcept {
        handle = self;
        env = inherited;
        env->exec->post(*this);
    }
    static void await_resume() noexcept {}
};

} // namespace

TEST_CASE("those who wait for a counter go on in the order of what they want, equals in the order they came") {
    executor exec;
    progress_counter counter;
    names order;
    auto const body = [&]() -> task<> {
        scope children{co_await this_environment{}};
        children.spawn(note_when(counter, 5, "five", order));
        children.spawn(note_when(counter, 2, "two", order));
        children.spawn(note_when(counter, 3, "three", order));
        children.spawn(note_when(counter, 2, "two again", order));
        children.spawn(note_when(counter, 0, "zero", order));
        co_await breath{};
        CHECK(order == names{"zero"});
        counter.advance();
        co_await breath{};
        CHECK(order == names{"zero"});
        counter.advance(2);
        co_await breath{};
        CHECK(order == names{"zero", "two", "two again", "three"});
        counter.advance(2);
        co_await children.join();
    };
    run(exec, body());
    CHECK(order == names{"zero", "two", "two again", "three", "five"});
    CHECK(counter.value() == 5);
}

TEST_CASE("waiting for what has been reached goes on at once, without the executor") {
    executor exec;
    progress_counter counter;
    counter.advance(3);
    auto const body = [&]() -> task<> {
        co_await counter.reached(3);
        co_await counter.reached(0);
    };
    run(exec, body());
    CHECK(exec.resumed() == 0);
}

TEST_CASE("a wait that is named first sees what happens before it is awaited") {
    executor exec;
    one_shot_event event;
    auto const body = [&]() -> task<> {
        auto wait = event.wait();
        event.set();
        co_await wait;
    };
    run(exec, body());
    CHECK(exec.resumed() == 0);
}

TEST_CASE("stopping ends every wait with cancelled, and the counter still serves later ones") {
    executor exec;
    progress_counter counter;
    names order;
    std::stop_source stop;
    auto const body = [&]() -> task<> {
        scope children{co_await this_environment{}};
        children.spawn(note_when(counter, 1, "one", order));
        children.spawn(note_when(counter, 2, "two", order));
        children.spawn(note_when(counter, 3, "three", order));
        counter.advance(); // "one" is woken, not yet resumed: its wait has its result
        stop.request_stop();
        children.spawn(note_when(counter, 9, "late", order));
        children.spawn(note_when(counter, 1, "reached", order));
        co_await children.join();
    };
    CHECK_THROWS_AS(run(exec, body(), stop.get_token()), cancelled);
    std::sort(order.begin(), order.end());
    CHECK(order == names{"late cancelled", "one", "reached", "three cancelled", "two cancelled"});
    order.clear();
    auto const again = [&]() -> task<> {
        scope children{co_await this_environment{}};
        children.spawn(note_when(counter, 2, "two", order));
        counter.advance();
        co_await children.join();
    };
    run(exec, again());
    CHECK(order == names{"two"});
}

TEST_CASE("an event that is set before, after or twice is seen by everyone who waits, until it is reset") {
    executor exec;
    one_shot_event event;
    names order;
    auto const body = [&]() -> task<> {
        scope children{co_await this_environment{}};
        children.spawn(note_event(event, order));
        children.spawn(note_event(event, order));
        co_await breath{};
        CHECK(order.empty());
        CHECK_FALSE(event.is_set());
        event.set();
        event.set();
        CHECK(event.is_set());
        children.spawn(note_event(event, order));
        co_await breath{};
        CHECK(order.size() == 3);
        event.reset();
        CHECK_FALSE(event.is_set());
        children.spawn(note_event(event, order));
        co_await breath{};
        CHECK(order.size() == 3);
        event.set();
        co_await children.join();
    };
    run(exec, body());
    CHECK(order.size() == 4);
}

TEST_CASE("a turnstile admits tickets in order, whatever order they come in") {
    executor exec;
    turnstile gate;
    names order;
    auto const body = [&]() -> task<> {
        scope children{co_await this_environment{}};
        for (std::uint64_t ticket : {3U, 1U, 4U, 2U}) children.spawn(note_turn(gate, ticket, order));
        co_await breath{};
        CHECK(order.empty());
        children.spawn(note_turn(gate, 0, order));
        co_await children.join();
    };
    run(exec, body());
    CHECK(order == names{"0", "1", "2", "3", "4"});
    gate.reset();
    order.clear();
    auto const second_step = [&]() -> task<> { co_await note_turn(gate, 0, order); };
    run(exec, second_step());
    CHECK(order == names{"0"});
}
