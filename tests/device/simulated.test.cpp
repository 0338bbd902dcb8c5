// SPDX-License-Identifier: Apache-2.0
#include "copipe/device/simulated.hpp"
#include "catch.hpp"
#include "copipe/async/scope.hpp"
#include "copipe/async/wait_queue.hpp"
#include "says.hpp"

#include <algorithm>
#include <cmath>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

using namespace copipe;

namespace {

/// Waits for a moment of virtual time.
class until : waiter {
public:
    until(simulation& clock, double time) : clock_(&clock), time_(time) {}
    [[nodiscard]] static constexpr auto await_ready() noexcept -> bool { return false; }
    void await_suspend(std::coroutine_handle<> self, environment const* inherited) {
        handle = self;
        env = inherited;
        clock_->wake_at(time_, *this);
    }
    static constexpr void await_resume() noexcept {}

private:
    simulation* clock_;
    double time_;
};

} // namespace

TEST_CASE("work on a simulated stream ends one after the other, and no real time passes") {
    simulation clock;
    simulated_device dev{clock};
    auto& stream = dev.open_stream("compute");
    stream.launch(1e6);
    auto const first = stream.record();
    stream.launch(2);
    auto const second = stream.record();
    CHECK_FALSE(first.done());
    std::vector<double> seen;
    auto const body = [&]() -> task<> {
        co_await second.completion();
        seen.push_back(clock.now());
        co_await first.completion(); // long done
        seen.push_back(clock.now());
    };
    run(clock, body());
    CHECK(seen == std::vector<double>{1e6 + 2, 1e6 + 2});
    CHECK(first.time() == 1e6);
}

TEST_CASE("a simulated stream that waits for another's event starts when that is over") {
    simulation clock;
    simulated_device dev{clock};
    auto& a = dev.open_stream("a");
    auto& b = dev.open_stream("b");
    a.launch(5);
    b.launch(1);
    b.wait(a.record());
    b.launch(1);
    CHECK(b.record(timing::on).time() == 6);
    CHECK(a.record(timing::on).time() == 5);
}

TEST_CASE("a message keeps its simulated link busy by its bytes, and arrives its latency later") {
    simulation clock;
    simulated_device dev{clock, {.latency = 0.5, .seconds_per_byte = 0.01}};
    auto& link = dev.open_link(1);
    link.copy(nullptr, nullptr, 100);
    CHECK(link.record(timing::on).time() == 1.5);
    link.copy(nullptr, nullptr, 100);
    CHECK(link.record(timing::on).time() == 2.5); // the latency is under way beside the next message
    auto& compute = dev.open_stream("compute");
    compute.copy(nullptr, nullptr, 100); // within the device
    CHECK(compute.record(timing::on).time() == 0);
}

TEST_CASE("simulated memory is counted, not taken") {
    simulation clock;
    simulated_device dev{clock};
    auto* const memory = dev.open_stream("compute").memory();
    std::size_t const much = std::size_t{1} << 50U;
    void* const block = memory->allocate(much);
    CHECK(dev.memory_in_use() == much);
    memory->deallocate(block, much);
    CHECK(dev.memory_in_use() == 0);
    CHECK(dev.peak_memory() == much);
    dev.reset_peak_memory();
    CHECK(dev.peak_memory() == 0);
}

TEST_CASE("jitter and slowness of a simulated device are the same from one seed, and within their bounds") {
    auto const ends = [](std::uint64_t seed) {
        simulation clock;
        simulated_device dev{clock, {.stretch = seeded_stretch{seed, 0.25, 2}}};
        auto& stream = dev.open_stream("compute");
        std::vector<double> all;
        for (int i = 0; i < 1000; ++i) {
            stream.launch(1);
            all.push_back(stream.record(timing::on).time());
        }
        return all;
    };
    auto const one = ends(7);
    CHECK(one == ends(7));
    CHECK(one != ends(8));
    double before = 0, longest = 0;
    for (double const end : one) {
        REQUIRE(end - before >= 2 - 1e-9);
        REQUIRE(end - before <= 2.5 + 1e-9);
        longest = std::max(longest, end - before);
        before = end;
    }
    CHECK(longest > 2.4);
    CHECK(one.back() / 1000 == Approx(2.25).epsilon(0.02));
}

TEST_CASE("a simulated device fails when it was told to, and says so once") {
    simulation clock;
    simulated_device dev{clock, {.fails_at = 1.5}};
    auto& stream = dev.open_stream("compute");
    stream.launch(1);
    auto const good = stream.record();
    stream.launch(1);
    auto const bad = stream.record();
    good.check();
    CHECK_THROWS_WITH(bad.check(), says("1.5"));
    CHECK_THROWS_WITH(stream.synchronize(), says("1.5"));
    stream.synchronize();
}

TEST_CASE("a simulation wakes its waiters in order of time, and at one moment in the order in which they asked") {
    simulation clock;
    std::vector<std::pair<double, int>> woken;
    std::vector<double> moments;
    std::uint64_t state = 7;
    for (int i = 0; i < 2000; ++i) {
        state = state * 6364136223846793005ULL + 1442695040888963407ULL;
        double const drawn = static_cast<double>(state >> 40U) / (i % 3 == 0 ? 1 : 1e7); // 0 to 1.7e7, many below 2
        moments.push_back(i % 5 == 0 ? std::floor(drawn) : drawn);
    }
    moments[3] = -0.0; // long over
    auto const sleeper = [&](int number) -> task<> {
        auto const at = moments[static_cast<std::size_t>(number)];
        co_await until(clock, at);
        woken.emplace_back(clock.now(), number);
        if (number % 2 == 0) { // and once more, from another moment
            co_await until(clock, at + 1);
            woken.emplace_back(clock.now(), number);
        }
    };
    auto const body = [&]() -> task<> {
        scope all{co_await this_environment{}};
        for (int i = 0; i < 2000; ++i) all.spawn(sleeper(i));
        co_await all.join();
    };
    run(clock, body());
    REQUIRE(woken.size() == 3000);
    CHECK(std::is_sorted(woken.begin(), woken.end(), [](auto& a, auto& b) { return a.first < b.first; }));
    for (int i = 0; i < 2000; ++i) {
        auto const at = moments[static_cast<std::size_t>(i)];
        CHECK(std::count(woken.begin(), woken.end(), std::pair{at, i}) == 1);
        CHECK(std::count(woken.begin(), woken.end(), std::pair{at + 1, i}) == (i % 2 == 0 ? 1 : 0));
    }
    std::vector<int> at_once; // each asks for the same moment from another one
    auto const late = [&](int number) -> task<> {
        co_await until(clock, 3e7 + number);
        co_await until(clock, 4e7);
        at_once.push_back(number);
    };
    auto const bodies = [&]() -> task<> {
        scope all{co_await this_environment{}};
        for (int i = 0; i < 100; ++i) all.spawn(late(i * 37 % 100));
        co_await all.join();
    };
    run(clock, bodies());
    CHECK(at_once.size() == 100);
    CHECK(std::is_sorted(at_once.begin(), at_once.end()));
}

TEST_CASE("a simulation in which everything waits says so, or does what it was told to do then") {
    simulation clock;
    one_shot_event never;
    auto const body = [&]() -> task<> { co_await never.wait(); };
    bool asked = false;
    clock.on_deadlock([&] {
        asked = true;
        never.set();
    });
    run(clock, body());
    CHECK(asked);
    simulation stuck;
    CHECK_THROWS_AS(stuck.run_until([] { return false; }), deadlock_error);
}
