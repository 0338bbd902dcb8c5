// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "says.hpp"

#include "copipe/async/scope.hpp"
#include "copipe/device/host.hpp"
#include "copipe/device/simulated.hpp"
#include "copipe/pipeline/rank_team.hpp"
#include "copipe/transport/in_process.hpp"

#include <boost/asio/steady_timer.hpp>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <fstream>
#include <set>
#include <stdexcept>
#include <string>
#include <sys/resource.h>
#include <system_error>
#include <thread>
#include <unistd.h>
#include <vector>

using namespace copipe;
using namespace std::chrono_literals;

namespace {

auto both = [] { return GENERATE(rank_threads::one_each, rank_threads::calling_thread); };

} // namespace

TEST_CASE("a team runs one coroutine per rank and waits for all, again and again") {
    rank_team team{4, both()};
    CHECK(team.size() == 4);
    std::array<std::atomic<int>, 4> count{};
    auto const body = [&](int rank) -> task<> {
        co_await let_partner_run{};
        ++count[static_cast<std::size_t>(rank)];
    };
    for (int i = 1; i <= 200; ++i) {
        team.run(body);
        for (auto const& each : count) REQUIRE(each == i);
    }
}

TEST_CASE("each rank of a team keeps its thread, or all share the caller's") {
    for (auto const threads : {rank_threads::one_each, rank_threads::calling_thread}) {
        rank_team team{3, threads};
        std::vector<std::thread::id> first(3), second(3);
        auto const note = [](std::vector<std::thread::id>& into) {
            return [&into](int rank) -> task<> {
                into[static_cast<std::size_t>(rank)] = std::this_thread::get_id();
                co_return;
            };
        };
        auto const note_first = note(first);
        auto const note_second = note(second);
        team.run(note_first);
        team.run(note_second);
        CHECK(first == second);
        std::set<std::thread::id> const different(first.begin(), first.end());
        CHECK(different.size() == (threads == rank_threads::one_each ? 3 : 1));
        CHECK(different.count(std::this_thread::get_id()) == (threads == rank_threads::one_each ? 0 : 1));
    }
}

TEST_CASE("ranks of a team exchange messages and sums, whether they have threads or not") {
    rank_team team{4, both()};
    in_process<host_device> net{4};
    std::array<double, 4> sums{};
    auto const body = [&](int rank) -> task<> {
        auto end = net.connect(rank);
        for (int round = 0; round < 100; ++round) {
            std::array<double, 1> value{static_cast<double>(rank + 1)};
            co_await end.all_reduce(value);
            sums[static_cast<std::size_t>(rank)] += value[0];
        }
    };
    team.run(body);
    CHECK(sums == std::array<double, 4>{1000, 1000, 1000, 1000});
}

TEST_CASE("a rank of a team can await asio operations") {
    rank_team team{2, both()};
    auto const begin = std::chrono::steady_clock::now();
    auto const body = [&](int rank) -> task<> {
        boost::asio::steady_timer timer{static_cast<asio_executor&>(team.exec(rank)).context(), 10ms};
        co_await timer.async_wait(use_task);
    };
    team.run(body);
    CHECK(std::chrono::steady_clock::now() - begin >= 10ms);
}

TEST_CASE("a team throws the cause, not its echo at other ranks, and runs again") {
    rank_team team{4, both()};
    for (int culprit = 0; culprit < 4; ++culprit) {
        auto const body = [&](int rank) -> task<> {
            co_await let_partner_run{};
            if (rank == culprit) throw std::runtime_error("cause");
            if (rank % 2 == 0) throw peer_failed{culprit};
            throw cancelled{};
        };
        CHECK_THROWS_WITH(team.run(body), "cause");
    }
    auto const echoes = [](int rank) -> task<> {
        if (rank == 2) throw peer_failed{7};
        co_return;
    };
    CHECK_THROWS_AS(team.run(echoes), peer_failed);
    auto const fine = [](int) -> task<> { co_return; };
    team.run(fine);
}

TEST_CASE("when two ranks fail on their own, the lower one's failure is thrown") {
    rank_team team{4, both()};
    auto const body = [](int rank) -> task<> {
        if (rank == 1 || rank == 3) throw std::runtime_error("rank " + std::to_string(rank));
        co_return;
    };
    CHECK_THROWS_WITH(team.run(body), "rank 1");
}

TEST_CASE("when a rank's coroutine cannot be made, none runs") {
    rank_team team{3, both()};
    std::atomic<int> ran{0};
    auto const started = [&]() -> task<> {
        ++ran;
        co_return;
    };
    auto const make = [&](int rank) -> task<> {
        if (rank == 2) throw std::runtime_error("not made");
        return started();
    };
    CHECK_THROWS_WITH(team.run(make), "not made");
    auto const all = [&](int) { return started(); };
    team.run(all);
    CHECK(ran == 3);
}

TEST_CASE("a team for which there are too few threads throws, and those it has started end") {
    long pages = 0;
    std::ifstream{"/proc/self/statm"} >> pages;
    if (pages >> 28) return; // a terabyte: a sanitizer, which would want more than is left below
    rlimit before{};
    REQUIRE((pages > 0 && ::getrlimit(RLIMIT_AS, &before) == 0));
    rlimit const few{.rlim_cur = static_cast<rlim_t>(pages * ::sysconf(_SC_PAGESIZE)) + (1U << 28U), // thirty stacks
                     .rlim_max = before.rlim_max};
    REQUIRE(::setrlimit(RLIMIT_AS, &few) == 0);
    bool refused = false;
    try {
        rank_team const team{1000};
    } catch (std::system_error const&) {
        refused = true;
    }
    ::setrlimit(RLIMIT_AS, &before);
    CHECK(refused);
}

TEST_CASE("teams come and go") {
    for (int i = 0; i < 50; ++i) {
        rank_team team{1 + i % 4, i % 2 ? rank_threads::one_each : rank_threads::calling_thread};
        if (i % 3 == 0) continue; // one that never ran
        auto const body = [](int) -> task<> { co_return; };
        team.run(body);
    }
    SUCCEED();
}

TEST_CASE("a team runs on an executor that it is given") {
    simulation clock;
    rank_team team{3, clock};
    simulated_device dev{clock};
    std::vector<double> ends(3);
    auto const body = [&](int rank) -> task<> {
        auto& stream = dev.open_stream("compute");
        stream.launch(rank + 1);
        auto const end = stream.record(timing::on);
        co_await end.completion();
        ends[static_cast<std::size_t>(rank)] = clock.now();
    };
    team.run(body);
    CHECK(ends == std::vector<double>{1, 2, 3});
}
