// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"

#include "copipe/async/scope.hpp"

#include <algorithm>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <vector>

using namespace copipe;

namespace {

using names = std::vector<std::string>;

auto until(one_shot_event& event, std::string name, names& log) -> task<> {
    log.push_back(name + " starts");
    try {
        co_await event.wait();
        log.push_back(name + " ends");
    } catch (cancelled const&) {
        log.push_back(name + " cancelled");
        throw;
    }
}
auto fail_after(one_shot_event& event, std::string reason) -> task<> {
    co_await event.wait();
    throw std::runtime_error(reason);
}
auto fail_at_once(std::string reason) -> task<> {
    throw std::runtime_error(reason);
    co_return;
}
/// Ends on its own time even when cancelled.
auto stubborn(one_shot_event& event, one_shot_event& end, bool& ended) -> task<> {
    try {
        co_await event.wait();
    } catch (cancelled const&) {
        end.set();
    }
    ended = true;
}
/// One side of a pair: writes its name before each of `steps` steps, lets the partner run after each.
auto steps_of(char name, int steps, std::string& order) -> task<int> {
    for (int i = 0; i < steps; ++i) {
        order += name;
        co_await let_partner_run{};
    }
    order += static_cast<char>(name - 'a' + 'A');
    co_return steps;
}
auto step_below(char name, std::string& order) -> task<> {
    order += name;
    co_await let_partner_run{};
}
auto nested_steps_of(char name, int steps, std::string& order) -> task<> {
    for (int i = 0; i < steps; ++i) co_await step_below(name, order);
}
auto steps_then_fail(char name, int steps, std::string& order) -> task<> {
    for (int i = 0; i < steps; ++i) co_await step_below(name, order);
    throw std::runtime_error(std::string("side ") + name);
}
auto steps_around_wait(char name, one_shot_event& event, std::string& order) -> task<> {
    co_await step_below(name, order);
    co_await event.wait();
    order += name;
    co_await let_partner_run{};
    order += name;
}

} // namespace

TEST_CASE("a child runs at once until it first suspends, and join waits for all") {
    executor exec;
    one_shot_event go;
    names log;
    auto const body = [&]() -> task<> {
        scope children{co_await this_environment{}};
        children.spawn(until(go, "a", log));
        children.spawn(until(go, "b", log));
        CHECK(log == names{"a starts", "b starts"});
        go.set();
        co_await children.join();
        CHECK(log == names{"a starts", "b starts", "a ends", "b ends"});
        co_await children.join(); // nothing left: ends at once
        children.spawn(until(go, "c", log));
        co_await children.join();
    };
    run(exec, body());
    CHECK(log.back() == "c ends");
}

TEST_CASE("the first exception is thrown by join, and the siblings are cancelled and waited for") {
    executor exec;
    one_shot_event never, go;
    names log;
    bool stubborn_ended = false;
    one_shot_event unused;
    auto const body = [&]() -> task<> {
        scope children{co_await this_environment{}};
        children.spawn(until(never, "a", log));
        children.spawn(fail_after(go, "first"));
        children.spawn(fail_after(go, "second"));
        children.spawn(stubborn(never, unused, stubborn_ended));
        CHECK_FALSE(children.failed());
        go.set();
        co_await children.join();
    };
    CHECK_THROWS_WITH(run(exec, body()), "first");
    CHECK(log == names{"a starts", "a cancelled"});
    CHECK(stubborn_ended);
}

TEST_CASE("a child that fails before it suspends is reported by join, not by spawn") {
    executor exec;
    one_shot_event never;
    names log;
    auto const body = [&]() -> task<> {
        scope children{co_await this_environment{}};
        children.spawn(until(never, "a", log));
        children.spawn(fail_at_once("at once"));
        CHECK(children.failed());
        children.spawn(until(never, "too late", log));
        co_await children.join();
    };
    CHECK_THROWS_WITH(run(exec, body()), "at once");
    CHECK(log == names{"a starts", "too late starts", "too late cancelled", "a cancelled"});
}

