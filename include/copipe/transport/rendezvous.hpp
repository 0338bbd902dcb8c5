// SPDX-License-Identifier: Apache-2.0
// Where the processes of a job meet: a small TCP server on rank 0 to which every process brings a card, and from which
// it takes the cards of all, or one sentence that says why the job cannot start.
#pragma once

#include "copipe/async/asio.hpp"
#include "copipe/async/scope.hpp"
#include "copipe/transport/launch.hpp"

#include <boost/asio/connect.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace copipe {

/// The processes of a job did not come together; the sentence says which is missing or does not belong.
class rendezvous_error : public error {
public:
    using error::error;
};

struct meeting_options {
    std::chrono::milliseconds deadline{60'000}; ///< for all to have come; each process counts from its own start
    std::chrono::milliseconds retry{100};       ///< between two attempts to reach rank 0
};

/// What every process knows after the meeting.
struct meeting {
    struct member {
        std::string address; ///< at which rank 0 saw it
        std::string card;    ///< what it brought
    };
    std::uint64_t token = 0;       ///< drawn by rank 0: tells this job's processes from others
    std::vector<member> members{}; ///< by rank
};

/// Numbers and texts, one after another, in the byte order of the machine.
class packet {
public:
    packet() = default;
    explicit packet(std::string bytes) : bytes_(std::move(bytes)) {}

    auto put(std::uint64_t number) -> packet& {
        bytes_.append(reinterpret_cast<char const*>(&number), sizeof number);
        return *this;
    }
    auto put(std::string_view text) -> packet& {
        put(text.size());
        bytes_.append(text);
        return *this;
    }
    [[nodiscard]] auto number() -> std::uint64_t {
        std::uint64_t value = 0;
        std::memcpy(&value, take(sizeof value).data(), sizeof value);
        return value;
    }
    [[nodiscard]] auto text() -> std::string { return std::string(take(number())); }
    [[nodiscard]] auto bytes() const noexcept -> std::string const& { return bytes_; }

private:
    [[nodiscard]] auto take(std::uint64_t count) -> std::string_view {
        if (count > bytes_.size() - read_) throw rendezvous_error("a message of another program came in");
        return std::string_view(bytes_).substr(std::exchange(read_, read_ + count), count);
    }
    std::string bytes_{};
    std::size_t read_ = 0;
};

/// One process's part in a meeting. `meet` is what programs call.
class meeting_place {
public:
    using tcp = boost::asio::ip::tcp;

    meeting_place(boost::asio::io_context& io, launch own, std::string card, meeting_options options)
        : io_(&io), own_(std::move(own)), card_(std::move(card)), options_(options), timer_(io) {
        met_.members.resize(static_cast<std::size_t>(own_.size));
    }

    /// Comes to the meeting and leaves it when all have come. Throws rendezvous_error.
    auto attend() -> meeting {
        asio_executor exec{*io_};
        expire_after(options_.deadline);
        try {
            run(exec, own_.rank == 0 ? host() : join(), late_.get_token());
        } catch (cancelled const&) {
            if (refusal_.empty()) refuse_all(reason_of_delay());
            throw rendezvous_error(refusal_);
        }
        return std::move(met_);
    }

private:
    static constexpr std::uint64_t greeting = 0x0131'6570'6970'6f63; // "copipe1" and a byte
    static constexpr std::uint64_t longest = std::uint64_t{1} << 26U;
    struct all_came {};

    [[nodiscard]] auto place() const -> std::string { return own_.address + ":" + std::to_string(own_.port); }
    [[nodiscard]] auto self() const -> std::string { return "rank " + std::to_string(own_.rank); }

