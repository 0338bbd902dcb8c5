// SPDX-License-Identifier: Apache-2.0
// The ranks of a trainer that are in this process: all of them, or the one of the process's number, connected by the
// trainer's transport.
#pragma once

#include "copipe/pipeline/rank_team.hpp"
#include "copipe/train/rank_trainer.hpp"

#include <concepts>
#include <cstddef>
#include <deque>
#include <functional>
#include <string>
#include <utility>

namespace copipe {

/// Throws launch_error unless a transport that connects processes (`by_launch`), or threads, fits the job.
template <class = void>
void require_fitting(launch const& process, int ranks, bool by_launch, bool balances) {
    std::string const processes = std::to_string(process.size) + " processes";
    if (!by_launch && process.size > 1)
        throw launch_error("this is one of " + processes +
                           ", but the trainer's transport connects threads: take tcp, or nccl_processes, or start one "
                           "process");
    if (by_launch && process.size != ranks)
        throw launch_error("the pipeline has " + std::to_string(ranks) + " ranks, the job " + processes +
                           ": start one process per rank");
    if (process.size > 1 && balances)
        throw launch_error("a balancer needs all ranks in one process: it measures them all");
}

/// The ranks of this process, each on a thread of its own or as the options say.
template <device Device, optimizer<typename Device::stream> Optimizer, template <class> class Transport>
class local_ranks {
public:
    using transport = Transport<Device>;
    using endpoint = typename transport::endpoint;
    using member = rank_trainer<Device, endpoint, Optimizer>;

    /// Throws launch_error.
    local_ranks(shared_training<Device, Optimizer>& all, model<Device> const& layers, partition const& cut,
                bool balances)
        : all_(all.plan.where.ranks),
          first_(all.options.process.rank),
          count_(all.options.process.size > 1 ? 1 : all_),
          exec_(all.options.exec),
          transport_(make_transport(all, balances)),
          team_(exec_ ? rank_team{count_, *exec_} : rank_team{count_, all.options.threads}) {
        if constexpr (requires(endpoint& e) { e.follow(std::span<exchange_order const>{}); })
            all.orders = orders_of(all.plan);
        for (int rank = first_; rank < first_ + count_; ++rank) {
            std::unique_ptr<Device> dev = all.options.make_device(rank);
            endpoint own = connect(rank, *dev);
            members_.emplace_back(all, layers, cut, rank, std::move(dev), std::move(own));
        }
    }

    [[nodiscard]] auto first() const noexcept -> int { return first_; }
    [[nodiscard]] auto has_all() const noexcept -> bool { return count_ == all_; }
    [[nodiscard]] auto has(int rank) const noexcept -> bool { return first_ <= rank && rank < first_ + count_; }
    /// A rank of this process.
    [[nodiscard]] auto at(int rank) -> member& { return members_.at(static_cast<std::size_t>(rank - first_)); }
    [[nodiscard]] auto at(int rank) const -> member const& {
        return members_.at(static_cast<std::size_t>(rank - first_));
    }
    [[nodiscard]] auto begin() { return members_.begin(); }
    [[nodiscard]] auto end() { return members_.end(); }

    /// Runs a coroutine on every rank; after a failure, makes all ranks ready again before it is thrown on.
    void run(std::function<task<>(member&)> const& make) {
        std::string stuck;
        if (exec_) exec_->on_deadlock([&] { stuck = give_up(); });
        try {
            run_all(make);
        } catch (...) {
            run_all(recover);
            if (stuck.empty()) throw;
        }
        if (exec_) exec_->on_deadlock({});
        if (!stuck.empty()) throw deadlock_error("everything waits and no work is under way" + stuck);
    }

private:
    [[nodiscard]] static auto make_transport(shared_training<Device, Optimizer> const& all, bool balances)
        -> transport {
        launch const& process = all.options.process;
        int const ranks = all.plan.where.ranks;
        constexpr bool by_threads =
            std::constructible_from<transport, int> || std::constructible_from<transport, int, traffic>;
        require_fitting(process, ranks, !by_threads, balances);
        if constexpr (std::constructible_from<transport, int>)
            return transport(ranks);
        else if constexpr (by_threads)
            return transport(ranks, traffic_of(all.plan.where, all.groups));
        else if constexpr (std::constructible_from<transport, launch, traffic>)
            return transport(process, traffic_of(all.plan.where, all.groups));
        else
            return transport(process);
    }
    [[nodiscard]] auto connect(int rank, [[maybe_unused]] Device& dev) -> endpoint {
        if constexpr (requires { transport_.connect(rank, dev); })
            return transport_.connect(rank, dev);
        else
            return transport_.connect(rank);
    }

    void run_all(std::function<task<>(member&)> const& make) {
        team_.run([&](int number) { return make(members_[static_cast<std::size_t>(number)]); });
    }
    static auto recover(member& each) -> task<> {
        each.pipeline().recover();
        co_return;
    }
    /// Nothing moves any more: ends every await, and says who waited for what.
    auto give_up() -> std::string {
        std::string waits;
        for (member& each : members_) {
            std::string const one = each.pipeline().blocked();
            if (!one.empty()) waits += (waits.empty() ? ": " : "; ") + one;
        }
        team_.cancel();
        return waits.empty() ? "." : waits;
    }

    int all_, first_, count_; ///< ranks
    executor* exec_;
    transport transport_;
    rank_team team_;
    std::deque<member> members_{};
};

} // namespace copipe
