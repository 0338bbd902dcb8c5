// SPDX-License-Identifier: Apache-2.0
// The transport between ranks that are threads of one process: the receiver copies from the sender's buffer on a stream
// of its own, and gives the sender the event after which the buffer is free.
#pragma once

#include "copipe/async/channel.hpp"
#include "copipe/transport/transport.hpp"

#include <atomic>
#include <coroutine>
#include <cstddef>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

namespace copipe {

/// Connects `ranks` endpoints. Outlives them and all their operations.
template <device Device>
class in_process {
public:
    class endpoint;

    explicit in_process(int ranks)
        : ranks_(ranks), inboxes_(static_cast<std::size_t>(ranks)), contributions_(inboxes_.size()) {}

    [[nodiscard]] auto ranks() const noexcept -> int { return ranks_; }
    [[nodiscard]] auto connect(int rank) -> endpoint { return endpoint{*this, rank}; }

    class sending;

    /// A message under way. Dropping it before it was accepted fails its sender.
    class parcel {
    public:
        envelope what{};

    private:
        friend class in_process;
        struct drop {
            void operator()(sending* sender) const { sender->fail(); }
        };
        void const* data_ = nullptr;
        typename Device::event const* ready_ = nullptr;
        std::unique_ptr<sending, drop> sender_{};
    };

    /// The awaitable of a send.
    class [[nodiscard]] sending : waiter {
    public:
        sending(in_process& hub, int from, int to, envelope const& what, void const* data,
                typename Device::event const& ready) noexcept
            : hub_(&hub), from_(from), to_(to), what_(what), data_(data), ready_(&ready) {}
        sending(sending const&) = delete;
        auto operator=(sending const&) -> sending& = delete;

        [[nodiscard]] static constexpr auto await_ready() noexcept -> bool { return false; }
        void await_suspend(std::coroutine_handle<> self, environment const* inherited) {
            handle = self;
            env = inherited;
            parcel sent;
            sent.what = what_;
            sent.data_ = data_;
            sent.ready_ = ready_;
            sent.sender_.reset(this);
            hub_->lane(from_, to_).send(std::move(sent)); // a closed lane drops the parcel, which fails this send
        }
        [[nodiscard]] auto await_resume() -> typename Device::event {
            if (failed_) throw peer_failed{hub_->aborted_ ? hub_->failed_rank_.load() : to_};
            return std::move(over_);
        }

    private:
        friend class in_process;
        void fail() noexcept {
            failed_ = true;
            env->exec->wake(*this);
        }

        in_process* hub_;
        int from_, to_;
        envelope what_;
        void const* data_;
        typename Device::event const* ready_;
        typename Device::event over_{};
        bool failed_ = false;
    };

    /// The awaitable of an arrival.
    class [[nodiscard]] arriving : public channel<parcel>::receiver {
    public:
        arriving(channel<parcel>& lane, int from, int to, std::uint64_t identity) noexcept
            : channel<parcel>::receiver(lane), from_(from), to_(to), identity_(identity) {}

        [[nodiscard]] auto await_resume() -> parcel {
            parcel arrived = channel<parcel>::receiver::await_resume();
            if (arrived.what.identity != identity_)
                throw message_mismatch{from_, to_, identity_, arrived.what.identity};
            return arrived;
        }

    private:
        int from_, to_;
        std::uint64_t identity_;
    };

    /// The awaitable of an all-reduce: the last rank to come adds up.
    class [[nodiscard]] reducing : waiter {
    public:
        reducing(in_process& hub, int rank, std::span<double> values) noexcept
            : hub_(&hub), rank_(rank), values_(values) {}
        reducing(reducing const&) = delete;
        auto operator=(reducing const&) -> reducing& = delete;

        [[nodiscard]] static constexpr auto await_ready() noexcept -> bool { return false; }
        [[nodiscard]] auto await_suspend(std::coroutine_handle<> self, environment const* inherited) -> bool {
            handle = self;
            env = inherited;
            return hub_->contribute(*this);
        }
        void await_resume() const {
            if (failed_) throw peer_failed{hub_->failed_rank_.load()};
        }

    private:
        friend class in_process;
        in_process* hub_;
        int rank_;
        std::span<double> values_;
        bool failed_ = false;
    };

    /// One rank's end. See transport_endpoint.
    class endpoint {
    public:
        using parcel = in_process::parcel;