    void expire_after(std::chrono::milliseconds time) {
        timer_.expires_after(time);
        timer_.async_wait([this](boost::system::error_code const& stopped) {
            if (!stopped) late_.request_stop();
        });
    }
    [[nodiscard]] auto reason_of_delay() const -> std::string {
        std::string const within =
            " within " + std::to_string(std::chrono::duration<double>{options_.deadline}.count()).substr(0, 5) + " s";
        if (own_.rank != 0 && !reached_)
            return self() + " could not reach rank 0 at " + place() + within + " (" + trouble_ +
                   "): check that rank 0 runs, and MASTER_ADDR and MASTER_PORT";
        if (own_.rank != 0) return self() + " reached " + place() + ", but rank 0 did not answer" + within;
        std::string missing;
        for (std::size_t rank = 1; rank < met_.members.size(); ++rank)
            if (met_.members[rank].address.empty()) missing += (missing.empty() ? "" : ", ") + std::to_string(rank);
        return "not all of the " + std::to_string(own_.size) + " processes came to " + place() + within +
               ": missing are the ranks " + missing;
    }

    static auto send(tcp::socket& to, packet const& what) -> task<> {
        packet const whole{packet{}.put(what.bytes())};
        co_await boost::asio::async_write(to, boost::asio::buffer(whole.bytes()), use_task);
    }
    static auto receive(tcp::socket& from) -> task<packet> {
        std::uint64_t size = 0;
        co_await boost::asio::async_read(from, boost::asio::buffer(&size, sizeof size), use_task);
        if (size > longest) throw rendezvous_error("a message of another program came in");
        std::string bytes(size, '\0');
        co_await boost::asio::async_read(from, boost::asio::buffer(bytes), use_task);
        co_return packet{std::move(bytes)};
    }

    auto host() -> task<> {
        tcp::acceptor door{*io_};
        open(door);
        std::random_device draw;
        met_.token = (std::uint64_t{draw()} << 32U) | draw();
        met_.members[0] = {own_.address, card_};
        {
            scope guests{co_await this_environment{}};
            if (own_.size > 1) guests.spawn(admit(door, guests));
            try {
                co_await guests.join();
            } catch (all_came const&) {
            }
        }
        door.close(); // whoever has its answer may come to the next meeting here
        packet answer;
        answer.put(greeting).put("").put(met_.token);
        for (auto const& each : met_.members) answer.put(each.address).put(each.card);
        for (auto& [rank, socket] : guests_) {
            bool left = false;
            try {
                co_await send(socket, answer);
            } catch (boost::system::system_error const&) {
                left = true;
            }
            if (left)
                throw rendezvous_error("rank " + std::to_string(rank) + " came to " + place() + " and left again");
        }
    }

    void open(tcp::acceptor& door) const {
        try {
            tcp::endpoint const any{tcp::v4(), own_.port};
            door.open(any.protocol());
            door.set_option(tcp::acceptor::reuse_address(true));
            door.bind(any);
            door.listen();
        } catch (boost::system::system_error const& failed) {
            throw rendezvous_error("rank 0 cannot listen at port " + std::to_string(own_.port) + " (" +
                                   failed.code().message() +
                                   "): another process has rank 0, or another program this MASTER_PORT");
        }
    }

