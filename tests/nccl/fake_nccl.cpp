// SPDX-License-Identifier: Apache-2.0
#include "nccl/fake_nccl.hpp"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

namespace {

struct launch;

/// One send or receive, and its place among those of its communicator in its direction.
struct transfer {
    bool sends;
    int peer;
    std::byte* data;
    std::size_t bytes;
    std::uint64_t number;
    bool done = false;
};

/// One all-reduce, and its place among those of its communicator.
struct reduction {
    float const* from;
    float* to;
    std::size_t count;
    std::uint64_t number;
    bool done = false;
};

/// What all ranks of a communicator share.
struct clique {
    int joined = 0;
    int wanted = 0;
    std::map<int, std::shared_ptr<struct end>> ends{};
};

/// One rank's end of a communicator.
struct end {
    std::shared_ptr<clique> all;
    int rank;
    int gpu;
    bool aborted = false;
    std::deque<std::shared_ptr<launch>> order{}; ///< issued and not done
    std::map<std::pair<int, bool>, std::uint64_t> counts{};
    std::uint64_t reductions = 0;
};

/// The operations of one group on one communicator: one kernel.
struct launch {
    std::shared_ptr<end> on;
    cudaStream_t stream = nullptr;
    std::vector<transfer> parts{};
    std::vector<reduction> sums{};
    bool running = false; ///< the oldest of its stream and of its communicator: it makes progress
};

} // namespace

struct ncclComm {
    std::shared_ptr<end> self;
};

namespace {

struct library {
    std::mutex mutex{};
    std::condition_variable changed{};
    std::map<std::string, std::shared_ptr<clique>> cliques{};
    std::set<ncclComm_t> open{};
    std::map<int, ncclResult_t> async{};
    std::uint64_t ids = 0, calls = 0, failing = 0, fused = 0, reduced = 0, aborted = 0;
    ncclResult_t failure = ncclSuccess;
    std::string failed{};

