// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "says.hpp"
#include "transport/processes.hpp"

#include "copipe/async/scope.hpp"
#include "copipe/transport/tcp.hpp"

#include <array>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <thread>
#include <vector>

using namespace copipe;
using namespace std::chrono_literals;

namespace {

/// A rank of a test: its end of the transport, a device with a stream, an executor.
struct rank_end {
    tcp<host_device> net;
    executor exec{};
    host_device dev{};
    host_stream* stream = &dev.open_stream("s");
    tcp<host_device>::endpoint end;
    rank_end(int rank, int size, std::uint16_t port, std::chrono::milliseconds silence = 20s)
        : net({.rank = rank, .size = size, .local_rank = rank, .local_size = size, .port = port},
              {.meeting = {.deadline = 20s, .retry = 5ms}, .silence = silence}),
          end(net.connect(rank)) {}

    auto send(int to, std::uint64_t identity, std::vector<float> const& values) -> task<> {
        auto const ready = stream->record();
        envelope const what{.identity = identity, .bytes = values.size() * sizeof(float), .header = {7, 8}};
        auto const read = co_await end.send(to, what, values.data(), ready);
        co_await read.completion();
    }
    auto receive(int from, std::uint64_t identity) -> task<std::vector<float>> {
        auto arrived = co_await end.arrival(from, identity);
        std::vector<float> values(arrived.what.bytes / sizeof(float));
        if (arrived.what.header[1] != 8) throw error("the header is gone");
        auto const moved = end.accept(arrived, values.data(), *stream, timing::on);
        co_await moved.end.completion();
        if (moved.start.time() > moved.end.time()) throw error("it ended before it began");
        co_return values;
    }
};

using body_of = std::function<task<>(rank_end&, int)>;

/// Runs `body` on `size` ranks, each with a connection and a thread of its own; returns what each threw.
auto on_all(int size, body_of const& body) -> std::vector<std::string> {
    auto const port = free_port();
    std::vector<std::string> thrown(static_cast<std::size_t>(size));
    std::vector<std::thread> threads;
    for (int r = 0; r < size; ++r) {
        threads.emplace_back([&, r] {
            try {
                rank_end own{r, size, port};
                run(own.exec, body(own, r));
            } catch (std::exception const& e) {
                thrown[static_cast<std::size_t>(r)] = e.what();
            }
        });
    }
    for (std::thread& each : threads) each.join();
    return thrown;
}
auto const nothing_thrown = [](std::vector<std::string> const& thrown) {
    return thrown == std::vector<std::string>(thrown.size());
};
void require(bool holds, char const* what) {
    if (!holds) throw error(what);
}

} // namespace