TEST_CASE("stopping the parent stops the children, down through scopes in scopes") {
    executor exec;
    one_shot_event never;
    names log;
    std::stop_source stop;
    auto const inner = [&]() -> task<> {
        scope children{co_await this_environment{}};
        children.spawn(until(never, "grandchild", log));
        co_await children.join();
    };
    auto const body = [&]() -> task<> {
        scope children{co_await this_environment{}};
        children.spawn(inner());
        children.spawn(until(never, "child", log));
        stop.request_stop();
        co_await children.join();
    };
    CHECK_THROWS_AS(run(exec, body(), stop.get_token()), cancelled);
    CHECK(log.size() == 4);
    CHECK(std::count(log.begin(), log.end(), "grandchild cancelled") == 1);
    CHECK(std::count(log.begin(), log.end(), "child cancelled") == 1);
}

TEST_CASE("a scope made under a parent that is stopped already cancels its children at their first await") {
    executor exec;
    one_shot_event never;
    names log;
    std::stop_source stop;
    stop.request_stop();
    auto const body = [&]() -> task<> {
        scope children{co_await this_environment{}};
        children.spawn(until(never, "a", log));
        co_await children.join();
    };
    CHECK_THROWS_AS(run(exec, body(), stop.get_token()), cancelled);
    CHECK(log == names{"a starts", "a cancelled"});
}

TEST_CASE("in_scope joins when its body throws, and the body's exception comes first") {
    executor exec;
    one_shot_event never;
    names log;
    auto body = [&](scope& children) -> task<> {
        children.spawn(until(never, "a", log));
        throw std::runtime_error("body");
        co_return;
    };
    CHECK_THROWS_WITH(run(exec, in_scope(body)), "body");
    CHECK(log == names{"a starts", "a cancelled"});
    auto fine = [&](scope& children) -> task<> {
        children.spawn(fail_at_once("child"));
        co_return;
    };
    CHECK_THROWS_WITH(run(exec, in_scope(fine)), "child");
}

TEST_CASE("cancel gives the reason that join throws, unless a child failed before") {
    executor exec;
    one_shot_event never;
    names log;
    auto const body = [&]() -> task<> {
        scope children{co_await this_environment{}};
        children.spawn(until(never, "a", log));
        children.cancel(std::make_exception_ptr(std::runtime_error("enough")));
        children.cancel(std::make_exception_ptr(std::runtime_error("again")));
        co_await children.join();
    };
    CHECK_THROWS_WITH(run(exec, body()), "enough");
}

TEST_CASE("two tasks of a pair take turns at every step, the first one first") {
    executor exec;
    std::string order;
    auto const body = [&]() -> task<int> {
        auto const [a, b] = co_await alternate(steps_of('a', 3, order), steps_of('b', 3, order));
        co_return 10 * a + b;
    };
    CHECK(run(exec, body()) == 33);
    CHECK(order == "abababAB");
}

TEST_CASE("when one side of a pair has ended, the other goes on alone") {
    executor exec;
    std::string order;
    auto const body = [&](int a, int b) -> task<> {
        co_await alternate(steps_of('a', a, order), steps_of('b', b, order));
    };
    run(exec, body(1, 4));
    CHECK(order == "abAbbbB");
    order.clear();
    run(exec, body(4, 1));
    CHECK(order == "abaBaaA");
    order.clear();
    run(exec, body(0, 2));
    CHECK(order == "AbbB");
    order.clear();
    run(exec, body(2, 0));
    CHECK(order == "aBaA");
}

TEST_CASE("tasks below a side of a pair give the turn to the partner, too") {
    executor exec;
    std::string order;
    auto const body = [&]() -> task<> {
        co_await alternate(nested_steps_of('a', 3, order), nested_steps_of('b', 2, order));
    };
    run(exec, body());
    CHECK(order == "ababa");
}