    auto enter(char const* name) -> ncclResult_t {
        if (++calls != failing) return ncclSuccess;
        failed = name;
        return failure;
    }
};

library* here = nullptr;

/// What the current thread's group has gathered.
struct gathering {
    int depth = 0;
    ncclResult_t result = ncclSuccess;
    std::vector<std::pair<ncclComm_t*, std::shared_ptr<end>>> inits{};
    std::vector<std::shared_ptr<launch>> launches{};
};
thread_local gathering group;

auto enter(char const* name) -> ncclResult_t {
    std::scoped_lock const lock{here->mutex};
    return here->enter(name);
}

/// The launch and the part of it that a transfer meets, if its other side makes progress or has been enqueued.
auto counterpart(launch const& own, transfer const& part) -> std::pair<launch*, transfer*> {
    auto const found = own.on->all->ends.find(part.peer);
    if (found == own.on->all->ends.end()) return {};
    for (auto const& each : found->second->order)
        for (transfer& theirs : each->parts)
            if (theirs.sends != part.sends && theirs.peer == own.on->rank && theirs.number == part.number)
                return {each.get(), &theirs};
    return {};
}

/// The same all-reduce at another rank of the communicator, if it has been enqueued.
auto counterpart(end const& at, reduction const& part) -> std::pair<launch*, reduction*> {
    for (auto const& each : at.order)
        for (reduction& theirs : each->sums)
            if (theirs.number == part.number) return {each.get(), &theirs};
    return {};
}
/// Adds up in the order of ranks when all make progress.
void try_sum(launch& own, reduction const& part) {
    std::vector<reduction*> all;
    for (auto const& [rank, at] : own.on->all->ends) {
        auto const [theirs, same] = counterpart(*at, part);
        if (!theirs || !theirs->running || at->aborted) return;
        all.push_back(same);
    }
    if (static_cast<int>(all.size()) < own.on->all->wanted) return;
    for (std::size_t i = 0; i < part.count; ++i) {
        float sum = 0;
        for (reduction const* each : all) sum += each->from[i];
        for (reduction const* each : all) each->to[i] = sum;
    }
    for (reduction* each : all) each->done = true;
    ++here->reduced;
}

/// Moves what can be moved. True when nothing is left to do. Called by the machine when the launch is the oldest of its
/// stream.
auto progress(launch& own) -> bool {
    if (!here) return true;
    std::scoped_lock const lock{here->mutex};
    if (own.on->aborted) return true;
    if (own.on->order.empty() || own.on->order.front().get() != &own) return false;
    own.running = true;
    bool all = true;
    for (transfer& part : own.parts) {
        if (!part.done) {
            auto const [theirs, other] = counterpart(own, part);
            if (theirs && theirs->running && !theirs->on->aborted) {
                transfer const& from = part.sends ? part : *other;
                transfer const& to = part.sends ? *other : part;
                if (from.bytes != 0) std::memcpy(to.data, from.data, std::min(from.bytes, to.bytes));
                part.done = other->done = true;
            }
        }
        all = all && part.done;
    }
    for (reduction& part : own.sums) {
        if (!part.done) try_sum(own, part);
        all = all && part.done;
    }
    return all;
}
/// Whose work must come first while a launch cannot end.
auto blocker(launch const& own) -> cudaStream_t {
    std::scoped_lock const lock{here->mutex};
    if (!own.running) return own.on->order.empty() ? nullptr : own.on->order.front()->stream;
    for (transfer const& part : own.parts) {
        if (part.done) continue;
        auto const theirs = counterpart(own, part).first;
        if (!theirs) continue;
        launch const& first = *theirs->on->order.front();
        return first.stream == own.stream ? theirs->stream : first.stream;
    }
    for (reduction const& part : own.sums) {
        if (part.done) continue;
        for (auto const& [rank, at] : own.on->all->ends) {
            launch const* const theirs = counterpart(*at, part).first;
            if (theirs && !theirs->running) return theirs->on->order.front()->stream;
        }
    }
    return nullptr;
}

auto describe(launch const& of) -> std::string {
    std::string text = "NCCL:";
    for (transfer const& part : of.parts)
        text += std::string(part.sends ? " send to " : " receive from ") + std::to_string(part.peer);
    for (std::size_t i = 0; i < of.sums.size(); ++i) text += " all-reduce";
    return text;
}

void enqueue(std::shared_ptr<launch> const& next) {
    {
        std::scoped_lock const lock{here->mutex};
        bool sends = false, receives = false;
        for (transfer& part : next->parts) {
            part.number = next->on->counts[{part.peer, part.sends}]++;
            (part.sends ? sends : receives) = true;
        }
        for (reduction& part : next->sums) part.number = next->on->reductions++;
        here->fused += sends && receives;
        next->on->order.push_back(next);
    }
    fake::enqueue(next->stream, {.what = describe(*next),
                                 .effect =
                                     [next] {
                                         if (!here) return;
                                         std::scoped_lock const lock{here->mutex};
                                         std::erase(next->on->order, next);
                                     },
                                 .ready = [next] { return progress(*next); },
                                 .waits_on = [next] { return blocker(*next); },
                                 .always = true});
}

auto join_all(std::vector<std::pair<ncclComm_t*, std::shared_ptr<end>>> const& inits) -> ncclResult_t {
    std::unique_lock lock{here->mutex};
    for (auto const& [handle, self] : inits) {
        for (auto const& [rank, other] : self->all->ends)
            if (other->gpu == self->gpu) return ncclInvalidUsage; // "Duplicate GPU detected"
        self->all->ends[self->rank] = self;
        ++self->all->joined;
    }
    here->changed.notify_all();
    for (auto const& [handle, self] : inits)
        here->changed.wait(lock, [&] { return self->all->joined == self->all->wanted; });
    for (auto const& [handle, self] : inits) {
        *handle = new ncclComm{self};
        here->open.insert(*handle);
    }
    return ncclSuccess;
}

auto end_group() -> ncclResult_t {
    gathering const all = std::exchange(group, {});
    if (ncclResult_t const failed = enter("ncclGroupEnd"); failed != ncclSuccess) return failed;
    if (all.result != ncclSuccess) return all.result;
    for (auto const& each : all.launches) {
        std::int64_t to_self = 0;
        for (transfer const& part : each->parts)
            if (part.peer == each->on->rank) to_self += part.sends ? 1 : -1;
        if (to_self != 0) return ncclInvalidUsage; // a send to oneself is paired within the group
    }
    if (ncclResult_t const joined = join_all(all.inits); joined != ncclSuccess) return joined;
    for (auto const& each : all.launches) enqueue(each);
    return ncclSuccess;
}

/// The group's launch on a communicator.
auto launch_on(ncclComm_t comm, cudaStream_t stream) -> launch& {
    auto const same = [&](auto const& each) { return each->on == comm->self; };
    auto const found = std::find_if(group.launches.begin(), group.launches.end(), same);
    if (found != group.launches.end()) return **found;
    auto const made = std::make_shared<launch>();
    made->on = comm->self;
    made->stream = stream;
    group.launches.push_back(made);
    return *made;
}

auto transfer_call(char const* name, bool sends, void* data, std::size_t bytes, int peer, ncclComm_t comm,
                   cudaStream_t stream) -> ncclResult_t {
    if (ncclResult_t const failed = enter(name); failed != ncclSuccess) return group.result = failed;
    ++group.depth;
    launch_on(comm, stream).parts.push_back({sends, peer, static_cast<std::byte*>(data), bytes, 0});
    return --group.depth == 0 ? end_group() : ncclSuccess;
}

} // namespace

