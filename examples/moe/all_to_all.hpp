// SPDX-License-Identifier: Apache-2.0
// An all-to-all among the members of an expert-parallel group that live in one process: every member gives each peer a
// part of a buffer, and copies what the peers gave it on a communication stream of its own.
#pragma once

#include "copipe/async/wait_queue.hpp"
#include "copipe/model/layer.hpp"
#include "copipe/transport/transport.hpp"

#include <algorithm>
#include <compare>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace moe {

using copipe::tensor;

/// Which of a layer's exchanges: there is one of each per layer and micro-batch.
enum class pass : std::uint8_t { dispatch, combine, combine_backward, dispatch_backward, router_gradient };

/// What makes an exchange the same one on all members, whatever order they come to it in.
struct exchange_id {
    int layer = 0;
    std::int64_t micro_batch = 0; ///< of the step
    pass what = pass::dispatch;
    auto operator<=>(exchange_id const&) const = default;
};

/// Connects the members of a group: one per data-parallel replica, each with any number of ranks (threads) of its own.
///
/// Members must not wait for each other in a circle. They do not if all run one program: inside an overlapped pair each
/// await of an exchange gives the turn to the partner whether or not the peers are there already, so that the order of
/// exchanges is the same on every member. Outlives the ranks that use it; any thread may call.
template <copipe::device Device>
class all_to_all {
public:
    using stream = typename Device::stream;
    using event = typename Device::event;

    /// `args` make the device whose links are the communication streams.
    template <class... Args>
    explicit all_to_all(int members, Args&&... args) : members_(members), links_device_(std::forward<Args>(args)...) {}

    [[nodiscard]] auto members() const noexcept -> int { return members_; }

    /// Part g of `sent`, as [members, n], goes to member g; part g of `received` becomes what member g sent to this
    /// one, as far as both parts are long. Sent is what the compute stream has enqueued until now. Afterwards, later
    /// work of the compute stream finds `received` complete, and may reuse `sent`. Throws peer_failed, with the number
    /// of the member, after `abort`; and `cancelled`.
    [[nodiscard]] auto exchange(copipe::context<Device>& c, int member, exchange_id id, tensor sent, tensor received)
        -> copipe::task<> {
        std::size_t const room = part_bytes(received);
        c.stream.copy(part(received, member), part(sent, member), std::min(part_bytes(sent), room));
        event const ready = c.stream.record();
        arrival all_here{*this, id, member, {part(sent, 0), part_bytes(sent), &ready}};
        std::shared_ptr<meeting> const here = co_await all_here;
        stream& link = link_beside(c.stream);
        link.wait(ready); // `received` may still be in use by earlier work of the compute stream
        for (int next = 1; next < members_; ++next) {
            int const from = (member + next) % members_;
            contribution const& theirs = here->at(from);
            link.wait(*theirs.ready);
            link.copy(part(received, from), theirs.data + static_cast<std::size_t>(member) * theirs.bytes,
                      std::min(theirs.bytes, room));
        }
        here->at(member).copied = link.record();
        departure all_enqueued{*this, *here, member};
        co_await all_enqueued;
        co_await c.follow(here->at(member).copied);
        for (contribution const& each : here->contributions) c.stream.wait(each.copied); // now `sent` has been read
    }

    /// Ends every exchange, under way or later, with peer_failed{member}, until `reset`.
    void abort(int member) {
        std::scoped_lock const lock{mutex_};
        if (failed_ >= 0) return;
        failed_ = member;
        for (auto& [id, each] : meetings_) wake_all(*each);
        meetings_.clear();
    }
    /// Usable again. Nobody may be in an exchange.
    void reset() {
        std::scoped_lock const lock{mutex_};
        failed_ = -1;
    }

private:
    struct contribution {
        std::byte const* data = nullptr;
        std::size_t bytes = 0; ///< of a part
        event const* ready = nullptr;
        event copied{};
        copipe::waiter* waiting = nullptr;
    };
    /// An exchange under way. Known by its identity until all are here; then kept alive by its members.
    struct meeting {
        explicit meeting(int members) : contributions(static_cast<std::size_t>(members)) {}
        auto at(int member) -> contribution& { return contributions[static_cast<std::size_t>(member)]; }
        std::vector<contribution> contributions;
        int present = 0;
        bool complete = false;
    };