        [[nodiscard]] auto send(int to, envelope const& what, void const* data, typename Device::event const& ready)
            -> sending {
            return sending{*hub_, rank_, to, what, data, ready};
        }
        [[nodiscard]] auto arrival(int from, std::uint64_t identity) -> arriving {
            return arriving{hub_->lane(from, rank_), from, rank_, identity};
        }
        [[nodiscard]] auto accept(parcel& arrived, void* to, typename Device::stream& stream, timing timed)
            -> transfer<Device> {
            transfer<Device> copied;
            try {
                stream.wait(*arrived.ready_);
                if (timed == timing::on) copied.start = stream.record(timed);
                stream.copy(to, arrived.data_, arrived.what.bytes);
                copied.end = stream.record(timed);
                arrived.sender_->over_ = stream.record();
            } catch (...) {
                stream.synchronize(); // the copy may be under way, and with the parcel its sender is let go
                throw;
            }
            sending& sender = *arrived.sender_.release();
            sender.env->exec->wake(sender);
            return copied;
        }
        [[nodiscard]] auto all_reduce(std::span<double> values) -> reducing { return reducing{*hub_, rank_, values}; }
        void abort() { hub_->abort(rank_); }
        void reset() { hub_->reset(rank_); }
        /// Sends an envelope alone: its arrival is not to be accepted, and nobody waits for it.
        void post(int to, envelope const& what) {
            parcel sent;
            sent.what = what;
            hub_->lane(rank_, to).send(std::move(sent));
        }
        /// What ended all operations; null while nothing has. From any thread.
        [[nodiscard]] auto failure() const -> std::exception_ptr {
            return hub_->aborted_ ? std::make_exception_ptr(peer_failed{hub_->failed_rank_}) : nullptr;
        }

    private:
        friend class in_process;
        endpoint(in_process& hub, int rank) noexcept : hub_(&hub), rank_(rank) {}
        in_process* hub_;
        int rank_;
    };

private:
    /// What one rank receives: a lane per sender, opened when first used. Few ranks exchange messages.
    struct inbox {
        std::mutex mutex{};
        std::deque<std::pair<int, channel<parcel>>> lanes{};
    };
    [[nodiscard]] auto lane(int from, int to) -> channel<parcel>& {
        inbox& of = inboxes_[static_cast<std::size_t>(to)];
        std::scoped_lock const lock{of.mutex};
        for (auto& [sender, messages] : of.lanes) {
            if (sender == from) return messages;
        }
        auto& opened = of.lanes.emplace_back(std::piecewise_construct, std::tuple{from}, std::tuple{}).second;
        if (aborted_) opened.close(std::make_exception_ptr(peer_failed{failed_rank_}));
        return opened;
    }

    auto contribute(reducing& own) -> bool {
        std::scoped_lock const lock{mutex_};
        if (aborted_) {
            own.failed_ = true;
            return false;
        }
        contributions_[static_cast<std::size_t>(own.rank_)] = &own;
        if (++contributed_ < ranks_) return true;
        for (std::size_t i = 0; i < own.values_.size(); ++i) {
            double sum = 0;
            for (reducing* each : contributions_) sum += each->values_[i];
            for (reducing* each : contributions_) each->values_[i] = sum;
        }
        release(&own);
        return false;
    }
    void release(reducing const* last) {
        contributed_ = 0;
        for (reducing*& each : contributions_) {
            reducing* const done = std::exchange(each, nullptr);
            if (done && done != last) done->env->exec->wake(*done);
        }
    }

    void abort(int rank) {
        {
            std::scoped_lock const lock{mutex_};
            if (aborted_) return;
            failed_rank_ = rank;
            aborted_ = true;
            for (reducing* each : contributions_) {
                if (each) each->failed_ = true;
            }
            release(nullptr);
        }
        for (inbox& each : inboxes_) {
            std::scoped_lock const lock{each.mutex};
            for (auto& [sender, messages] : each.lanes) messages.close(std::make_exception_ptr(peer_failed{rank}));
        }
    }
    void reset(int rank) {
        aborted_ = false;
        for (auto& [sender, messages] : inboxes_[static_cast<std::size_t>(rank)].lanes) messages.reset();
    }

    int ranks_;
    std::vector<inbox> inboxes_;
    std::mutex mutex_{};
    std::vector<reducing*> contributions_;
    int contributed_ = 0;
    std::atomic<bool> aborted_{false};
    std::atomic<int> failed_rank_{-1};
};

} // namespace copipe