namespace fake {

nccl_library::nccl_library() { here = new library; }
nccl_library::~nccl_library() {
    for (ncclComm_t each : here->open) delete each;
    for (auto const& [id, all] : here->cliques) {
        for (auto const& [rank, each] : all->ends) each->order.clear(); // of what a lost GPU never came to
        all->ends.clear();
    }
    delete std::exchange(here, nullptr);
}
void nccl_library::fail_call(std::uint64_t number, ncclResult_t code) {
    std::scoped_lock const lock{here->mutex};
    here->calls = 0;
    here->failing = number;
    here->failure = code;
    here->failed.clear();
}
auto nccl_library::failed_call() const -> std::string {
    std::scoped_lock const lock{here->mutex};
    return here->failed;
}
void nccl_library::set_async_error(int gpu, ncclResult_t code) {
    std::scoped_lock const lock{here->mutex};
    here->async[gpu] = code;
}
auto nccl_library::fused() const -> std::uint64_t {
    std::scoped_lock const lock{here->mutex};
    return here->fused;
}
auto nccl_library::aborted() const -> std::uint64_t {
    std::scoped_lock const lock{here->mutex};
    return here->aborted;
}
auto nccl_library::reduced() const -> std::uint64_t {
    std::scoped_lock const lock{here->mutex};
    return here->reduced;
}
auto nccl_library::leaks() const -> std::string {
    std::scoped_lock const lock{here->mutex};
    return here->open.empty() ? "" : std::to_string(here->open.size()) + " communicators";
}

} // namespace fake

auto ncclGetVersion(int* version) -> ncclResult_t {
    *version = std::min(NCCL_VERSION_CODE, 22999); // one that refuses ranks that share a GPU
    return enter("ncclGetVersion");
}
auto ncclGetErrorString(ncclResult_t code) -> char const* {
    return code == ncclSystemError ? "unhandled system error" : "as the fake was told to";
}
auto ncclGetLastError(ncclComm_t) -> char const* { return ""; }
auto ncclGetUniqueId(ncclUniqueId* id) -> ncclResult_t {
    std::scoped_lock const lock{here->mutex};
    std::memset(id->internal, 0, sizeof id->internal);
    std::string const name = "clique " + std::to_string(++here->ids);
    name.copy(id->internal, sizeof id->internal - 1);
    return here->enter("ncclGetUniqueId");
}