    /// Waits until all members have contributed. May be cancelled as long as one is missing, for then nobody has begun
    /// to copy.
    class [[nodiscard]] arrival : copipe::waiter {
    public:
        arrival(all_to_all& net, exchange_id id, int member, contribution own)
            : net_(&net), id_(id), member_(member), own_(std::move(own)) {}
        arrival(arrival const&) = delete;
        auto operator=(arrival const&) -> arrival& = delete;

        [[nodiscard]] static constexpr auto await_ready() noexcept -> bool { return false; }
        void await_suspend(std::coroutine_handle<> self, copipe::environment const* inherited) {
            handle = self;
            env = inherited;
            if (inherited->stop.stop_requested()) throw copipe::cancelled{};
            stop_.arm(inherited->stop, *this);
            std::scoped_lock const lock{net_->mutex_};
            if (net_->failed_ >= 0) return env->exec->wake(*this);
            std::shared_ptr<meeting>& known = net_->meetings_[id_];
            if (!known) known = std::make_shared<meeting>(net_->members_);
            at_ = known;
            own_.waiting = this;
            at_->at(member_) = std::move(own_);
            if (++at_->present < net_->members_) return;
            net_->meetings_.erase(id_);
            at_->present = 0;
            at_->complete = true;
            wake_all(*at_);
        }
        [[nodiscard]] auto await_resume() -> std::shared_ptr<meeting> {
            stop_.disarm();
            if (cancelled_) throw copipe::cancelled{};
            if (!at_ || !at_->complete) throw copipe::peer_failed{net_->failed_member()};
            return std::move(at_);
        }

    private:
        friend class copipe::on_stop_request<arrival>;
        void on_stop() noexcept {
            {
                std::scoped_lock const lock{net_->mutex_};
                if (!at_ || !std::exchange(at_->at(member_).waiting, nullptr)) return; // woken already
                --at_->present;
                cancelled_ = true;
            }
            net_->abort(member_);
            env->exec->wake(*this);
        }

        all_to_all* net_;
        exchange_id id_;
        int member_;
        contribution own_;
        std::shared_ptr<meeting> at_{};
        bool cancelled_ = false;
        copipe::on_stop_request<arrival> stop_{};
    };

    /// Waits until all members have enqueued their copies. Never cancelled, and never long: all are here.
    class [[nodiscard]] departure : copipe::waiter {
    public:
        departure(all_to_all& net, meeting& at, int member) noexcept : net_(&net), at_(&at), member_(member) {}
        departure(departure const&) = delete;
        auto operator=(departure const&) -> departure& = delete;

        [[nodiscard]] static constexpr auto await_ready() noexcept -> bool { return false; }
        void await_suspend(std::coroutine_handle<> self, copipe::environment const* inherited) {
            handle = self;
            env = inherited;
            std::scoped_lock const lock{net_->mutex_};
            at_->at(member_).waiting = this;
            if (++at_->present == net_->members_) wake_all(*at_);
        }
        static constexpr void await_resume() noexcept {}

    private:
        all_to_all* net_;
        meeting* at_;
        int member_;
    };

    static void wake_all(meeting& at) {
        for (contribution& each : at.contributions) {
            copipe::waiter* const woken = std::exchange(each.waiting, nullptr);
            if (woken) woken->env->exec->wake(*woken);
        }
    }

    [[nodiscard]] auto part_bytes(tensor const& of) const noexcept -> std::size_t {
        return of.bytes() / static_cast<std::size_t>(members_);
    }
    [[nodiscard]] auto part(tensor const& of, int member) const noexcept -> std::byte* {
        return of.data<std::byte>() + static_cast<std::size_t>(member) * part_bytes(of);
    }
    [[nodiscard]] auto failed_member() -> int {
        std::scoped_lock const lock{mutex_};
        return failed_;
    }

    /// The communication stream of the rank whose compute stream this is.
    [[nodiscard]] auto link_beside(stream& compute) -> stream& {
        std::scoped_lock const lock{mutex_};
        stream*& link = links_[&compute];
        if (!link) link = &links_device_.open_link(0);
        return *link;
    }

    int members_;
    std::mutex mutex_{};
    std::map<exchange_id, std::shared_ptr<meeting>> meetings_{};
    int failed_ = -1;
    Device links_device_;
    std::map<stream*, stream*> links_{};
};

} // namespace moe