TEST_CASE("when a side of a pair throws, the other ends first, and the first side's exception is thrown") {
    executor exec;
    std::string order;
    auto const one_fails = [&]() -> task<> {
        co_await alternate(steps_then_fail('a', 1, order), nested_steps_of('b', 3, order));
    };
    CHECK_THROWS_WITH(run(exec, one_fails()), "side a");
    CHECK(order == "abbb");
    order.clear();
    auto const both_fail = [&]() -> task<> {
        co_await alternate(steps_then_fail('a', 3, order), steps_then_fail('b', 1, order));
    };
    CHECK_THROWS_WITH(run(exec, both_fail()), "side a");
    CHECK(order == "abaa");
    order.clear();
    auto const second_fails = [&]() -> task<> {
        co_await alternate(nested_steps_of('a', 2, order), steps_then_fail('b', 0, order));
    };
    CHECK_THROWS_WITH(run(exec, second_fails()), "side b");
    CHECK(order == "aa");
}

TEST_CASE("the steps of a pair that waits on the host come in the same order whichever wait ends first") {
    executor exec;
    for (bool a_first : {true, false}) {
        one_shot_event for_a, for_b;
        std::string order;
        auto const pair = [&]() -> task<> {
            co_await alternate(steps_around_wait('a', for_a, order), steps_around_wait('b', for_b, order));
        };
        auto const set = [&]() -> task<> {
            (a_first ? for_a : for_b).set();
            (a_first ? for_b : for_a).set();
            co_return;
        };
        auto const body = [&]() -> task<> {
            scope children{co_await this_environment{}};
            children.spawn(pair());
            children.spawn(set());
            co_await children.join();
        };
        run(exec, body());
        CHECK(order == "ababab");
    }
}

TEST_CASE("a pair inside a pair, and a scope inside a pair, run to their end") {
    executor exec;
    std::string order;
    auto const inner_pair = [&]() -> task<> {
        co_await alternate(nested_steps_of('a', 2, order), nested_steps_of('b', 2, order));
        order += '.';
        co_await let_partner_run{};
        order += '!';
    };
    one_shot_event go;
    auto const child = [&]() -> task<> { co_await go.wait(); };
    auto const inner_scope = [&]() -> task<> {
        co_await step_below('c', order);
        scope children{co_await this_environment{}};
        children.spawn(child());
        go.set();
        co_await children.join();
        order += 'd';
    };
    auto const body = [&]() -> task<> { co_await alternate(inner_pair(), inner_scope()); };
    run(exec, body());
    CHECK(order == "abab.c!d");
}

TEST_CASE("while both sides of a pair inside a pair wait, the outer partner has its turn") {
    executor exec;
    one_shot_event first, second;
    std::string order;
    auto const inner = [&]() -> task<> {
        co_await alternate(steps_around_wait('a', first, order), steps_around_wait('b', second, order));
        order += '.';
    };
    auto const outer = [&]() -> task<> {
        order += '1';
        first.set();
        co_await let_partner_run{};
        order += '2';
        second.set();
        co_await let_partner_run{};
        order += '3';
    };
    auto const both = [&]() -> task<> { co_await alternate(inner(), outer()); };
    run(exec, both());
    CHECK(order == "ab1a2bab.3");
}

TEST_CASE("cancelling a pair ends the waits of both sides") {
    executor exec;
    one_shot_event never;
    std::string order;
    std::stop_source stop;
    auto const pair = [&]() -> task<> {
        co_await alternate(steps_around_wait('a', never, order), steps_around_wait('b', never, order));
    };
    auto const body = [&]() -> task<> {
        scope children{co_await this_environment{}};
        children.spawn(pair());
        stop.request_stop();
        co_await children.join();
    };
    CHECK_THROWS_AS(run(exec, body(), stop.get_token()), cancelled);
    CHECK(order == "ab");
}

TEST_CASE("a pair takes a million turns without growing the stack") {
    executor exec;
    int turns = 0;
    auto const side = [&]() -> task<> {
        for (int i = 0; i < 500'000; ++i) {
            ++turns;
            co_await let_partner_run{};
        }
    };
    auto const body = [&]() -> task<> { co_await alternate(side(), side()); };
    run(exec, body());
    CHECK(turns == 1'000'000);
}
