// SPDX-License-Identifier: Apache-2.0
// TCP connections between all processes of a job: rank i calls every lower rank, whose address it knows from the
// rendezvous.
#pragma once

#include "copipe/transport/rendezvous.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

namespace copipe {

/// Meets the other processes and connects to each. `sockets()[r]` then leads to rank r; there is none to itself.
class tcp_mesh {
public:
    using tcp = boost::asio::ip::tcp;

    /// Blocks until every connection stands. Throws rendezvous_error.
    tcp_mesh(boost::asio::io_context& io, launch const& own, meeting_options const& options)
        : io_(&io), rank_(static_cast<std::size_t>(own.rank)), sockets_(static_cast<std::size_t>(own.size)) {
        if (own.size == 1) return;
        tcp::acceptor door{io, tcp::endpoint{tcp::v4(), 0}};
        met_ = meet(own, packet{}.put(door.local_endpoint().port()).bytes(), options);
        std::stop_source late;
        boost::asio::steady_timer timer{io, options.deadline};
        timer.async_wait([&late](boost::system::error_code const& stopped) {
            if (!stopped) late.request_stop();
        });
        try {
            asio_executor exec{io};
            run(exec, connect(door), late.get_token());
        } catch (cancelled const&) {
            throw rendezvous_error("rank " + std::to_string(rank_) + " met all others, but not all could connect: " +
                                   "missing is the connection to rank " + std::to_string(next_) +
                                   "; does a firewall close the ports above 32768?");
        }
        timer.cancel();
        io.poll(); // the timer's handler, before what it refers to is gone
    }

    [[nodiscard]] auto sockets() noexcept -> std::vector<std::optional<tcp::socket>>& { return sockets_; }
    [[nodiscard]] auto met() const noexcept -> meeting const& { return met_; }

private:
    auto connect(tcp::acceptor& door) -> task<> {
        for (next_ = 0; next_ < rank_; ++next_) co_await call(next_);
        for (next_ = rank_ + 1; next_ < sockets_.size();) {
            tcp::socket guest = co_await door.async_accept(use_task);
            co_await admit(std::move(guest));
            while (next_ < sockets_.size() && sockets_[next_]) ++next_;
        }
    }
    auto call(std::size_t peer) -> task<> {
        tcp::socket socket{*io_};
        packet card{met_.members[peer].card};
        std::string const port = std::to_string(card.number());
        std::string const at = met_.members[peer].address;
        try {
            tcp::resolver names{*io_};
            auto const found = co_await names.async_resolve(at, port, use_task);
            co_await boost::asio::async_connect(socket, found, use_task);
            packet const hello{packet{}.put(met_.token).put(rank_)};
            co_await boost::asio::async_write(socket, boost::asio::buffer(hello.bytes()), use_task);
        } catch (boost::system::system_error const& failed) {
            throw rendezvous_error("rank " + std::to_string(rank_) + " could not connect to rank " +
                                   std::to_string(peer) + " at " + at + ":" + port + " (" + failed.code().message() +
                                   ")");
        }
        keep(peer, std::move(socket));
    }
    /// Whoever does not know the job's token is a stranger, and left standing.
    auto admit(tcp::socket guest) -> task<> {
        std::string bytes(2 * sizeof(std::uint64_t), '\0');
        bool said = true;
        try {
            co_await boost::asio::async_read(guest, boost::asio::buffer(bytes), use_task);
        } catch (boost::system::system_error const&) {
            said = false;
        }
        packet hello{std::move(bytes)};
        if (!said || hello.number() != met_.token) co_return;
        std::uint64_t const peer = hello.number();
        if (peer > rank_ && peer < sockets_.size()) keep(peer, std::move(guest));
    }
    void keep(std::size_t peer, tcp::socket socket) {
        socket.set_option(tcp::no_delay(true));
        sockets_[peer].emplace(std::move(socket));
    }

    boost::asio::io_context* io_;
    std::size_t rank_;
    std::vector<std::optional<tcp::socket>> sockets_;
    meeting met_{};
    std::size_t next_ = 0;
};

} // namespace copipe
