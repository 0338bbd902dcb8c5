// SPDX-License-Identifier: Apache-2.0
// The transport between GPUs through NCCL: opens communicators, looks after them, gives them up. To be linked with the
// CMake target copipe::nccl.
#pragma once

#include "copipe/device/cuda.hpp"
#include "copipe/device/host.hpp"
#include "copipe/transport/in_process.hpp"
#include "copipe/transport/nccl_endpoint.hpp"
#include "copipe/transport/nccl_ids.hpp"
#include "copipe/transport/nccl_opening.hpp"
#include "copipe/transport/nccl_options.hpp"
#include "copipe/transport/nccl_rank.hpp"
#include "copipe/transport/tcp.hpp"
#include "copipe/transport/transport.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace copipe {

/// Connects ranks on GPUs: `nccl<cuda_device>` the threads of one process, `nccl<cuda_device, tcp>` processes of one
/// rank each. Outlives its endpoints and all their operations.
///
/// The constructor is told which ranks talk much to each other, and which add up gradients; `connect` of the last rank
/// of this process opens and warms their communicators, so that no operation blocks its first time. Messages between
/// other ranks go through host memory. A failure gives up all communicators; they are opened anew when the last rank
/// has called `reset`.
template <std::same_as<cuda_device> Device = cuda_device, template <class> class Control = in_process>
class nccl {
    using member = nccl_rank<typename Control<host_device>::endpoint>;

public:
    using endpoint = nccl_endpoint<typename Control<host_device>::endpoint>;
    using parcel = typename endpoint::parcel;
    using event = cuda_event;

    /// All ranks are threads of this process.
    nccl(int ranks, traffic expected, nccl_options options = {})
        requires std::constructible_from<Control<host_device>, int>
        : options_(std::move(options)), expected_(std::move(expected)), local_(ranks), control_(ranks) {
        start();
    }
    /// This process is one rank of several. Blocks until all have met; throws rendezvous_error.
    nccl(launch own, traffic expected, nccl_options options = {}, tcp_options const& met = {})
        requires std::constructible_from<Control<host_device>, launch, tcp_options>
        : options_(std::move(options)),
          expected_(std::move(expected)),
          launch_(std::move(own)),
          meeting_(met.meeting),
          control_(launch_, met) {
        start();
    }
    nccl(nccl const&) = delete;
    auto operator=(nccl const&) -> nccl& = delete;
    ~nccl() {
        leaving_ = true;
        if (watcher_.joinable()) watcher_.join();
    }

    [[nodiscard]] auto ranks() const noexcept -> int { return control_.ranks(); }

    /// The end of a rank of this process, on its device. Throws nccl_error, shared_gpu or rendezvous_error.
    [[nodiscard]] auto connect(int rank, cuda_device& dev) -> endpoint {
        std::scoped_lock const lock{mutex_};
        member& own = members_.emplace_back(rank, dev, control_.connect(rank), options_);
        own.reset = [this, &own] { reset(own); };
        for (auto const& [one, other] : expected_.talking)
            if (one == rank || other == rank) own.links.emplace_back(rank, one == rank ? other : one, dev);
        for (auto const& all : expected_.summing)
            if (std::binary_search(all.begin(), all.end(), rank)) own.sums.emplace_back(rank, all);
        if (std::ssize(members_) == local_) open();
        return endpoint{own};
    }

    /// Looks once after what is under way. For programs that said `by_program`.
    void watch() {
        std::scoped_lock const lock{mutex_};
        for (member& each : members_) each.look();
        for (member& each : members_) each.look_at_waits();
        for (member& each : members_) {
            auto const still = each.still();
            if (still > options_.deadline) return blame(each, std::chrono::duration<double>{still}.count());
        }
    }

private:
    void start() {
        if (options_.max_ctas == 0 && options_.mode == nccl_mode::relaxed) options_.max_ctas = 4;
        if (options_.watch == nccl_watch::by_program) return;
        watcher_ = std::thread([this] {
            for (; !leaving_; std::this_thread::sleep_for(options_.poll)) watch();
        });
    }