auto ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t* config)
    -> ncclResult_t {
    *comm = nullptr;
    auto const self = std::make_shared<end>();
    self->rank = rank;
    cudaGetDevice(&self->gpu);
    {
        std::scoped_lock const lock{here->mutex};
        if (ncclResult_t const failed = here->enter("ncclCommInitRankConfig"); failed != ncclSuccess)
            return group.result = failed;
        if (config->magic != 0xcafebeef || config->blocking != 1) return group.result = ncclInvalidArgument;
        auto& all = here->cliques[id.internal];
        if (!all) all = std::make_shared<clique>();
        all->wanted = ranks;
        self->all = all;
    }
    if (group.depth == 0) return join_all({{comm, self}});
    group.inits.emplace_back(comm, self);
    return ncclSuccess;
}
auto ncclCommDestroy(ncclComm_t comm) -> ncclResult_t {
    std::scoped_lock const lock{here->mutex};
    here->open.erase(comm);
    delete comm;
    return here->enter("ncclCommDestroy");
}
auto ncclCommAbort(ncclComm_t comm) -> ncclResult_t {
    std::vector<cudaStream_t> streams;
    ncclResult_t result = ncclSuccess;
    {
        std::scoped_lock const lock{here->mutex};
        result = here->enter("ncclCommAbort");
        comm->self->aborted = true;
        for (auto const& each : comm->self->order) streams.push_back(each->stream);
        ++here->aborted;
        here->open.erase(comm);
    }
    for (cudaStream_t each : streams) fake::enqueue(each, {.what = "abort"}); // makes the machine look again
    delete comm;
    return result;
}
auto ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* state) -> ncclResult_t {
    std::scoped_lock const lock{here->mutex};
    auto const found = here->async.find(comm->self->gpu);
    *state = found == here->async.end() ? ncclSuccess : found->second;
    return ncclSuccess;
}

auto ncclGroupStart() -> ncclResult_t {
    if (ncclResult_t const failed = enter("ncclGroupStart"); failed != ncclSuccess) return failed;
    ++group.depth;
    return ncclSuccess;
}
auto ncclGroupEnd() -> ncclResult_t {
    if (group.depth > 1) return --group.depth, ncclSuccess;
    return end_group();
}
auto ncclSend(void const* data, std::size_t count, ncclDataType_t, int peer, ncclComm_t comm, cudaStream_t stream)
    -> ncclResult_t {
    return transfer_call("ncclSend", true, const_cast<void*>(data), count, peer, comm, stream);
}
auto ncclRecv(void* data, std::size_t count, ncclDataType_t, int peer, ncclComm_t comm, cudaStream_t stream)
    -> ncclResult_t {
    return transfer_call("ncclRecv", false, data, count, peer, comm, stream);
}
auto ncclAllReduce(void const* from, void* to, std::size_t count, ncclDataType_t type, ncclRedOp_t how, ncclComm_t comm,
                   cudaStream_t stream) -> ncclResult_t {
    if (ncclResult_t const failed = enter("ncclAllReduce"); failed != ncclSuccess) return group.result = failed;
    if (type != ncclFloat32 || how != ncclSum) return group.result = ncclInvalidArgument;
    ++group.depth;
    launch_on(comm, stream).sums.push_back({static_cast<float const*>(from), static_cast<float*>(to), count, 0});
    return --group.depth == 0 ? end_group() : ncclSuccess;
}

auto cudaDeviceGetPCIBusId(char* id, int length, int device) -> cudaError_t {
    std::string const name = "0000:" + std::to_string(device) + ":00.0";
    name.copy(id, static_cast<std::size_t>(length) - 1);
    id[std::min<std::size_t>(name.size(), static_cast<std::size_t>(length) - 1)] = '\0';
    return cudaSuccess;
}