TEST_CASE("over TCP, messages of two ranks arrive with content, envelope and order, both ways at once") {
    auto const body = [](rank_end& own, int me) -> task<> {
        std::deque<std::vector<float>> sent;
        scope children{co_await this_environment{}};
        auto const length = [](int i) { return static_cast<std::size_t>(i % 10 == 9 ? 100'000 : i % 40); };
        for (int i = 0; i < 200; ++i) {
            sent.emplace_back(length(i), static_cast<float>(1000 * me + i));
            children.spawn(own.send(1 - me, static_cast<std::uint64_t>(i), sent.back()));
        }
        bool right = true;
        for (int i = 0; i < 200; ++i) {
            std::vector<float> const got = co_await own.receive(1 - me, static_cast<std::uint64_t>(i));
            right = right && got == std::vector<float>(length(i), static_cast<float>(1000 * (1 - me) + i));
        }
        co_await children.join();
        require(right, "other values came");
    };
    CHECK(nothing_thrown(on_all(2, body)));
}

TEST_CASE("over TCP, data is read only when the sender's stream has come to the event") {
    auto const body = [](rank_end& own, int me) -> task<> {
        std::vector<float> values(1000, 0.0F);
        if (me == 0) {
            own.stream->launch([to = values.data()] {
                std::this_thread::sleep_for(20ms);
                for (std::size_t i = 0; i < 1000; ++i) to[i] = 3;
            });
            co_await own.send(1, 1, values);
            values.assign(1000, -1.0F); // the buffer is ours again
        } else {
            values = co_await own.receive(0, 1);
            require(values == std::vector<float>(1000, 3.0F), "it was read too early or too late");
        }
        std::array<double, 1> end{0};
        co_await own.end.all_reduce(end); // nobody leaves before all is done
    };
    CHECK(nothing_thrown(on_all(2, body)));
}

TEST_CASE("over TCP, an all-reduce gives every rank the same sums, added in rank order") {
    auto const value = [](int rank, int round) { return 1.0 / (1 + rank) + 1e-9 * round; };
    auto const body = [&value](rank_end& own, int me) -> task<> {
        for (int round = 0; round < 50; ++round) {
            std::array<double, 2> values{value(me, round), static_cast<double>(me)};
            co_await own.end.all_reduce(values);
            double sum = 0;
            for (int r = 0; r < 4; ++r) sum += value(r, round);
            require(values[0] == sum && values[1] == 6, "the sums differ");
        }
    };
    CHECK(nothing_thrown(on_all(4, body)));
}

TEST_CASE("over TCP, another message than the expected one is an error on both sides") {
    auto const body = [](rank_end& own, int me) -> task<> {
        std::vector<float> const values{1};
        if (me == 0) {
            std::array<double, 1> never{0};
            co_await own.send(1, 41, values);
            co_await own.end.all_reduce(never);
            co_return;
        }
        try {
            static_cast<void>(co_await own.receive(0, 42));
        } catch (...) {
            own.end.abort();
            throw;
        }
    };
    auto const thrown = on_all(2, body);
    CHECK_THAT(thrown[1], says("rank 1 expected message 42 from rank 0 but got 41"));
    CHECK_THAT(thrown[0], says("rank 1 failed"));
}

TEST_CASE("over TCP, abort ends every operation of every rank, and after a reset old messages do not arrive") {
    auto const body = [](rank_end& own, int me) -> task<> {
        for (int round = 0; round < 20; ++round) {
            std::vector<float> const old{-1}, values{static_cast<float>(10 * round + me)};
            std::array<double, 1> sum{1};
            std::string why;
            try {
                if (me == 0) co_await own.send(1, 1, old); // rank 1 never takes it
                if (me == 1) static_cast<void>(co_await own.receive(2, 1));
                if (me == 3) own.end.abort();
                co_await own.end.all_reduce(sum);
            } catch (peer_failed const& e) {
                why = e.what();
            }
            require(why.find("rank 3 failed") != why.npos, "not ended, or for another reason");
            own.end.reset();
            scope children{co_await this_environment{}};
            children.spawn(own.send((me + 1) % 4, 1, values));
            std::vector<float> const got = co_await own.receive((me + 3) % 4, 1);
            require(got.front() == static_cast<float>(10 * round + (me + 3) % 4), "an old message came");
            co_await children.join();
            co_await own.end.all_reduce(sum);
        }
    };
    CHECK(on_all(4, body) == std::vector<std::string>(4));
}

TEST_CASE("over TCP, a rank may leave while others still read what it sent, and whoever waits for more is told") {
    auto const body = [](rank_end& own, int me) -> task<> {
        std::vector<float> const values{1, 2};
        std::array<double, 1> sum{1};
        if (me == 0) { // is gone long before rank 1 reads
            co_await own.send(1, 1, values);
            co_return;
        }
        std::this_thread::sleep_for(100ms);
        std::vector<float> const got = co_await own.receive(0, 1);
        require(got == values, "other values came");
        std::array<std::string, 3> why;
        for (int what : {0, 1, 2}) {
            try {
                if (what == 0) static_cast<void>(co_await own.receive(0, 2));
                if (what == 1) co_await own.end.all_reduce(sum);
                if (what == 2) co_await own.send(0, 3, values);
            } catch (peer_lost const& e) {
                why[static_cast<std::size_t>(what)] = e.what();
            }
        }
        for (auto const& each : why) require(each.find("rank 0 is gone (it has ended") != each.npos, "no reason given");
    };
    CHECK(on_all(2, body) == std::vector<std::string>(2));
}

TEST_CASE("over TCP, a process that is killed ends all operations of all others at once, and they name it") {
    auto const port = free_port();
    forked const job(4, [port](int me) -> std::string {
        rank_end own{me, 4, port, 20s};
        auto const body = [&]() -> task<> {
            std::vector<float> const values(1'000'000, 1.0F);
            std::array<double, 1> sum{1};
            co_await own.end.all_reduce(sum);
            if (me == 2) std::raise(SIGKILL);
            if (me == 0) static_cast<void>(co_await own.receive(1, 7)); // itself alive, but waiting for rank 2
            if (me == 1) co_await own.end.all_reduce(sum);
            if (me == 3) co_await own.send(2, 9, values);
            if (me == 3) static_cast<void>(co_await own.receive(2, 9));
        };
        auto const begin = std::chrono::steady_clock::now();
        std::string why;
        for (int attempt : {1, 2}) { // a reset does not bring it back
            try {
                run(own.exec, body());
                why += "nothing;";
            } catch (peer_lost const& e) {
                why += e.what();
            }
            own.end.reset();
            if (attempt == 2) why += std::chrono::steady_clock::now() - begin < 10s ? "" : " too late";
        }
        return why;
    });
    for (int survivor : {0, 1, 3}) {
        std::string const said = job.said(survivor);
        CHECK_THAT(said, says("rank 2 is gone"));
        CHECK(said.find("nothing") == said.npos);
        CHECK(said.find("too late") == said.npos);
    }
}

TEST_CASE("over TCP, a process that hangs is given up after the time of silence") {
    auto const port = free_port();
    forked const job(2, [port](int me) -> std::string {
        rank_end own{me, 2, port, 400ms};
        auto const body = [&]() -> task<> {
            std::array<double, 1> sum{1};
            co_await own.end.all_reduce(sum);
            if (me == 1) std::raise(SIGSTOP);
            co_await own.end.all_reduce(sum);
        };
        run(own.exec, body());
        return "";
    });
    CHECK_THAT(job.said(0), says("rank 1 is gone (it has been silent for 400 ms)"));
}

TEST_CASE("an idle connection lasts, however short the time of silence") {
    auto const port = free_port();
    forked const job(2, [port](int me) -> std::string {
        rank_end own{me, 2, port, 600ms};
        std::this_thread::sleep_for(1500ms);
        std::array<double, 1> sum{1};
        auto const body = [&]() -> task<> { co_await own.end.all_reduce(sum); };
        run(own.exec, body());
        return std::to_string(sum[0]);
    });
    CHECK(job.said(0) == "2.000000");
    CHECK(job.said(1) == "2.000000");
}

TEST_CASE("a process has only its own end") {
    tcp<host_device> alone{launch{}};
    CHECK_THROWS_WITH(alone.connect(1), says("this process is rank 0 and has no end for rank 1"));
    executor exec;
    auto end = alone.connect(0);
    std::array<double, 1> sum{4};
    auto const body = [&]() -> task<> { co_await end.all_reduce(sum); };
    run(exec, body());
    CHECK(sum[0] == 4);
}
