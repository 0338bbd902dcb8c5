// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "says.hpp"

#include "copipe/async/scope.hpp"
#include "copipe/device/host.hpp"
#include "copipe/transport/in_process.hpp"

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <span>
#include <string>
#include <thread>
#include <vector>

using namespace copipe;
using namespace std::chrono_literals;

namespace {

using hub = in_process<host_device>;
using endpoint = hub::endpoint;

/// A rank of a test: a device with a stream, an executor, an end of the transport.
struct rank_end {
    executor exec{};
    host_device dev{};
    host_stream* stream = &dev.open_stream("s");
    endpoint end;
    int wrong = 0; ///< counted instead of checked, as the test framework is for one thread
    explicit rank_end(endpoint e) : end(e) {}

    auto send(int to, std::uint64_t identity, std::vector<float> const& values) -> task<> {
        auto const ready = stream->record();
        envelope const what{.identity = identity, .bytes = values.size() * sizeof(float), .header = {7}};
        auto const read = co_await end.send(to, what, values.data(), ready);
        co_await read.completion();
    }
    auto receive(int from, std::uint64_t identity) -> task<std::vector<float>> {
        auto arrived = co_await end.arrival(from, identity);
        std::vector<float> values(arrived.what.bytes / sizeof(float));
        auto const moved = end.accept(arrived, values.data(), *stream, timing::on);
        co_await moved.end.completion();
        wrong += moved.start.time() > moved.end.time();
        co_return values;
    }
};

/// Runs `body(rank)` for each rank on a thread of its own, returns what each threw.
auto on_all(std::deque<rank_end>& ranks, std::function<task<>(int)> const& body) -> std::vector<std::string> {
    std::vector<std::string> thrown(ranks.size());
    std::vector<std::thread> threads;
    for (std::size_t r = 0; r < ranks.size(); ++r) {
        threads.emplace_back([&, r] {
            try {
                run(ranks[r].exec, body(static_cast<int>(r)));
            } catch (std::exception const& e) {
                thrown[r] = e.what();
            }
        });
    }
    for (std::thread& each : threads) each.join();
    return thrown;
}
struct world {
    hub net;
    std::deque<rank_end> ranks{};
    explicit world(int size) : net(size) {
        for (int r = 0; r < size; ++r) ranks.emplace_back(net.connect(r));
    }
};
auto const nothing_thrown = [](std::vector<std::string> const& thrown) {
    return thrown == std::vector<std::string>(thrown.size());
};

} // namespace

TEST_CASE("messages between two ranks arrive with their content, envelope and order, both ways at once") {
    world w{2};
    constexpr int count = 300;
    std::vector<int> wrong(2);
    auto const body = [&](int me) -> task<> {
        rank_end& own = w.ranks[static_cast<std::size_t>(me)];
        std::deque<std::vector<float>> sent;
        scope children{co_await this_environment{}};
        for (int i = 0; i < count; ++i) {
            sent.emplace_back(static_cast<std::size_t>(1 + i % 40), static_cast<float>(1000 * me + i));
            children.spawn(own.send(1 - me, static_cast<std::uint64_t>(i), sent.back()));
        }
        for (int i = 0; i < count; ++i) {
            std::vector<float> const got = co_await own.receive(1 - me, static_cast<std::uint64_t>(i));
            auto const length = static_cast<std::size_t>(1 + i % 40);
            std::vector<float> const expected(length, static_cast<float>(1000 * (1 - me) + i));
            wrong[static_cast<std::size_t>(me)] += got != expected;
        }
        co_await children.join();
    };
    CHECK(nothing_thrown(on_all(w.ranks, body)));
    CHECK(wrong == std::vector<int>{0, 0});
    for (rank_end const& each : w.ranks) CHECK(each.wrong == 0);
}

TEST_CASE("messages of different senders do not mix") {
    world w{4};
    std::vector<float> got;
    auto const body = [&](int me) -> task<> {
        rank_end& own = w.ranks[static_cast<std::size_t>(me)];
        std::vector<float> const mine{static_cast<float>(me)};
        if (me != 0) {
            co_await own.send(0, 5, mine);
            co_return;
        }
        for (int from : {3, 1, 2}) {
            std::vector<float> const values = co_await own.receive(from, 5);
            got.push_back(values.front());
        }
    };
    CHECK(nothing_thrown(on_all(w.ranks, body)));
    CHECK(got == std::vector<float>{3, 1, 2});
}

TEST_CASE("a message that is not the expected one is an error that names both ranks and both identities") {
    world w{2};
    auto const body = [&](int me) -> task<> {
        rank_end& own = w.ranks[static_cast<std::size_t>(me)];
        std::vector<float> const values{1};
        if (me == 0) {
            co_await own.send(1, 41, values);
        } else {
            std::vector<float> const got = co_await own.receive(0, 42);
        }
    };
    auto const thrown = on_all(w.ranks, body);
    CHECK_THAT(thrown[1], says("rank 1 expected message 42 from rank 0 but got 41"));
    CHECK_THAT(thrown[0], says("rank 1 failed"));
}

