// SPDX-License-Identifier: Apache-2.0
// What one rank exchanges with one other through NCCL: the communicators of the two, the order in which messages take
// them, and what is under way.
#pragma once

#include "copipe/async/channel.hpp"
#include "copipe/device/cuda.hpp"
#include "copipe/transport/exchange.hpp"
#include "copipe/transport/nccl_communicator.hpp"
#include "copipe/transport/transport.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace copipe {

/// The communicators of two ranks. A planned message takes `both`; all others take the one of their direction.
enum class nccl_use : std::uint8_t { both, to_peer, from_peer };

/// For the rank's thread, except where it says otherwise.
class nccl_link {
public:
    using event = cuda_event;
    using communicators = std::array<std::shared_ptr<nccl_communicator>, 3>; ///< by use; `both` in strict mode only

    nccl_link(int rank, int peer, cuda_device& dev)
        : rank_(rank), peer_(peer), own_(&dev.open_stream("with rank " + std::to_string(peer))) {}

    [[nodiscard]] auto peer() const noexcept -> int { return peer_; }
    /// Both ranks, the lower first.
    [[nodiscard]] auto pair() const -> std::vector<int> { return {std::min(rank_, peer_), std::max(rank_, peer_)}; }
    [[nodiscard]] auto where() const -> std::string {
        return "rank " + std::to_string(rank_) + ", with rank " + std::to_string(peer_);
    }
    [[nodiscard]] auto own_stream() const noexcept -> cuda_stream& { return *own_; }
    [[nodiscard]] auto opened() const noexcept -> communicators const& { return communicators_; }

    /// Begins anew with these communicators.
    void open(communicators made) {
        communicators_ = std::move(made);
        follow(nullptr);
        sends_.clear();
        issued_.reset();
        turn_.reset();
        std::scoped_lock const lock{mutex_};
        under_way_.clear();
        awaited_ = exchange::none;
    }

    /// Adds a few bytes each way on every communicator to the group. They lie in the memory that it returns.
    [[nodiscard]] auto warm(nccl_group& group) -> cuda_block {
        cuda_block memory = take_block(*own_->memory(), 3 * 512);
        auto const up = rank_ < peer_ ? nccl_use::to_peer : nccl_use::from_peer;
        auto const down = rank_ < peer_ ? nccl_use::from_peer : nccl_use::to_peer;
        for (nccl_use const what : {nccl_use::both, up, down}) { // a kernel each, in one order on both sides' streams
            std::byte* const place = memory.get() + 512 * index(what);
            nccl_communicator* const through = communicators_[index(what)].get();
            if (through && what != nccl_use::from_peer) through->send(group, other(), place, 4, own_->handle());
            if (through && what != nccl_use::to_peer) through->receive(group, other(), place + 256, 4, own_->handle());
        }
        return memory;
    }

    /// From now on messages named in `order` are exchanged in that order; in relaxed mode it is not asked.
    void follow(exchange_order const* order) noexcept {
        order_ = communicators_[index(nccl_use::both)] ? order : nullptr;
        tick_ = next_send_ = next_receive_ = 0;
        granted_ = false;
    }

    /// Ends when the operation has been enqueued, with the event after which the data may be used again.
    auto send(envelope what, void const* data, event const& ready) -> task<event> {
        event over;
        if (planned(what.identity, &exchange::send, next_send_)) {
            sends_.push_back({what.identity, data, what.bytes, &ready});
            issue();
            over = co_await issued_.receive();
        } else {
            own_->wait(ready);
            nccl_group group;
            on(nccl_use::to_peer).send(group, other(), data, what.bytes, own_->handle());
            group.end(where());
            note(what.identity, true, own_->record());
            over = own_->record();
        }
        co_return over;
    }

    /// Ends when the message of that identity, whose envelope has come, may be accepted. True if it is a planned one.
    auto turn(std::uint64_t identity) -> task<bool> {
        if (!planned(identity, &exchange::receive, next_receive_)) co_return false;
        issue();
        co_await turn_.receive();
        co_return true;
    }

    /// Enqueues the message whose turn it is, and with it the send of the same tick.
    [[nodiscard]] auto accept(envelope const& what, bool is_planned, void* to, cuda_stream& into, timing timed)
        -> transfer<cuda_device> {
        transfer<cuda_device> moved;
        if (is_planned) {
            own_->wait(into.record()); // the memory may still be in use by earlier work there
            moved.end = exchange_next(to, what.bytes, timed, &moved.start);
            into.wait(moved.end);
            issue();
            return moved;
        }
        if (timed == timing::on) moved.start = into.record(timed);
        nccl_group group;
        on(nccl_use::from_peer).receive(group, other(), to, what.bytes, into.handle());
        group.end(where());
        note(what.identity, false, into.record());
        moved.end = into.record(timed);
        return moved;
    }