    auto admit(tcp::acceptor& door, scope& guests) -> task<> {
        for (;;) {
            tcp::socket guest = co_await door.async_accept(use_task);
            guests.spawn(welcome(std::move(guest)));
        }
    }
    /// Takes a guest's card, and leaves strangers standing. A guest whose place is not as the others' ends the meeting,
    /// once those who are about to come have been told, too.
    auto welcome(tcp::socket guest) -> task<> {
        std::string job, card;
        std::uint64_t size = 0, rank = 0;
        bool known = false;
        try {
            packet hello = co_await receive(guest);
            known = hello.number() == greeting;
            job = hello.text();
            size = hello.number();
            rank = hello.number();
            card = hello.text();
        } catch (boost::system::system_error const&) {
            known = false;
        } catch (rendezvous_error const&) {
            known = false;
        }
        if (!known) co_return;
        if (job != own_.job) {
            refuse(guest, "rank 0 at " + place() + " belongs to job \"" + own_.job + "\", not to \"" + job +
                              "\": give each job a MASTER_PORT of its own");
            co_return;
        }
        std::string const name = "rank " + std::to_string(rank);
        std::string wrong;
        if (size != met_.members.size()) {
            wrong = name + " was started as one of " + std::to_string(size) + " processes, rank 0 as one of " +
                    std::to_string(own_.size) + ": start all with the same WORLD_SIZE";
        } else if (rank == 0 || rank >= size || !met_.members[rank].address.empty()) {
            wrong = "two processes came to " + place() + " as " + name + ": give each a RANK of its own";
        }
        if (!wrong.empty() && refusal_.empty()) {
            refuse_all(wrong);
            expire_after(std::min(options_.deadline, 10 * options_.retry));
        }
        if (!refusal_.empty()) {
            refuse(guest, refusal_);
            co_return;
        }
        met_.members[rank] = {guest.remote_endpoint().address().to_string(), std::move(card)};
        guests_.emplace_back(rank, std::move(guest));
        if (guests_.size() + 1 == met_.members.size()) throw all_came{};
    }

    void refuse_all(std::string sentence) {
        refusal_ = std::move(sentence);
        for (auto& [rank, socket] : guests_) refuse(socket, refusal_);
    }
    static void refuse(tcp::socket& guest, std::string const& sentence) {
        boost::system::error_code gone;
        packet const answer{packet{}.put(greeting).put(sentence)};
        boost::asio::write(guest, boost::asio::buffer(packet{}.put(answer.bytes()).bytes()), gone);
    }

    auto join() -> task<> {
        tcp::socket socket{*io_};
        while (!reached_) {
            try {
                tcp::resolver names{*io_};
                auto const found = co_await names.async_resolve(own_.address, std::to_string(own_.port), use_task);
                co_await boost::asio::async_connect(socket, found, use_task);
                reached_ = true;
            } catch (boost::system::system_error const& failed) {
                trouble_ = failed.code().message();
            }
            if (reached_) break;
            boost::asio::steady_timer pause{*io_, options_.retry};
            co_await pause.async_wait(use_task);
        }
        expire_after(options_.deadline + std::chrono::seconds{2}); // rank 0, who knows whom it waits for, ends first
        packet hello;
        hello.put(greeting).put(own_.job).put(met_.members.size()).put(static_cast<std::uint64_t>(own_.rank));
        hello.put(card_);
        packet answer;
        try {
            co_await send(socket, hello);
            answer = co_await receive(socket);
        } catch (boost::system::system_error const& failed) {
            throw rendezvous_error(self() + " reached " + place() + ", but the connection ended before all had come (" +
                                   failed.code().message() + "): rank 0 has ended, or what listens there is not it");
        }
        if (answer.number() != greeting)
            throw rendezvous_error(self() + " reached " + place() + ", but what listens there is not rank 0");
        if (std::string const refusal = answer.text(); !refusal.empty()) throw rendezvous_error(refusal);
        met_.token = answer.number();
        for (auto& each : met_.members) {
            each.address = answer.text();
            each.card = answer.text();
        }
    }

    boost::asio::io_context* io_;
    launch own_;
    std::string card_;
    meeting_options options_;
    boost::asio::steady_timer timer_;
    std::stop_source late_{};
    bool reached_ = false;
    std::string trouble_ = "no attempt has ended";
    std::string refusal_{}; ///< why rank 0 sends everyone away
    std::vector<std::pair<std::uint64_t, tcp::socket>> guests_{};
    meeting met_{};
};

/// Blocks until all processes of the job have met, or throws rendezvous_error in every one of them. `card` is what
/// the others should know of this process, at most 1 MiB or so.
[[nodiscard]] inline auto meet(launch const& own, std::string card, meeting_options const& options = {}) -> meeting {
    boost::asio::io_context io{1};
    return meeting_place{io, own, std::move(card), options}.attend();
}

} // namespace copipe