    /// Of all who wait here, the one to complain waits for a rank that itself waits for nothing.
    void blame(member& stalled, double seconds) {
        member* from = &stalled;
        typename member::wait what = stalled.waits().front();
        for (member& each : members_) {
            for (auto const& one : each.waits()) {
                for (int const peer : one.peers) {
                    auto const idle = std::find_if(members_.begin(), members_.end(), [peer](member const& m) {
                        return m.rank == peer && m.waits().empty();
                    });
                    if (idle == members_.end()) continue;
                    from = &each;
                    what = {{peer}, one.action};
                }
            }
        }
        int const missing = what.peers.size() == 1 ? what.peers[0] : -1;
        from->tear_down(std::make_exception_ptr(transfer_stalled{from->rank, missing, what.action, seconds}));
        from->control.abort();
    }

    void reset(member& own) {
        std::scoped_lock const lock{mutex_}; // the watch, too, has ended what it was about to tell of the failure
        own.tear_down(own.control.failure());
        own.control.reset();
        if (++resets_ < local_) return;
        resets_ = 0;
        open();
    }

    /// The communicators that the job needs.
    [[nodiscard]] auto names() const -> std::vector<nccl_name> {
        std::vector<nccl_name> all;
        for (auto const& [one, other] : expected_.talking) {
            if (options_.mode == nccl_mode::strict) all.push_back({{one, other}, nccl_lane::both});
            for (nccl_lane const lane : {nccl_lane::up, nccl_lane::down}) all.push_back({{one, other}, lane});
        }
        for (auto const& each : expected_.summing) all.push_back({each, nccl_lane::sum});
        return all;
    }

    /// Opens all communicators of this process in one group and warms them in another. The other ranks do the same.
    void open() {
        std::vector<nccl_place> here;
        for (member const& each : members_) here.emplace_back(each.rank, each.dev->gpu());
        nccl_ends ends = opened_within(options_.opening, agreed_ids(here, names(), launch_, meeting_), here,
                                       options_.max_ctas);
        for (member& each : members_) {
            for (nccl_link& link : each.links) {
                auto const on = [&](nccl_lane lane) {
                    return ends[{each.rank, {link.pair(), lane}}]; // null where there is none
                };
                bool const lower = each.rank < link.peer();
                link.open({on(nccl_lane::both), on(lower ? nccl_lane::up : nccl_lane::down),
                           on(lower ? nccl_lane::down : nccl_lane::up)});
            }
            for (nccl_sum& sum : each.sums) sum.open(ends[{each.rank, {sum.ranks(), nccl_lane::sum}}]);
        }
        ends.clear();
        try {
            warm();
        } catch (...) {
            for (member& each : members_) each.give_up();
            throw;
        }
        for (member& each : members_) each.begin();
    }

    /// The first operation of a communicator connects its ranks, which takes long and blocks: so it is done now.
    void warm() {
        std::vector<cuda_block> memory;
        nccl_group group;
        for (member& each : members_) {
            for (nccl_link& link : each.links) memory.push_back(link.warm(group));
            for (nccl_sum& sum : each.sums) memory.push_back(sum.warm(group, each.side_stream()));
        }
        group.end("warming all communicators");
        for (member& each : members_) {
            for (nccl_link& link : each.links) link.own_stream().synchronize();
            each.side_stream().synchronize();
        }
    }

    nccl_options options_;
    traffic expected_;
    launch launch_{};
    meeting_options meeting_{};
    std::ptrdiff_t local_ = 1;
    Control<host_device> control_;
    std::mutex mutex_{};
    std::deque<member> members_{};
    std::ptrdiff_t resets_ = 0;
    std::atomic<bool> leaving_{false};
    std::thread watcher_{};
};

static_assert(summing_endpoint<nccl<>::endpoint, cuda_device>);
static_assert(summing_endpoint<nccl<cuda_device, tcp>::endpoint, cuda_device>);

/// For trainers: GPUs of threads of one process, one each; of processes of one rank each.
template <class Device>
using nccl_threads = nccl<Device, in_process>;
template <class Device>
using nccl_processes = nccl<Device, tcp>;

} // namespace copipe