TEST_CASE("data is read only after the sender's work before the event, and the send ends only after it was copied") {
    world w{2};
    std::vector<float> got;
    bool copied_before_end = false;
    std::atomic<bool> reading{false};
    auto const body = [&](int me) -> task<> {
        rank_end& own = w.ranks[static_cast<std::size_t>(me)];
        if (me == 0) {
            std::vector<float> values(1000, 0.0F);
            own.stream->launch([to = values.data()] {
                std::this_thread::sleep_for(10ms);
                for (std::size_t i = 0; i < 1000; ++i) to[i] = 3;
            });
            co_await own.send(1, 1, values);
            copied_before_end = reading;
            values.assign(1000, -1.0F); // the buffer is ours again
        } else {
            auto arrived = co_await own.end.arrival(0, 1);
            got.resize(1000);
            own.stream->launch([&reading] { // the copy is still far away
                std::this_thread::sleep_for(20ms);
                reading = true;
            });
            auto const moved = own.end.accept(arrived, got.data(), *own.stream, timing::off);
            co_await moved.end.completion();
        }
    };
    CHECK(nothing_thrown(on_all(w.ranks, body)));
    CHECK(copied_before_end);
    CHECK(got == std::vector<float>(1000, 3.0F));
}

TEST_CASE("an all-reduce gives every rank the same sums, added in rank order, round after round") {
    for (int size : {1, 2, 5}) {
        world w{size};
        std::vector<int> wrong(static_cast<std::size_t>(size));
        constexpr int rounds = 500;
        auto const value = [](int rank, int round) { return 1.0 / (1 + rank) + 1e-9 * round; };
        auto const body = [&](int me) -> task<> {
            for (int round = 0; round < rounds; ++round) {
                std::array<double, 2> values{value(me, round), static_cast<double>(me)};
                co_await w.ranks[static_cast<std::size_t>(me)].end.all_reduce(values);
                double sum = 0;
                for (int r = 0; r < size; ++r) sum += value(r, round);
                wrong[static_cast<std::size_t>(me)] += values[0] != sum || values[1] != size * (size - 1) / 2.0;
            }
        };
        CHECK(nothing_thrown(on_all(w.ranks, body)));
        CHECK(wrong == std::vector<int>(static_cast<std::size_t>(size)));
    }
}

TEST_CASE("abort ends every pending send, arrival and all-reduce of every rank, and reset makes all usable again") {
    world w{4};
    for (int round = 0; round < 50; ++round) {
        std::vector<float> const values{1};
        auto const body = [&](int me) -> task<> {
            rank_end& own = w.ranks[static_cast<std::size_t>(me)];
            std::array<double, 1> sum{1};
            if (me == 0) co_await own.send(1, 1, values); // rank 1 never receives it
            if (me == 1) static_cast<void>(co_await own.receive(2, 1));
            if (me == 2) co_await own.end.all_reduce(sum);
            if (me == 3) {
                if (round % 2 == 0) std::this_thread::sleep_for(1ms);
                own.end.abort();
                own.end.abort();
                co_await own.send(0, 9, values); // and later ones, too
            }
        };
        auto const thrown = on_all(w.ranks, body);
        for (auto const& each : thrown) CHECK_THAT(each, says("rank 3 failed"));
        for (rank_end& each : w.ranks) each.end.reset();
        auto const again = [&](int me) -> task<> {
            rank_end& own = w.ranks[static_cast<std::size_t>(me)];
            std::array<double, 1> sum{1};
            co_await own.end.all_reduce(sum);
            own.wrong += sum[0] != 4;
            scope children{co_await this_environment{}};
            children.spawn(own.send((me + 1) % 4, 1, values));
            std::vector<float> const got = co_await own.receive((me + 3) % 4, 1);
            own.wrong += got != values;
            co_await children.join();
        };
        REQUIRE(nothing_thrown(on_all(w.ranks, again)));
        for (rank_end const& each : w.ranks) REQUIRE(each.wrong == 0);
    }
}

TEST_CASE("a message that nobody received before the reset does not arrive after it") {
    world w{2};
    std::vector<float> const old_values{1}, new_values{2};
    auto const fails = [&](int me) -> task<> {
        rank_end& own = w.ranks[static_cast<std::size_t>(me)];
        if (me == 0) {
            scope children{co_await this_environment{}};
            children.spawn(own.send(1, 1, old_values));
            own.end.abort();
            co_await children.join();
        }
    };
    auto const thrown = on_all(w.ranks, fails);
    CHECK_THAT(thrown[0], says("rank 0 failed"));
    for (rank_end& each : w.ranks) each.end.reset();
    std::vector<float> got;
    auto const works = [&](int me) -> task<> {
        rank_end& own = w.ranks[static_cast<std::size_t>(me)];
        if (me == 0) {
            co_await own.send(1, 1, new_values);
        } else {
            got = co_await own.receive(0, 1);
        }
    };
    CHECK(nothing_thrown(on_all(w.ranks, works)));
    CHECK(got == new_values);
}

TEST_CASE("ranks that share one thread and one executor exchange messages") {
    hub net{2};
    executor exec;
    host_device dev{host_execution::inline_};
    host_stream& stream = dev.open_stream("s");
    std::array<endpoint, 2> ends{net.connect(0), net.connect(1)};
    std::vector<float> const values{4, 5};
    std::vector<float> got(2);
    auto const sender = [&]() -> task<> {
        auto const ready = stream.record();
        envelope const what{.identity = 1, .bytes = 8};
        auto const read = co_await ends[0].send(1, what, values.data(), ready);
        co_await read.completion();
    };
    auto const receiver = [&]() -> task<> {
        auto arrived = co_await ends[1].arrival(0, 1);
        auto const moved = ends[1].accept(arrived, got.data(), stream, timing::off);
        co_await moved.end.completion();
    };
    auto const body = [&]() -> task<> {
        scope children{co_await this_environment{}};
        children.spawn(receiver());
        children.spawn(sender());
        co_await children.join();
    };
    run(exec, body());
    CHECK(got == values);
}

TEST_CASE("the endpoint models the transport concept") {
    STATIC_REQUIRE(transport_endpoint<endpoint, host_device>);
    STATIC_REQUIRE_FALSE(transport_endpoint<hub, host_device>);
}