    /// Says that the envelope of a message is awaited, or (`exchange::none`) is there.
    void await(std::uint64_t identity) {
        std::scoped_lock const lock{mutex_};
        awaited_ = identity;
        ++changes_;
    }

    /// What the link waits for. From any thread.
    struct state {
        std::uint64_t changes = 0;               ///< grows whenever something moves
        std::uint64_t identity = exchange::none; ///< of the oldest message under way or awaited
        bool sends = false;
        bool begun = false; ///< its operation has been enqueued
    };
    [[nodiscard]] auto look() -> state {
        std::scoped_lock const lock{mutex_};
        while (!under_way_.empty() && cudaEventQuery(under_way_.front().over.handle()) != cudaErrorNotReady) {
            under_way_.pop_front();
            ++changes_;
        }
        if (!under_way_.empty()) return {changes_, under_way_.front().identity, under_way_.front().sends, true};
        return {changes_, awaited_, false, false};
    }

    /// Throws nccl_error if a communicator has failed. From any thread.
    void check() const {
        for (auto const& each : communicators_)
            if (each) each->check();
    }

    /// Ends all waits of coroutines. From any thread.
    void close(std::exception_ptr reason) {
        issued_.close(reason);
        turn_.close(reason);
    }

private:
    struct asked_send {
        std::uint64_t identity;
        void const* data;
        std::size_t bytes;
        event const* ready;
    };
    struct operation {
        std::uint64_t identity;
        bool sends;
        event over;
    };

    [[nodiscard]] static constexpr auto index(nccl_use what) noexcept -> std::size_t {
        return static_cast<std::size_t>(what);
    }
    /// The peer's number in the communicators.
    [[nodiscard]] auto other() const noexcept -> int { return rank_ < peer_ ? 1 : 0; }
    [[nodiscard]] auto on(nccl_use what) -> nccl_communicator& { return *communicators_[index(what)]; }

    /// Whether the message is the next of the order in its direction; steps on if so.
    auto planned(std::uint64_t identity, std::uint64_t exchange::* direction, std::size_t& next) const -> bool {
        if (!order_) return false;
        while (next < order_->ticks.size() && order_->ticks[next].*direction == exchange::none) ++next;
        if (next == order_->ticks.size() || order_->ticks[next].*direction != identity) return false;
        ++next;
        return true;
    }

    /// Enqueues the ticks that need no receive, up to the first whose parts are not all there; lets that one's receive
    /// be accepted when only it is missing.
    void issue() {
        for (; order_ && tick_ < order_->ticks.size();) {
            exchange const& now = order_->ticks[tick_];
            if (now.send != exchange::none && sends_.empty()) return;
            if (now.receive != exchange::none) {
                if (!std::exchange(granted_, true)) turn_.send('t');
                return;
            }
            exchange_next(nullptr, 0, timing::off, nullptr);
        }
    }

    /// Enqueues the current tick as one group. Returns its end.
    auto exchange_next(void* to, std::size_t bytes, timing timed, event* start) -> event {
        exchange const& now = order_->ticks[tick_];
        bool const sends = now.send != exchange::none;
        if (sends) own_->wait(*sends_.front().ready);
        if (start && timed == timing::on) *start = own_->record(timed);
        nccl_group group;
        if (sends) on(nccl_use::both).send(group, other(), sends_.front().data, sends_.front().bytes, own_->handle());
        if (to || now.receive != exchange::none) on(nccl_use::both).receive(group, other(), to, bytes, own_->handle());
        group.end(where());
        event over = own_->record(timed);
        note(to ? now.receive : now.send, !to, own_->record());
        if (sends) {
            sends_.pop_front();
            issued_.send(own_->record());
        }
        ++tick_;
        granted_ = false;
        return over;
    }

    void note(std::uint64_t identity, bool sends, event over) {
        std::scoped_lock const lock{mutex_};
        under_way_.push_back({identity, sends, std::move(over)});
        ++changes_;
    }

    int rank_;
    int peer_;
    cuda_stream* own_; ///< for sends, and for planned exchanges
    communicators communicators_{};
    exchange_order const* order_ = nullptr;
    std::size_t tick_ = 0;         ///< to be enqueued next
    std::size_t next_send_ = 0;    ///< tick from which on a planned send may be asked for
    std::size_t next_receive_ = 0; ///< and a receive
    bool granted_ = false;         ///< the tick's receive may be accepted
    std::deque<asked_send> sends_{};
    channel<event> issued_{}; ///< one for every planned send, in order
    channel<char> turn_{};    ///< one for every planned receive that may be accepted

    std::mutex mutex_{}; ///< for what the watch looks at
    std::deque<operation> under_way_{};
    std::uint64_t awaited_ = exchange::none;
    std::uint64_t changes_ = 0;
};

} // namespace copipe
