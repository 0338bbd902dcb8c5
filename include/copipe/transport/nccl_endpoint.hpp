// SPDX-License-Identifier: Apache-2.0
// What a rank calls on the NCCL transport: NCCL carries the data, the transport of the host the envelopes, the sums of
// a few numbers, and the messages between ranks that have no communicator.
#pragma once

#include "copipe/transport/nccl_rank.hpp"
#include "copipe/transport/transport.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace copipe {

/// One rank's end. See transport_endpoint and summing_endpoint.
template <class Control>
class nccl_endpoint {
    using event = cuda_event;
    using rank_state = nccl_rank<Control>;

public:
    /// `own` outlives the endpoint.
    explicit nccl_endpoint(rank_state& own) noexcept : own_(&own) {}

    /// A message, or, between ranks without communicators, its data too.
    class parcel {
    public:
        envelope what{};

    private:
        friend nccl_endpoint;
        nccl_link* link_ = nullptr;
        bool planned_ = false;
        typename Control::parcel carried_{};
    };

    /// Messages between two ranks in the order of this step's program; `orders` must outlive the step. Both ranks
    /// call it before the first message of a step. In relaxed mode it changes nothing.
    void follow(std::span<exchange_order const> orders) {
        for (nccl_link& each : own_->links) {
            auto const found = std::find_if(orders.begin(), orders.end(),
                                            [&](exchange_order const& o) { return o.peer == each.peer(); });
            each.follow(found == orders.end() ? nullptr : &*found);
        }
    }

    [[nodiscard]] auto send(int to, envelope const& what, void const* data, event const& ready) -> task<event> {
        return send_to(*own_, to, what, data, ready);
    }
    [[nodiscard]] auto arrival(int from, std::uint64_t identity) -> task<parcel> {
        return arrival_from(*own_, from, identity);
    }
    [[nodiscard]] auto accept(parcel& arrived, void* to, cuda_stream& stream, timing timed) -> transfer<cuda_device> {
        own_->require_open();
        if (arrived.link_) return arrived.link_->accept(arrived.what, arrived.planned_, to, stream, timed);
        transfer<cuda_device> moved;
        std::vector<std::byte> buffer(arrived.what.bytes);
        static_cast<void>(own_->control.accept(arrived.carried_, buffer.data(), *own_->host, timing::off));
        if (timed == timing::on) moved.start = stream.record(timed);
        stream.copy(to, buffer.data(), buffer.size()); // ordinary memory is read by the call
        moved.end = stream.record(timed);
        return moved;
    }
    [[nodiscard]] auto all_reduce(std::span<double> values) -> task<> { return add_numbers(*own_, values); }
    /// See summing_endpoint.
    [[nodiscard]] auto sum(std::span<int const> ranks, std::span<summand const> parts, cuda_stream& stream) -> bool {
        own_->require_open();
        nccl_sum* const over = own_->sum_over(ranks);
        if (over) over->add_up(ranks, parts, stream);
        return over;
    }
    void abort() {
        own_->control.abort();
        own_->tear_down(own_->control.failure());
    }
    void reset() { own_->reset(); }

private:
    struct leave {
        void operator()(rank_state* gone) const { gone->leave(); }
    };

    static auto send_to(rank_state& own, int to, envelope what, void const* data, event const& ready) -> task<event> {
        event over;
        try {
            if (nccl_link* const link = own.link_to(to)) {
                own.require_open();
                own.control.post(to, what);
                over = co_await link->send(what, data, ready);
            } else {
                co_await send_through_host(own, to, what, data, ready);
            }
        } catch (peer_failed const&) {
            own.require_open();
            throw;
        }
        co_return over;
    }
    static auto send_through_host(rank_state& own, int to, envelope what, void const* data, event const& ready)
        -> task<> {
        std::uint64_t const turn = own.through_host++;
        std::vector<std::byte> buffer(what.bytes);
        cuda_stream& stream = own.side_stream();
        try {
            stream.wait(ready);
            stream.copy(buffer.data(), data, what.bytes);
            event const there = stream.record();
            co_await there.completion();
            there.check();
        } catch (...) {
            stream.settle(); // what is under way must not end up in a buffer that is let go
            throw;
        }
        co_await own.handed_on.reached(turn);
        own.handed_on.advance(); // the next one goes on once this one has left
        host_event const now;
        host_event const sent = co_await own.control.send(to, what, buffer.data(), now);
        co_await sent.completion();
    }
    static auto arrival_from(rank_state& own, int from, std::uint64_t identity) -> task<parcel> {
        parcel arrived;
        arrived.link_ = own.link_to(from);
        try {
            if (arrived.link_) arrived.link_->await(identity);
            arrived.carried_ = co_await own.control.arrival(from, identity);
            arrived.what = arrived.carried_.what;
            if (arrived.link_) {
                arrived.link_->await(exchange::none);
                arrived.planned_ = co_await arrived.link_->turn(identity);
            }
        } catch (peer_failed const&) {
            own.require_open();
            throw;
        }
        own.require_open();
        co_return arrived;
    }
    static auto add_numbers(rank_state& own, std::span<double> values) -> task<> {
        ++own.totals;
        try {
            co_await own.control.all_reduce(values);
        } catch (peer_failed const&) {
            own.require_open();
            throw;
        }
        ++own.totals;
    }

    std::unique_ptr<rank_state, leave> own_; ///< what the rank holds of its device goes first
};

} // namespace copipe
