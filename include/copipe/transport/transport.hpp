// SPDX-License-Identifier: Apache-2.0
// How buffers cross ranks: what the engine asks of a transport. Between two ranks messages never overtake one another,
// and the engine posts receives in the order of the sends, so that an untagged transport (NCCL) conforms.
#pragma once

#include "copipe/async/task.hpp"
#include "copipe/device/device.hpp"
#include "copipe/error.hpp"

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace copipe {

/// What travels with a buffer: its identity, checked on receipt, its size, and what the receiver needs to read it (a
/// shape).
struct envelope {
    std::uint64_t identity = 0;
    std::size_t bytes = 0;
    std::array<std::int64_t, 7> header{};
};

/// A message arrived that is not the one its receiver expects: the two ranks do not agree on their order.
class message_mismatch : public error {
public:
    message_mismatch(int from, int to, std::uint64_t expected, std::uint64_t got)
        : error("rank " + std::to_string(to) + " expected message " + std::to_string(expected) + " from rank " +
                std::to_string(from) + " but got " + std::to_string(got) +
                ": both ranks must run programs of one schedule; verify the schedule"),
          from_rank(from), to_rank(to) {}
    int from_rank, to_rank;
};

/// Another rank failed, and with it everything that was to be exchanged in this step.
class peer_failed : public error {
public:
    explicit peer_failed(int failed_rank)
        : peer_failed(failed_rank, "rank " + std::to_string(failed_rank) + " failed; its error says why") {}
    int rank;

protected:
    peer_failed(int failed_rank, std::string const& sentence) : error(sentence), rank(failed_rank) {}
};

/// Another rank's process has ended, or nothing comes from it any more.
class peer_lost : public peer_failed {
public:
    peer_lost(int lost_rank, std::string const& why)
        : peer_failed(lost_rank, "rank " + std::to_string(lost_rank) + " is gone (" + why +
                                     "): its output says more; start the job again from a checkpoint") {}
};

/// The two ends of a transfer on the receiving stream.
template <device Device>
struct transfer {
    typename Device::event start{};
    typename Device::event end{};
};

/// One rank's end of a transport for buffers of `Device`. For the rank's thread; the coroutines that await are resumed
/// there.
///
/// - `event over = co_await e.send(to, envelope, data, ready)`: data is read after `ready` and may be reused when
///   `over` is done. It is taken up when the coroutine suspends, in the order of the calls; `ready` lives until the
///   await ends, which is when the peer has taken the message over: no device is waited for.
/// - `auto parcel = co_await e.arrival(from, identity)`: the next message of `from`; throws message_mismatch on another
///   identity. `parcel.what` is its envelope.
/// - `e.accept(parcel, to, stream, timed)`: enqueues the transfer into `to` on `stream`, after the sender's data is
///   ready.
/// - `co_await e.all_reduce(values)`: every rank's values become the sums over ranks, added in rank order.
/// - `e.abort()`: every operation of every rank, pending or later, throws peer_failed, until all call `e.reset()`.
template <class E, class Device>
concept transport_endpoint = device<Device> &&
    requires(E& e, int rank, envelope const& what, void const* data, void* to, typename Device::event const& ready,
             typename Device::stream& stream, typename E::parcel& arrived, std::span<double> values) {
    { e.send(rank, what, data, ready) } -> awaitable;  // of a Device::event, of any rank's device
    { e.arrival(rank, std::uint64_t{}) } -> awaitable; // of an E::parcel
    { arrived.what } -> std::convertible_to<envelope const&>;
    { e.accept(arrived, to, stream, timing::on) } -> std::same_as<transfer<Device>>;
    { e.all_reduce(values) } -> awaitable;
    e.abort();
    e.reset();
};

/// A rank's part of a sum over ranks: 32-bit floats in device memory.
struct summand {
    float* data;
    std::size_t count;
};

/// An endpoint that can add up device memory by itself; others leave that to messages.
///
/// - `e.sum(ranks, parts, stream)`: enqueues on `stream` what makes each part the sum of all ranks' parts of its
///   number, added in the order of `ranks`, the same bits on each. All of them call it, with parts of the same counts;
///   a rank that is in several such lists, in an order that all share. False, on all of them, if it cannot for these.
template <class E, class Device>
concept summing_endpoint = transport_endpoint<E, Device> &&
    requires(E& e, std::span<int const> ranks, std::span<summand const> parts, typename Device::stream& stream) {
        { e.sum(ranks, parts, stream) } -> std::same_as<bool>;
    };

} // namespace copipe
