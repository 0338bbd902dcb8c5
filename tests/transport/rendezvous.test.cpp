// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "says.hpp"
#include "transport/processes.hpp"

#include "copipe/transport/rendezvous.hpp"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using namespace copipe;
using namespace std::chrono_literals;

namespace {

auto place(int rank, int size, std::uint16_t port) -> launch {
    return {.rank = rank, .size = size, .local_rank = rank, .local_size = size, .port = port};
}
constexpr meeting_options patient{.deadline = 20s, .retry = 5ms};
constexpr meeting_options hurried{.deadline = 300ms, .retry = 10ms};

/// What each of several processes, here threads, learned at the meeting, or why it did not take place.
auto met_by(std::vector<launch> const& all, meeting_options const& options) -> std::vector<std::string> {
    std::vector<std::string> told(all.size());
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < all.size(); ++i) {
        threads.emplace_back([&, i] {
            try {
                meeting const met = meet(all[i], "card " + std::to_string(all[i].rank), options);
                for (auto const& each : met.members) told[i] += each.card + ";";
            } catch (rendezvous_error const& e) {
                told[i] = e.what();
            }
        });
    }
    for (std::thread& each : threads) each.join();
    return told;
}

} // namespace

TEST_CASE("all processes of a job learn each other's cards and one token, in whatever order they come") {
    auto const port = free_port();
    forked const job(4, [port](int i) {
        std::this_thread::sleep_for(20ms * ((i + 1) % 4)); // rank 0 is not the first
        meeting const met = meet(place(i, 4, port), "card " + std::to_string(i), patient);
        std::string all = std::to_string(met.token);
        for (auto const& each : met.members) all += " " + each.address + " " + each.card;
        return all;
    });
    std::string const first = job.said(0);
    CHECK_THAT(first, says(" 127.0.0.1 card 0 127.0.0.1 card 1 127.0.0.1 card 2 127.0.0.1 card 3"));
    CHECK(first.find(' ') > 5);
    for (int i = 1; i < 4; ++i) CHECK(job.said(i) == first);
}

TEST_CASE("a process alone meets nobody and needs no port") {
    meeting const met = meet(place(0, 1, 1), "me", hurried);
    REQUIRE(met.members.size() == 1);
    CHECK(met.members[0].card == "me");
}

TEST_CASE("an unreachable rank 0 is an error within the deadline that names place and reason") {
    auto const begin = std::chrono::steady_clock::now();
    auto const port = free_port();
    CHECK_THROWS_WITH(meet(place(1, 2, port), "", hurried),
                      says("rank 1 could not reach rank 0 at 127.0.0.1:" + std::to_string(port)) &&
                          says("within 0.300 s (Connection refused): check that rank 0 runs"));
    CHECK(std::chrono::steady_clock::now() - begin < 5s);
}

TEST_CASE("all who came are told which ranks did not") {
    auto const port = free_port();
    auto const told = met_by({place(0, 5, port), place(1, 5, port), place(3, 5, port)}, hurried);
    for (auto const& each : told)
        CHECK_THAT(each, says("not all of the 5 processes") && says("missing are the ranks 2, 4"));
}

TEST_CASE("processes that do not agree on their number are told so, every one of them") {
    auto const port = free_port();
    for (auto const& each : met_by({place(0, 2, port), place(1, 3, port)}, patient))
        CHECK_THAT(each, says("rank 1 was started as one of 3 processes, rank 0 as one of 2"));
}

TEST_CASE("who comes when the meeting has already failed is told why, not left waiting for the deadline") {
    auto const port = free_port();
    std::string first;
    std::thread host([&] { first = met_by({place(0, 3, port)}, {.deadline = 20s, .retry = 200ms})[0]; });
    std::string const second = met_by({place(1, 4, port)}, patient)[0], third = met_by({place(2, 3, port)}, patient)[0];
    host.join();
    CHECK_THAT(first, says("rank 1 was started as one of 4 processes, rank 0 as one of 3"));
    CHECK(second == first);
    CHECK(third == first);
}

TEST_CASE("two processes with one rank are told so, and so are the others") {
    auto const port = free_port();
    for (auto const& each : met_by({place(0, 3, port), place(1, 3, port), place(1, 3, port)}, patient))
        CHECK_THAT(each, says("two processes came") && says("as rank 1"));
}

TEST_CASE("a second rank 0 finds the port taken") {
    auto const port = free_port();
    auto const told = met_by({place(0, 2, port), place(0, 2, port)}, hurried);
    bool const first = told[0].find("another process has rank 0") != std::string::npos;
    CHECK_THAT(told[first ? 0 : 1], says("cannot listen at port " + std::to_string(port)));
    CHECK_THAT(told[first ? 1 : 0], says("missing are the ranks 1"));
}

TEST_CASE("a process of another job is sent away, and the meeting goes on without it") {
    auto const port = free_port();
    auto const in_job = [port](int rank, char const* job) {
        launch own = place(rank, 2, port);
        own.job = job;
        return own;
    };
    std::string stray, second;
    std::thread other([&] {
        try {
            static_cast<void>(meet(in_job(1, "theirs"), "", patient));
        } catch (rendezvous_error const& e) {
            stray = e.what();
        }
        second = met_by({in_job(1, "ours")}, patient)[0];
    });
    auto const told = met_by({in_job(0, "ours")}, patient);
    other.join();
    CHECK(told[0] == "card 0;card 1;");
    CHECK(second == told[0]);
    CHECK_THAT(stray, says("belongs to job \"ours\", not to \"theirs\""));
}

TEST_CASE("strangers that say something else, or nothing, do not disturb a meeting") {
    auto const port = free_port();
    boost::asio::io_context io;
    boost::asio::ip::tcp::socket silent{io}, chatty{io};
    std::string second;
    std::thread others([&] {
        for (auto* each : {&silent, &chatty}) {
            boost::system::error_code refused = boost::asio::error::not_connected;
            while (refused) {
                each->close();
                each->connect({boost::asio::ip::address_v4::loopback(), port}, refused);
            }
        }
        boost::asio::write(chatty, boost::asio::buffer(std::string("GET / HTTP/1.1\r\nHost: somebody\r\n\r\n")));
        second = met_by({place(1, 2, port)}, patient)[0];
    });
    auto const told = met_by({place(0, 2, port)}, patient);
    others.join();
    CHECK(told[0] == "card 0;card 1;");
    CHECK(second == told[0]);
}

TEST_CASE("a server that is not rank 0 of a job is recognized") {
    auto const port = free_port();
    boost::asio::io_context io;
    boost::asio::ip::tcp::acceptor door{io, {boost::asio::ip::address_v4::loopback(), port}};
    std::thread web([&] {
        auto guest = door.accept();
        packet const nonsense{packet{}.put(packet{}.put(404).put("no such page").bytes())};
        boost::asio::write(guest, boost::asio::buffer(nonsense.bytes()));
        char rest[64];
        boost::system::error_code end;
        while (!end) guest.read_some(boost::asio::buffer(rest), end);
    });
    CHECK_THROWS_WITH(meet(place(1, 2, port), "", patient), says("what listens there is not rank 0"));
    web.join();
}
