// SPDX-License-Identifier: Apache-2.0
// This process's connections to all others, served by a thread of their own, so that a process that dies is noticed
// while its peers compute.
#pragma once

#include "copipe/async/channel.hpp"
#include "copipe/transport/tcp_frame.hpp"
#include "copipe/transport/tcp_mesh.hpp"
#include "copipe/transport/transport.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <span>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>

namespace copipe {

struct tcp_options {
    meeting_options meeting{};
    std::chrono::milliseconds silence{30'000}; ///< of a peer, after which it counts as gone
};

/// A message that has come in.
struct tcp_arrival {
    envelope what{};
    tcp_block bytes{};
    bool last = false; ///< no message: the peer has left
};

/// What the ranks say to each other, in frames. Outlives all that waits for it.
template <class = void> class basic_tcp_server {
public:
    /// Blocks until all processes have met. Throws rendezvous_error.
    basic_tcp_server(launch const& own, tcp_options const& options)
        : own_(own.rank), silence_(options.silence), mesh_(io_, own, options.meeting) {
        for (int peer = 0; peer < own.size; ++peer) lines_.emplace_back(peer);
        server_ = std::thread([this] {
            try {
                run(exec_, serve(), stop_.get_token());
            } catch (cancelled const&) { // the end of this object
            }
        });
    }
    basic_tcp_server(basic_tcp_server const&) = delete;
    auto operator=(basic_tcp_server const&) -> basic_tcp_server& = delete;
    /// Takes leave of the others: what was sent is still delivered.
    ~basic_tcp_server() {
        for (line& each : lines_) post(each, {.kind = tcp_kind::left});
        boost::asio::post(io_, [this] {
            farewell_.expires_after(std::min<std::chrono::milliseconds>(silence_, std::chrono::seconds{5}));
            farewell_.async_wait([this](boost::system::error_code const& stopped) {
                if (!stopped) stop_.request_stop();
            });
        });
        server_.join();
    }

    [[nodiscard]] auto ranks() const noexcept -> int { return static_cast<int>(lines_.size()); }
    /// The rank of this process.
    [[nodiscard]] auto own() const noexcept -> int { return own_; }
    [[nodiscard]] auto meeting() const noexcept -> copipe::meeting const& { return mesh_.met(); }
    [[nodiscard]] auto messages_of(int peer) -> channel<tcp_arrival>& { return line_to(peer).messages; }
    [[nodiscard]] auto sums_of(int peer) -> channel<tcp_arrival>& { return line_to(peer).sums; }
    [[nodiscard]] auto blocks() noexcept -> tcp_blocks& { return blocks_; }

    /// Writes it after all that was posted before. Once operations have ended it is dropped, which fails its sender.
    void post(int to, tcp_outgoing sent) { post(line_to(to), std::move(sent)); }
    void post_sum(int to, std::span<double const> values) {
        tcp_outgoing sent{{.kind = tcp_kind::sum, .payload = values.size_bytes()}};
        sent.own = blocks_.take(values.size_bytes());
        std::memcpy(sent.own.bytes.get(), values.data(), values.size_bytes());
        sent.data = sent.own.bytes.get();
        post(to, std::move(sent));
    }

    /// Ends all operations of this rank, and tells the others.
    void fail(int culprit) {
        {
            std::scoped_lock const lock{mutex_};
            if (culprit_ >= 0) return;
            close(culprit, std::make_exception_ptr(peer_failed{culprit}));
        }
        tell(tcp_kind::failed, culprit);
    }
    /// Operations go on after all ranks have called this; not if one is gone.
    void reset() {
        {
            std::scoped_lock const lock{mutex_};
            culprit_ = -1;
            reason_ = nullptr;
            for (line& each : lines_) {
                each.messages.reset();
                each.sums.reset();
                if (each.left) send_last(each);
            }
            if (lost_) close(lost_rank_, lost_);
        }
        advance(((resets(phase_) + 1) << 32U) - phase_);
    }
    /// This rank has come so much further. Called on the rank's thread alone, which therefore may read the phase.
    void advance(tcp_phase by) {
        {
            std::scoped_lock const lock{mutex_};
            phase_ += by;
        }
        boost::asio::post(io_, [this, by] { reached_.advance(by); });
    }
    /// Throws peer_lost if it is no message: the peer has left.
    void check(tcp_arrival const& arrived, int from) {
        if (!arrived.last) return;
        {
            std::scoped_lock const lock{mutex_};
            if (culprit_ < 0) send_last(line_to(from));
        }
        throw peer_lost{from, has_left};
    }
    /// Throws why a message to that peer was dropped.
    [[noreturn]] void rethrow(int to) {
        std::scoped_lock const lock{mutex_};
        if (reason_) std::rethrow_exception(reason_);
        throw peer_lost{to, has_left};
    }
    /// What ended all operations; null while nothing has. From any thread.
    [[nodiscard]] auto failure() const -> std::exception_ptr {
        std::scoped_lock const lock{mutex_};
        return reason_;
    }

private:
    using clock = std::chrono::steady_clock;
    static constexpr auto has_left = "it has ended its own work and left";

    /// The way to one peer, and what came from it.
    struct line {
        int peer;
        channel<tcp_outgoing> to_write{};
        channel<tcp_arrival> messages{};
        channel<tcp_arrival> sums{};
        clock::time_point heard = clock::now();
        bool closed = false; ///< nothing can be written to it or will come from it
        bool left = false;   ///< because it took leave

        explicit line(int rank) : peer(rank) {}
    };
    [[nodiscard]] auto line_to(int rank) -> line& { return lines_[static_cast<std::size_t>(rank)]; }
    [[nodiscard]] auto socket_to(line const& to) -> tcp_mesh::tcp::socket& {
        return *mesh_.sockets()[static_cast<std::size_t>(to.peer)];
    }

    // On the rank's thread as well as on the server's.

    void post(line& to, tcp_outgoing sent) {
        {
            std::scoped_lock const lock{mutex_};
            bool const counts = sent.head.kind == tcp_kind::message || sent.head.kind == tcp_kind::sum;
            if (counts && culprit_ >= 0) return; // dropped, which fails the sender
            sent.head.when = phase_;
        }
        to.to_write.send(std::move(sent));
    }
    void post(line& to, tcp_frame const& head) { post(to, tcp_outgoing{head}); }
    void tell(tcp_kind what, int culprit) {
        for (line& each : lines_)
            post(each, {.kind = what, .what = {.identity = static_cast<std::uint64_t>(culprit)}});
    }
    /// With the mutex held.
    void close(int culprit, std::exception_ptr reason) {
        culprit_ = culprit;
        reason_ = reason;
        for (line& each : lines_) {
            each.messages.close(reason);
            each.sums.close(reason);
        }
    }
    /// What comes after a peer's last message: it stays where it is.
    static void send_last(line& from) {
        for (channel<tcp_arrival>* each : {&from.messages, &from.sums}) {
            tcp_arrival none;
            none.last = true;
            each->send(std::move(none));
        }
    }

    // From here on, the server's thread only.

    auto serve() -> task<> {
        scope all{co_await this_environment{}};
        all.spawn(watch());
        for (line& each : lines_) {
            if (each.peer == own_) continue;
            all.spawn(write_all(each));
            all.spawn(read_all(each));
        }
        all.spawn(leave());
        co_await all.join();
    }

    /// Writes what is posted, in order, until it has taken leave.
    auto write_all(line& to) -> task<> {
        for (bool leaving = false; !leaving;) {
            tcp_outgoing next = co_await to.to_write.receive();
            leaving = next.head.kind == tcp_kind::left;
            if (next.ready) co_await next.ready->completion();
            if (to.closed || (next.sender && culprit_ >= 0)) continue;
            try {
                std::array<boost::asio::const_buffer, 2> const parts{
                    boost::asio::buffer(&next.head, sizeof next.head),
                    boost::asio::buffer(next.data, next.head.payload)};
                co_await boost::asio::async_write(socket_to(to), parts, use_task);
                next.written();
            } catch (boost::system::system_error const& broken) {
                lose(to, broken.code().message());
            }
            if (next.own.bytes) blocks_.recycle(std::move(next.own));
        }
        left_.advance();
    }

    auto read_all(line& from) -> task<> {
        while (!from.closed) {
            try {
                co_await read_one(from);
            } catch (boost::system::system_error const& broken) {
                lose(from, broken.code().message());
            }
        }
    }
    auto read_one(line& from) -> task<> {
        tcp_frame head;
        co_await boost::asio::async_read(socket_to(from), boost::asio::buffer(&head, sizeof head), use_task);
        from.heard = clock::now();
        if (head.kind == tcp_kind::alive) co_return;
        if (head.kind == tcp_kind::left) {
            bid_farewell(from);
            co_return;
        }
        tcp_arrival arrived;
        arrived.what = head.what;
        if (head.payload != 0) {
            arrived.bytes = blocks_.take(head.payload);
            co_await boost::asio::async_read(
                socket_to(from), boost::asio::buffer(arrived.bytes.bytes.get(), head.payload), use_task);
        }
        from.heard = clock::time_point::max(); // while this rank is behind, nothing is read
        co_await reached_.reached(head.when);
        from.heard = clock::now();
        deliver(from, head, std::move(arrived));
    }
    void deliver(line& from, tcp_frame const& head, tcp_arrival arrived) {
        std::scoped_lock const lock{mutex_};
        if (resets(head.when) != resets(phase_)) return;
        if (head.kind == tcp_kind::message) from.messages.send(std::move(arrived));
        if (head.kind == tcp_kind::sum) from.sums.send(std::move(arrived));
        if (culprit_ >= 0) return;
        auto const culprit = static_cast<int>(head.what.identity);
        if (head.kind == tcp_kind::failed) close(culprit, std::make_exception_ptr(peer_failed{culprit}));
        if (head.kind == tcp_kind::lost)
            close(culprit, std::make_exception_ptr(
                               peer_lost{culprit, "rank " + std::to_string(from.peer) + " heard no more of it"}));
    }

    void bid_farewell(line& to) {
        std::scoped_lock const lock{mutex_};
        to.closed = to.left = true;
        if (culprit_ < 0) send_last(to);
    }

    /// A peer ended without a word: the end of the job.
    void lose(line& gone, std::string const& why) {
        {
            std::scoped_lock const lock{mutex_};
            if (std::exchange(gone.closed, true)) return;
            lost_ = std::make_exception_ptr(peer_lost{gone.peer, why});
            lost_rank_ = gone.peer;
            if (culprit_ < 0) close(lost_rank_, lost_);
        }
        boost::system::error_code ignored;
        socket_to(gone).close(ignored);
        tell(tcp_kind::lost, gone.peer);
    }

    auto watch() -> task<> {
        for (;;) {
            boost::asio::steady_timer pause{io_, silence_ / 4};
            co_await pause.async_wait(use_task);
            for (line& each : lines_) {
                if (each.peer == own_ || each.closed) continue;
                post(each, {.kind = tcp_kind::alive});
                if (clock::now() > each.heard && clock::now() - each.heard > silence_)
                    lose(each, "it has been silent for " + std::to_string(silence_.count()) + " ms");
            }
        }
    }

    /// Ends the server when every peer has been told, or cannot be.
    auto leave() -> task<> {
        co_await left_.reached(lines_.size() - 1);
        stop_.request_stop();
    }

    int own_;
    std::chrono::milliseconds silence_;
    boost::asio::io_context io_{1};
    tcp_mesh mesh_;
    std::deque<line> lines_{};
    mutable std::mutex mutex_{};
    tcp_phase phase_ = 0;
    std::atomic<int> culprit_{-1};
    std::exception_ptr reason_{};
    std::exception_ptr lost_{}; ///< why operations fail after a reset, too
    int lost_rank_ = -1;
    tcp_blocks blocks_{};
    progress_counter reached_{}; ///< the phase, for those on the server's thread
    progress_counter left_{};
    std::stop_source stop_{};
    asio_executor exec_{io_};
    boost::asio::steady_timer farewell_{io_};
    std::thread server_{};
};

using tcp_server = basic_tcp_server<>;

} // namespace copipe
