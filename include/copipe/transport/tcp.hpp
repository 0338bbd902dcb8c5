// SPDX-License-Identifier: Apache-2.0
// The transport between ranks that are processes, on one machine or several: frames over TCP connections, served by a
// thread of their own, so that a process that dies is noticed while its peers compute.
#pragma once

#include "copipe/async/channel.hpp"
#include "copipe/device/host.hpp"
#include "copipe/transport/tcp_frame.hpp"
#include "copipe/transport/tcp_mesh.hpp"
#include "copipe/transport/transport.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <concepts>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace copipe {

struct tcp_options {
    meeting_options meeting{};
    std::chrono::milliseconds silence{30'000}; ///< of a peer, after which it counts as gone
};

/// Connects this process, which is one rank, to all others. Outlives its endpoint and all operations.
///
/// A process that ends without a word, or is silent for too long, is gone for good: every operation of every other rank
/// throws peer_lost. A rank that merely failed (`abort`) can go on after all have called `reset`.
template <device Device>
class tcp {
public:
    class endpoint;
    class sending;

    /// Blocks until all processes have met. Throws rendezvous_error.
    explicit tcp(launch const& own, tcp_options const& options = {})
        : own_(own.rank), silence_(options.silence), mesh_(io_, own, options.meeting) {
        static_assert(std::same_as<Device, host_device>,
                      "TCP reads and writes host memory: take another transport for this device");
        for (int peer = 0; peer < own.size; ++peer) lines_.emplace_back(peer);
        server_ = std::thread([this] {
            try {
                run(exec_, serve(), stop_.get_token());
            } catch (cancelled const&) { // the end of this object
            }
        });
    }
    tcp(tcp const&) = delete;
    auto operator=(tcp const&) -> tcp& = delete;
    /// Takes leave of the others: what was sent is still delivered.
    ~tcp() {
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
    /// The end of this process's rank, which must be `rank`.
    [[nodiscard]] auto connect(int rank) -> endpoint {
        if (rank != own_)
            throw error("this process is rank " + std::to_string(own_) + " and has no end for rank " +
                        std::to_string(rank));
        return endpoint{*this};
    }
    [[nodiscard]] auto meeting() const noexcept -> copipe::meeting const& { return mesh_.met(); }

private:
    using clock = std::chrono::steady_clock;
    static constexpr auto has_left = "it has ended its own work and left";

public:
    /// A message that has come in.
    class parcel {
    public:
        envelope what{};

    private:
        friend tcp;
        tcp_block bytes_{};
        bool last_ = false; ///< no message: the peer has left
    };

    /// The awaitable of a send: ends when the data has been handed to the operating system, and so with a done event.
    class [[nodiscard]] sending : tcp_sender {
    public:
        sending(tcp& hub, int to, envelope const& what, void const* data, typename Device::event const& ready) noexcept
            : hub_(&hub), to_(to), what_(what), data_(data), ready_(&ready) {}
        sending(sending const&) = delete;
        auto operator=(sending const&) -> sending& = delete;

        [[nodiscard]] static constexpr auto await_ready() noexcept -> bool { return false; }
        void await_suspend(std::coroutine_handle<> self, environment const* inherited) {
            handle = self;
            env = inherited;
            tcp_outgoing sent{{.kind = tcp_kind::message, .payload = what_.bytes, .what = what_}};
            sent.data = data_;
            sent.ready = ready_;
            sent.sender.reset(this);
            hub_->post(hub_->line_to(to_), std::move(sent));
        }
        [[nodiscard]] auto await_resume() const -> typename Device::event {
            if (failed) hub_->rethrow(to_);
            return {};
        }

    private:
        tcp* hub_;
        int to_;
        envelope what_;
        void const* data_;
        typename Device::event const* ready_;
    };

    /// This rank's end. See transport_endpoint.
    class endpoint {
    public:
        using parcel = tcp::parcel;

        [[nodiscard]] auto send(int to, envelope const& what, void const* data, typename Device::event const& ready)
            -> sending {
            return sending{*hub_, to, what, data, ready};
        }
        [[nodiscard]] auto arrival(int from, std::uint64_t identity) -> task<parcel> {
            parcel arrived = co_await hub_->line_to(from).messages.receive();
            hub_->check(arrived, from);
            if (arrived.what.identity != identity)
                throw message_mismatch{from, hub_->own_, identity, arrived.what.identity};
            co_return arrived;
        }
        [[nodiscard]] auto accept(parcel& arrived, void* to, typename Device::stream& stream, timing timed)
            -> transfer<Device> {
            while (!copies_.empty() && copies_.front().first.done()) {
                hub_->blocks_.recycle(std::move(copies_.front().second));
                copies_.pop_front();
            }
            transfer<Device> copied;
            if (timed == timing::on) copied.start = stream.record(timed);
            if (arrived.what.bytes != 0) stream.copy(to, arrived.bytes_.bytes.get(), arrived.what.bytes);
            copied.end = stream.record(timed);
            copies_.emplace_back(stream.record(), std::move(arrived.bytes_));
            return copied;
        }
        /// Rank 0 adds up.
        [[nodiscard]] auto all_reduce(std::span<double> values) -> task<> {
            if (hub_->own_ != 0) {
                hub_->post_sum(0, values);
                parcel const sums = co_await hub_->line_to(0).sums.receive();
                hub_->check(sums, 0);
                std::memcpy(values.data(), sums.bytes_.bytes.get(), values.size_bytes());
                hub_->advance(1);
                co_return;
            }
            std::vector<double> added(values.begin(), values.end());
            for (int rank = 1; rank < hub_->ranks(); ++rank) {
                parcel const share = co_await hub_->line_to(rank).sums.receive();
                hub_->check(share, rank);
                auto const* const addend = reinterpret_cast<double const*>(share.bytes_.bytes.get());
                std::transform(added.begin(), added.end(), addend, added.begin(), std::plus<>{});
            }
            std::copy(added.begin(), added.end(), values.begin());
            for (int rank = 1; rank < hub_->ranks(); ++rank) hub_->post_sum(rank, values);
            hub_->advance(1);
        }
        void abort() { hub_->fail(hub_->own_); }
        void reset() { hub_->reset(); }
        /// Sends an envelope alone: its arrival is not to be accepted, and nobody waits for it.
        void post(int to, envelope const& what) {
            hub_->post(hub_->line_to(to), {.kind = tcp_kind::message, .what = what});
        }
        /// What ended all operations; null while nothing has. From any thread.
        [[nodiscard]] auto failure() const -> std::exception_ptr {
            std::scoped_lock const lock{hub_->mutex_};
            return hub_->reason_;
        }

    private:
        friend tcp;
        explicit endpoint(tcp& hub) noexcept : hub_(&hub) {}
        tcp* hub_;
        std::deque<std::pair<typename Device::event, tcp_block>> copies_{}; ///< under way, with what they read
    };

private:
    /// The way to one peer, and what came from it.
    struct line {
        int peer;
        channel<tcp_outgoing> to_write{};
        channel<parcel> messages{};
        channel<parcel> sums{};
        clock::time_point heard = clock::now();
        bool closed = false; ///< nothing can be written to it or will come from it
        bool left = false;   ///< because it took leave

        explicit line(int rank) : peer(rank) {}
    };
    [[nodiscard]] auto line_to(int rank) -> line& { return lines_[static_cast<std::size_t>(rank)]; }
    [[nodiscard]] auto socket_to(line const& to) -> tcp_mesh::tcp::socket& {
        return *mesh_.sockets()[static_cast<std::size_t>(to.peer)];
    }

    // What follows is called on the rank's thread as well as on the server's.

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
    void post_sum(int to, std::span<double const> values) {
        tcp_outgoing sent{{.kind = tcp_kind::sum, .payload = values.size_bytes()}};
        sent.own = blocks_.take(values.size_bytes());
        std::memcpy(sent.own.bytes.get(), values.data(), values.size_bytes());
        sent.data = sent.own.bytes.get();
        post(line_to(to), std::move(sent));
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
    /// Called on the rank's thread alone, which therefore may read the phase.
    void advance(tcp_phase by) {
        {
            std::scoped_lock const lock{mutex_};
            phase_ += by;
        }
        boost::asio::post(io_, [this, by] { reached_.advance(by); });
    }
    /// What comes after a peer's last message: it stays where it is.
    static void send_last(line& from) {
        for (channel<parcel>* each : {&from.messages, &from.sums}) {
            parcel none;
            none.last_ = true;
            each->send(std::move(none));
        }
    }
    void check(parcel const& arrived, int from) {
        if (!arrived.last_) return;
        {
            std::scoped_lock const lock{mutex_};
            if (culprit_ < 0) send_last(line_to(from));
        }
        throw peer_lost{from, has_left};
    }
    [[noreturn]] void rethrow(int to) {
        std::scoped_lock const lock{mutex_};
        if (reason_) std::rethrow_exception(reason_);
        throw peer_lost{to, has_left};
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
        parcel arrived;
        arrived.what = head.what;
        if (head.payload != 0) {
            arrived.bytes_ = blocks_.take(head.payload);
            co_await boost::asio::async_read(
                socket_to(from), boost::asio::buffer(arrived.bytes_.bytes.get(), head.payload), use_task);
        }
        from.heard = clock::time_point::max(); // while this rank is behind, nothing is read
        co_await reached_.reached(head.when);
        from.heard = clock::now();
        deliver(from, head, std::move(arrived));
    }
    void deliver(line& from, tcp_frame const& head, parcel arrived) {
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
    std::mutex mutex_{};
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

static_assert(transport_endpoint<tcp<host_device>::endpoint, host_device>);

} // namespace copipe
