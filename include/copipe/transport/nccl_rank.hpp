// SPDX-License-Identifier: Apache-2.0
// One rank's end of the NCCL transport: what it exchanges with whom, what it waits for, and how all of it ends.
#pragma once

#include "copipe/async/wait_queue.hpp"
#include "copipe/device/cuda.hpp"
#include "copipe/device/host.hpp"
#include "copipe/transport/nccl_link.hpp"
#include "copipe/transport/nccl_options.hpp"
#include "copipe/transport/nccl_sum.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace copipe {

/// A rank of this process on its GPU. `Control`: its endpoint of the transport of the host, which carries the news of
/// failures. For the rank's thread, except where it says otherwise.
template <class Control>
struct nccl_rank {
    using clock = std::chrono::steady_clock;

    nccl_rank(int number, cuda_device& on, Control own, nccl_options const& how)
        : rank(number), dev(&on), control(std::move(own)), options(&how) {}
    nccl_rank(nccl_rank const&) = delete;
    auto operator=(nccl_rank const&) -> nccl_rank& = delete;

    int rank;
    cuda_device* dev;
    Control control;
    nccl_options const* options;
    std::function<void()> reset{}; ///< begins anew after a failure; ends the rank's operations first
    std::deque<nccl_link> links{};
    std::deque<nccl_sum> sums{};
    std::atomic<std::uint64_t> totals{0}; ///< odd while a sum of numbers is under way
    std::uint64_t through_host = 0;       ///< messages that have begun to go through host memory, ...
    progress_counter handed_on{};         ///< ... and those of them that have left it, in the same order
    host_device staging{host_execution::inline_};
    host_stream* host = &staging.open_stream("staging");

    [[nodiscard]] auto link_to(int peer) -> nccl_link* {
        auto const found =
            std::find_if(links.begin(), links.end(), [&](nccl_link const& l) { return l.peer() == peer; });
        return found == links.end() ? nullptr : &*found;
    }
    /// Of the sums over these ranks, in whatever order.
    [[nodiscard]] auto sum_over(std::span<int const> ranks) -> nccl_sum* {
        auto const found = std::find_if(sums.begin(), sums.end(), [&](nccl_sum const& s) {
            return std::is_permutation(s.ranks().begin(), s.ranks().end(), ranks.begin(), ranks.end());
        });
        return found == sums.end() ? nullptr : &*found;
    }
    /// For what has no stream of its own.
    [[nodiscard]] auto side_stream() -> cuda_stream& {
        if (!side_) side_ = &dev->open_stream("aside");
        return *side_;
    }

    /// All communicators stand.
    void begin() {
        std::scoped_lock const lock{tearing_};
        torn_ = false;
        moved_ = clock::now();
        totals = through_host = 0;
        handed_on.reset();
    }
    /// Throws why the communicators were given up, if they were.
    void require_open() {
        std::scoped_lock const lock{tearing_};
        if (torn_) std::rethrow_exception(reason_);
    }
    /// Ends all operations. From any thread.
    void tear_down(std::exception_ptr why) {
        std::scoped_lock const lock{tearing_};
        if (std::exchange(torn_, true)) return;
        reason_ = why;
        for (nccl_link& each : links) each.close(why);
        give_up();
    }
    /// Ends communicators, each from a thread of its own, because one may wait for another.
    void give_up() {
        std::vector<std::shared_ptr<nccl_communicator>> opened;
        for (nccl_link const& each : links) opened.insert(opened.end(), each.opened().begin(), each.opened().end());
        for (nccl_sum const& each : sums) opened.push_back(each.opened());
        std::vector<std::future<void>> ended;
        for (auto const& each : opened) {
            if (!each) continue;
            std::packaged_task<void()> abort([held = each, gpu = dev->gpu()] {
                static_cast<void>(cudaSetDevice(gpu));
                held->abort();
            });
            ended.push_back(abort.get_future());
            std::thread(std::move(abort)).detach();
        }
        auto const until = clock::now() + options->aborting;
        for (auto& each : ended) each.wait_until(until); // one that takes longer keeps its communicator
    }
    /// The rank goes before its device does.
    void leave() {
        std::scoped_lock const lock{tearing_};
        bool busy = false;
        for (nccl_link& each : links) busy = each.look().begun || busy;
        for (nccl_sum& each : sums) busy = each.look().begun || busy;
        if (busy && !torn_) give_up(); // nobody knows whether that would end
        torn_ = true;
        reason_ = std::make_exception_ptr(error("rank " + std::to_string(rank) + " has left"));
        for (nccl_link& each : links) each.open({});
        for (nccl_sum& each : sums) each.open({});
    }

    // What follows is for the watch.

    /// What the rank waits for, and from whom.
    struct wait {
        std::vector<int> peers; ///< one of these; none: it can be any
        std::string action;
    };
    [[nodiscard]] auto waits() const noexcept -> std::vector<wait> const& { return waits_; }
    /// For how long nothing has moved while something is awaited.
    [[nodiscard]] auto still() const -> clock::duration {
        return waits_.empty() ? clock::duration{} : clock::now() - moved_;
    }

    /// Gives up if another rank has failed, or a communicator has.
    void look() {
        std::exception_ptr why;
        bool own = false;
        {
            std::scoped_lock const lock{tearing_};
            if (torn_) return;
            why = control.failure();
            try {
                for (nccl_link& each : links) each.check();
                for (nccl_sum& each : sums) each.check();
            } catch (...) {
                own = !why;
                if (own) why = std::current_exception();
            }
        }
        if (!why) return;
        tear_down(why);
        if (own) control.abort();
    }
    /// Finds out what is awaited now.
    void look_at_waits() {
        std::scoped_lock const lock{tearing_};
        waits_.clear();
        std::uint64_t now = totals;
        if (now % 2 != 0) waits_.push_back({{}, "the sum of numbers over all ranks is awaited"});
        for (nccl_link& each : links) {
            auto const state = each.look();
            now += state.changes;
            if (state.identity == exchange::none) continue;
            wait const found{{each.peer()}, std::string(state.sends ? "sending " : "receiving ") +
                                                options->name(state.identity) +
                                                (state.begun ? " is under way" : " is awaited")};
            waits_.insert(state.begun ? waits_.begin() : waits_.end(), found);
        }
        for (nccl_sum& each : sums) {
            auto const state = each.look();
            now += state.changes;
            if (state.begun) waits_.insert(waits_.begin(), wait_in(each));
        }
        if (torn_) waits_.clear();
        if (now != std::exchange(changes_, now) || waits_.empty()) moved_ = clock::now();
    }

private:
    [[nodiscard]] auto wait_in(nccl_sum const& sum) const -> wait {
        wait found{sum.ranks(), "the sum of gradients over the ranks"};
        for (int const each : sum.ranks()) found.action += (each == sum.ranks()[0] ? " " : ", ") + std::to_string(each);
        found.action += " is under way";
        std::erase(found.peers, rank);
        return found;
    }

    std::mutex tearing_{}; ///< for what follows
    bool torn_ = true;     ///< until its communicators are open
    std::exception_ptr reason_ = std::make_exception_ptr(error("not all ranks of this process are connected"));
    std::vector<wait> waits_{};
    clock::time_point moved_ = clock::now();
    std::uint64_t changes_ = 0;
    cuda_stream* side_ = nullptr;
};

} // namespace copipe
