// SPDX-License-Identifier: Apache-2.0
// The transport between GPUs through NCCL. NCCL carries the data; a transport of the host carries the envelopes, the
// sums of a few numbers, and the news of failures. To be linked with the CMake target copipe::nccl.
#pragma once

#include "copipe/device/cuda.hpp"
#include "copipe/device/host.hpp"
#include "copipe/transport/in_process.hpp"
#include "copipe/transport/nccl_link.hpp"
#include "copipe/transport/rendezvous.hpp"
#include "copipe/transport/tcp.hpp"
#include "copipe/transport/transport.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

namespace copipe {

/// How the messages of a step are laid on communicators.
enum class nccl_mode : bool {
    strict, ///< one for both directions between two ranks, in an order proved beforehand: needs `follow`
    relaxed ///< one for each direction; relies on the GPU to run several operations of NCCL at once
};

/// Who looks after operations that do not end: a thread, or the program, which calls `watch` now and then.
enum class nccl_watch : bool { own_thread, by_program };

struct nccl_options {
    nccl_mode mode = nccl_mode::strict;
    std::chrono::milliseconds deadline{600'000}; ///< in which something must move while something is under way
    std::chrono::milliseconds opening{120'000};  ///< in which all communicators must stand
    std::chrono::milliseconds aborting{10'000};  ///< in which all communicators must have been given up
    std::chrono::milliseconds poll{20};          ///< between two looks of the thread
    int max_ctas = 0;                            ///< thread blocks per operation; 0: 4 if relaxed, else NCCL's choice
    nccl_watch watch = nccl_watch::own_thread;
    /// What a message is called in errors.
    std::function<std::string(std::uint64_t identity)> name = [](std::uint64_t identity) {
        return "message " + std::to_string(identity);
    };
};

/// Nothing has moved for too long.
class transfer_stalled : public error {
public:
    transfer_stalled(int waiting_rank, int missing_peer, std::string const& action, double seconds)
        : error("rank " + std::to_string(waiting_rank) + " is missing " + named(missing_peer) + ": " + action +
                ", and nothing has moved for " + std::to_string(seconds).substr(0, 5) + " s; " + named(missing_peer) +
                " has ended, hangs, or runs another schedule"),
          rank(waiting_rank),
          peer(missing_peer) {}
    int rank;
    int peer; ///< -1 if it can be any

private:
    [[nodiscard]] static auto named(int peer) -> std::string {
        return peer < 0 ? "another rank" : "rank " + std::to_string(peer);
    }
};

/// Two ranks on one GPU, which NCCL before 2.30 refuses.
class shared_gpu : public error {
public:
    shared_gpu(int one_rank, int other_rank, std::string const& gpu)
        : error("ranks " + std::to_string(one_rank) + " and " + std::to_string(other_rank) + " share the GPU " + gpu +
                ", which NCCL before 2.30 refuses: give each rank a GPU of its own, or run ranks that share one as "
                "threads of one process with the transport in_process") {}
};

/// Connects ranks on GPUs: `nccl<cuda_device>` the threads of one process, `nccl<cuda_device, tcp>` processes of one
/// rank each. Outlives its endpoints and all their operations.
///
/// The constructor is told which ranks talk much to each other; `connect` of the last rank of this process opens and
/// warms their communicators, so that no send blocks its first time. Messages between other ranks go through host
/// memory. A failure gives up all communicators; they are opened anew when the last rank has called `reset`.
template <std::same_as<cuda_device> Device = cuda_device, template <class> class Control = in_process>
class nccl {
public:
    class endpoint;
    using event = cuda_event;
    using pairs = std::vector<std::pair<int, int>>;

    /// All ranks are threads of this process.
    nccl(int ranks, pairs talking, nccl_options options = {})
        requires std::constructible_from<Control<host_device>, int>
        : options_(std::move(options)), talking_(ordered(std::move(talking))), local_(ranks), control_(ranks) {
        start();
    }
    /// This process is one rank of several. Blocks until all have met; throws rendezvous_error.
    nccl(launch own, pairs talking, nccl_options options = {}, tcp_options const& met = {})
        requires std::constructible_from<Control<host_device>, launch, tcp_options>
        : options_(std::move(options)),
          talking_(ordered(std::move(talking))),
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
        member& own = members_.emplace_back(*this, rank, dev);
        for (auto const& [one, other] : talking_)
            if (one == rank || other == rank) own.links.emplace_back(rank, one == rank ? other : one, dev);
        if (std::ssize(members_) == local_) open();
        return endpoint{own};
    }

    /// Looks once after what is under way. For programs that said `by_program`.
    void watch() {
        std::scoped_lock const lock{mutex_};
        for (member& each : members_) each.look();
        for (member& each : members_) each.look_at_waits();
        auto const now = clock::now();
        for (member& each : members_) {
            if (each.waits.empty() || now - each.moved <= options_.deadline) continue;
            blame(each, std::chrono::duration<double>{now - each.moved}.count());
            return;
        }
    }

    /// A message, or, between ranks without communicators, its data too.
    class parcel {
    public:
        envelope what{};

    private:
        friend nccl;
        nccl_link* link_ = nullptr;
        bool planned_ = false;
        typename Control<host_device>::endpoint::parcel carried_{};
    };

private:
    using clock = std::chrono::steady_clock;

    /// A rank of this process.
    struct member {
        nccl* hub;
        int rank;
        cuda_device* dev;
        typename Control<host_device>::endpoint control;
        std::deque<nccl_link> links{};
        host_device staging{host_execution::inline_};
        host_stream* host = &staging.open_stream("staging");

        std::mutex tearing{}; ///< for what follows
        bool torn = true;     ///< until its communicators are open
        std::exception_ptr reason = std::make_exception_ptr(error("not all ranks of this process are connected"));
        struct wait {
            int peer;
            std::string action;
        };
        std::vector<wait> waits{};
        clock::time_point moved = clock::now();
        std::uint64_t changes = 0;
        std::atomic<std::uint64_t> sums{0}; ///< odd while an all-reduce is under way

        member(nccl& all, int number, cuda_device& on)
            : hub(&all), rank(number), dev(&on), control(all.control_.connect(number)) {}

        [[nodiscard]] auto link_to(int peer) -> nccl_link* {
            auto const found =
                std::find_if(links.begin(), links.end(), [&](nccl_link const& l) { return l.peer() == peer; });
            return found == links.end() ? nullptr : &*found;
        }

        /// Throws why the communicators were given up, if they were.
        void require_open() {
            std::scoped_lock const lock{tearing};
            if (torn) std::rethrow_exception(reason);
        }

        /// Ends all operations of this rank. From any thread.
        void tear_down(std::exception_ptr why) {
            std::scoped_lock const lock{tearing};
            if (std::exchange(torn, true)) return;
            reason = why;
            for (nccl_link& each : links) each.close(why);
            give_up();
        }
        /// Each communicator from a thread of its own, because one may wait for another.
        void give_up() {
            std::vector<std::future<void>> ended;
            for (nccl_link& link : links) {
                for (auto const& each : link.opened()) {
                    if (!each) continue;
                    std::packaged_task<void()> abort([held = each, gpu = dev->gpu()] {
                        static_cast<void>(cudaSetDevice(gpu));
                        held->abort();
                    });
                    ended.push_back(abort.get_future());
                    std::thread(std::move(abort)).detach();
                }
            }
            auto const until = clock::now() + hub->options_.aborting;
            for (auto& each : ended) each.wait_until(until); // one that takes longer keeps its communicator
        }

        void leave() {
            std::scoped_lock const lock{tearing};
            bool busy = false;
            for (nccl_link& each : links) busy = each.look().begun || busy;
            if (busy && !torn) give_up(); // nobody knows whether that would end
            torn = true;
            reason = std::make_exception_ptr(error("rank " + std::to_string(rank) + " has left"));
            for (nccl_link& each : links) each.open({});
        }

        /// Gives up if another rank has failed, or a communicator has.
        void look() {
            std::exception_ptr why;
            bool own = false;
            {
                std::scoped_lock const lock{tearing};
                if (torn) return;
                why = control.failure();
                try {
                    for (nccl_link& each : links) each.check();
                } catch (...) {
                    own = !why;
                    if (own) why = std::current_exception();
                }
            }
            if (!why) return;
            tear_down(why);
            if (own) control.abort();
        }

        /// What it waits for now, and how long nothing has moved.
        void look_at_waits() {
            std::scoped_lock const lock{tearing};
            waits.clear();
            std::uint64_t now = sums;
            if (now % 2 != 0) waits.push_back({-1, "the sum of numbers over all ranks is awaited"});
            for (nccl_link& each : links) {
                auto const state = each.look();
                now += state.changes;
                if (state.identity == exchange::none) continue;
                wait const found{each.peer(), std::string(state.sends ? "sending " : "receiving ") +
                                                  hub->options_.name(state.identity) +
                                                  (state.begun ? " is under way" : " is awaited")};
                waits.insert(state.begun ? waits.begin() : waits.end(), found);
            }
            if (torn) waits.clear();
            if (now != std::exchange(changes, now) || waits.empty()) moved = clock::now();
        }
        /// Of messages that go through host memory.
        [[nodiscard]] auto side_stream() -> cuda_stream& {
            if (!side) side = &dev->open_stream("through the host");
            return *side;
        }
        cuda_stream* side = nullptr;
    };

public:
    /// One rank's end. See transport_endpoint.
    class endpoint {
    public:
        using parcel = nccl::parcel;

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
        [[nodiscard]] auto accept(parcel& arrived, void* to, cuda_stream& stream, timing timed)
            -> transfer<cuda_device> {
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
        [[nodiscard]] auto all_reduce(std::span<double> values) -> task<> { return sum(*own_, values); }
        void abort() {
            own_->control.abort();
            own_->tear_down(own_->control.failure());
        }
        void reset() { own_->hub->reset(*own_); }

    private:
        friend nccl;
        explicit endpoint(member& own) noexcept : own_(&own) {}

        /// The rank leaves while its device is still there: what it holds of it goes first.
        struct leave {
            void operator()(member* gone) const { gone->leave(); }
        };

        static auto send_to(member& own, int to, envelope what, void const* data, event const& ready)
            -> task<event> {
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
        static auto send_through_host(member& own, int to, envelope what, void const* data, event const& ready)
            -> task<> {
            std::vector<std::byte> buffer(what.bytes);
            cuda_stream& stream = own.side_stream();
            stream.wait(ready);
            stream.copy(buffer.data(), data, what.bytes);
            event const there = stream.record();
            co_await there.completion();
            there.check();
            host_event const now;
            host_event const sent = co_await own.control.send(to, what, buffer.data(), now);
            co_await sent.completion();
        }
        static auto arrival_from(member& own, int from, std::uint64_t identity) -> task<parcel> {
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
        static auto sum(member& own, std::span<double> values) -> task<> {
            ++own.sums;
            try {
                co_await own.control.all_reduce(values);
            } catch (peer_failed const&) {
                own.require_open();
                throw;
            }
            ++own.sums;
        }

        std::unique_ptr<member, leave> own_;
    };

private:
    [[nodiscard]] static auto ordered(pairs all) -> pairs {
        for (auto& [one, other] : all)
            if (one > other) std::swap(one, other);
        std::sort(all.begin(), all.end());
        all.erase(std::unique(all.begin(), all.end()), all.end());
        return all;
    }
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
        typename member::wait what = stalled.waits.front();
        for (member& each : members_) {
            for (auto const& one : each.waits) {
                auto const idle = std::find_if(members_.begin(), members_.end(), [&](member const& m) {
                    return m.rank == one.peer && m.waits.empty();
                });
                if (idle == members_.end()) continue;
                from = &each;
                what = one;
            }
        }
        from->tear_down(std::make_exception_ptr(transfer_stalled{from->rank, what.peer, what.action, seconds}));
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

    /// What the processes tell each other before they open communicators: the GPUs, and the ids that each has drawn.
    using id_table = std::map<std::tuple<int, int, std::uint64_t>, ncclUniqueId>; ///< by pair, and 0 to 2

    [[nodiscard]] auto own_ids() const -> id_table {
        id_table drawn;
        for (auto const& [one, other] : talking_) {
            bool const here = std::any_of(members_.begin(), members_.end(), [r = one](auto& m) { return m.rank == r; });
            for (std::uint64_t what = options_.mode == nccl_mode::strict ? 0 : 1; here && what < 3; ++what) {
                ncclUniqueId id;
                require_nccl(ncclGetUniqueId(&id), "ncclGetUniqueId");
                drawn.emplace(std::tuple{one, other, what}, id);
            }
        }
        return drawn;
    }
    [[nodiscard]] static auto gpu_of(member const& rank) -> std::string {
        std::array<char, 64> host{}, bus{};
        gethostname(host.data(), host.size() - 1);
        require_cuda(cudaDeviceGetPCIBusId(bus.data(), static_cast<int>(bus.size()), rank.dev->gpu()),
                     "cudaDeviceGetPCIBusId", {rank.dev->gpu(), "device"});
        return std::string(bus.data()) + " of " + host.data();
    }

    /// The ids of all communicators. Throws shared_gpu.
    [[nodiscard]] auto agree() -> id_table {
        std::vector<std::pair<int, std::string>> gpus;
        for (member const& each : members_) gpus.emplace_back(each.rank, gpu_of(each));
        id_table ids = own_ids();
        if (launch_.size > 1) {
            packet card;
            card.put(gpus.front().second).put(ids.size());
            for (auto const& [key, id] : ids) {
                auto const& [one, other, what] = key;
                card.put(static_cast<std::uint64_t>(one)).put(static_cast<std::uint64_t>(other)).put(what);
                card.put(std::string_view(id.internal, sizeof id.internal));
            }
            meeting const met = meet(launch_, card.bytes(), meeting_);
            gpus.clear();
            for (auto const& each : met.members) {
                packet theirs{each.card};
                gpus.emplace_back(static_cast<int>(gpus.size()), theirs.text());
                for (std::uint64_t left = theirs.number(); left > 0; --left) {
                    auto const one = static_cast<int>(theirs.number());
                    auto const other = static_cast<int>(theirs.number());
                    auto const what = theirs.number();
                    std::string const bytes = theirs.text();
                    ncclUniqueId id;
                    std::memcpy(id.internal, bytes.data(), std::min(bytes.size(), sizeof id.internal));
                    ids.insert_or_assign(std::tuple{one, other, what}, id);
                }
            }
        }
        int version = 0;
        require_nccl(ncclGetVersion(&version), "ncclGetVersion");
        for (std::size_t i = 0; version < 23000 && i < gpus.size(); ++i)
            for (std::size_t before = 0; before < i; ++before)
                if (gpus[before].second == gpus[i].second)
                    throw shared_gpu{gpus[before].first, gpus[i].first, gpus[i].second};
        return ids;
    }

    /// A link's communicators under construction, owned by the thread that opens them until all stand.
    struct opening {
        int rank;
        int peer;
        int gpu;
        nccl_link::communicators made{};
    };

    /// Opens all communicators of this process in one group and warms them in another. The other ranks do the same.
    void open() {
        id_table const ids = agree();
        auto const all = std::make_shared<std::vector<opening>>();
        for (member& each : members_)
            for (nccl_link& link : each.links) all->push_back({each.rank, link.peer(), each.dev->gpu(), {}});
        std::packaged_task<void()> create([all, ids, ctas = options_.max_ctas] {
            nccl_group group;
            for (opening& each : *all) {
                require_cuda(cudaSetDevice(each.gpu), "cudaSetDevice", {each.gpu, "opening communicators"});
                bool const lower = each.rank < each.peer;
                for (std::uint64_t lane = 0; lane < 3; ++lane) { // 1 leads from the lower rank to the higher, 2 back
                    auto const id = ids.find({std::min(each.rank, each.peer), std::max(each.rank, each.peer), lane});
                    if (id == ids.end()) continue;
                    auto const what = lane == 0 ? nccl_use::both
                                                : (lane == 1) == lower ? nccl_use::to_peer : nccl_use::from_peer;
                    each.made[static_cast<std::size_t>(what)] = std::make_shared<nccl_communicator>(
                        group, id->second, lower ? 0 : 1, ctas,
                        "rank " + std::to_string(each.rank) + ", with rank " + std::to_string(each.peer));
                }
            }
            group.end("opening all communicators");
        });
        in_time(std::move(create));
        std::size_t next = 0;
        for (member& each : members_)
            for (nccl_link& link : each.links) link.open(std::move((*all)[next++].made));
        try {
            warm();
        } catch (...) {
            for (member& each : members_) each.give_up();
            throw;
        }
        for (member& each : members_) {
            std::scoped_lock const lock{each.tearing};
            each.torn = false;
            each.moved = clock::now();
            each.sums = 0;
        }
    }

    /// A call of NCCL that waits for a rank which never comes does not end, and takes its communicators with it.
    void in_time(std::packaged_task<void()> work) {
        auto ended = work.get_future();
        std::thread worker(std::move(work));
        if (ended.wait_for(options_.opening) == std::future_status::ready) {
            worker.join();
            return ended.get();
        }
        worker.detach();
        throw error("NCCL could not open the communicators of rank " + std::to_string(members_.front().rank) +
                    " within " + std::to_string(options_.opening.count()) +
                    " ms: not all of its neighbours came; NCCL_DEBUG=INFO says more");
    }

    /// The first message of a communicator connects its ranks, which takes long and blocks: so it is sent now.
    void warm() {
        std::vector<nccl_link::warm_memory> memory;
        nccl_group group;
        for (member& each : members_)
            for (nccl_link& link : each.links) memory.push_back(link.warm(group));
        group.end("warming all communicators");
        for (member& each : members_)
            for (nccl_link& link : each.links) link.own_stream().synchronize();
    }

    nccl_options options_;
    pairs talking_;
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

static_assert(transport_endpoint<nccl<>::endpoint, cuda_device>);
static_assert(transport_endpoint<nccl<cuda_device, tcp>::endpoint, cuda_device>);

/// For trainers: GPUs of threads of one process, one each; of processes of one rank each.
template <class Device>
using nccl_threads = nccl<Device, in_process>;
template <class Device>
using nccl_processes = nccl<Device, tcp>;

} // namespace copipe
