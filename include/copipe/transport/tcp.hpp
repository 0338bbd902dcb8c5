// SPDX-License-Identifier: Apache-2.0
// The transport between ranks that are processes, on one machine or several: messages over TCP connections.
#pragma once

#include "copipe/device/host.hpp"
#include "copipe/transport/tcp_server.hpp"

#include <algorithm>
#include <concepts>
#include <coroutine>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace copipe {

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
    explicit tcp(launch const& own, tcp_options const& options = {}) : server_(own, options) {
        static_assert(std::same_as<Device, host_device>,
                      "TCP reads and writes host memory: take another transport for this device");
    }

    [[nodiscard]] auto ranks() const noexcept -> int { return server_.ranks(); }
    /// The end of this process's rank, which must be `rank`.
    [[nodiscard]] auto connect(int rank) -> endpoint {
        if (rank != server_.own())
            throw error("this process is rank " + std::to_string(server_.own()) + " and has no end for rank " +
                        std::to_string(rank));
        return endpoint{server_};
    }
    [[nodiscard]] auto meeting() const noexcept -> copipe::meeting const& { return server_.meeting(); }

    /// The awaitable of a send: ends when the data has been handed to the operating system, and so with a done event.
    class [[nodiscard]] sending : tcp_sender {
    public:
        sending(tcp_server& hub, int to, envelope const& what, void const* data,
                typename Device::event const& ready) noexcept
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
            hub_->post(to_, std::move(sent));
        }
        [[nodiscard]] auto await_resume() const -> typename Device::event {
            if (failed) hub_->rethrow(to_);
            return {};
        }

    private:
        tcp_server* hub_;
        int to_;
        envelope what_;
        void const* data_;
        typename Device::event const* ready_;
    };

    /// This rank's end. See transport_endpoint.
    class endpoint {
    public:
        using parcel = tcp_arrival;

        [[nodiscard]] auto send(int to, envelope const& what, void const* data, typename Device::event const& ready)
            -> sending {
            return sending{*hub_, to, what, data, ready};
        }
        [[nodiscard]] auto arrival(int from, std::uint64_t identity) -> task<parcel> {
            parcel arrived = co_await hub_->messages_of(from).receive();
            hub_->check(arrived, from);
            if (arrived.what.identity != identity)
                throw message_mismatch{from, hub_->own(), identity, arrived.what.identity};
            co_return arrived;
        }
        [[nodiscard]] auto accept(parcel& arrived, void* to, typename Device::stream& stream, timing timed)
            -> transfer<Device> {
            while (!copies_.empty() && copies_.front().first.done()) {
                hub_->blocks().recycle(std::move(copies_.front().second));
                copies_.pop_front();
            }
            transfer<Device> copied;
            if (timed == timing::on) copied.start = stream.record(timed);
            if (arrived.what.bytes != 0) stream.copy(to, arrived.bytes.bytes.get(), arrived.what.bytes);
            copied.end = stream.record(timed);
            copies_.emplace_back(stream.record(), std::move(arrived.bytes));
            return copied;
        }
        /// Rank 0 adds up.
        [[nodiscard]] auto all_reduce(std::span<double> values) -> task<> {
            if (hub_->own() != 0) {
                hub_->post_sum(0, values);
                parcel const sums = co_await hub_->sums_of(0).receive();
                hub_->check(sums, 0);
                std::memcpy(values.data(), sums.bytes.bytes.get(), values.size_bytes());
                hub_->advance(1);
                co_return;
            }
            std::vector<double> added(values.begin(), values.end());
            for (int rank = 1; rank < hub_->ranks(); ++rank) {
                parcel const share = co_await hub_->sums_of(rank).receive();
                hub_->check(share, rank);
                auto const* const addend = reinterpret_cast<double const*>(share.bytes.bytes.get());
                std::transform(added.begin(), added.end(), addend, added.begin(), std::plus<>{});
            }
            std::copy(added.begin(), added.end(), values.begin());
            for (int rank = 1; rank < hub_->ranks(); ++rank) hub_->post_sum(rank, values);
            hub_->advance(1);
        }
        void abort() { hub_->fail(hub_->own()); }
        void reset() { hub_->reset(); }
        /// Sends an envelope alone: its arrival is not to be accepted, and nobody waits for it.
        void post(int to, envelope const& what) {
            hub_->post(to, tcp_outgoing{{.kind = tcp_kind::message, .what = what}});
        }
        /// What ended all operations; null while nothing has. From any thread.
        [[nodiscard]] auto failure() const -> std::exception_ptr { return hub_->failure(); }

    private:
        friend tcp;
        explicit endpoint(tcp_server& hub) noexcept : hub_(&hub) {}
        tcp_server* hub_;
        std::deque<std::pair<typename Device::event, tcp_block>> copies_{}; ///< under way, with what they read
    };

private:
    tcp_server server_;
};

static_assert(transport_endpoint<tcp<host_device>::endpoint, host_device>);

} // namespace copipe
