// SPDX-License-Identifier: Apache-2.0
#include "cuda/fake_cuda.hpp"

#include "cuda/fake_kernels.hpp"

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include <sys/mman.h>

namespace {

/// One record of an event: whether the stream has come to it, and when.
struct snapshot {
    cudaStream_t stream = nullptr;
    bool done = false;
    double time = 0;
};

} // namespace

// What CUDA's handles point to is the runtime's own affair: here it is this.
struct CUstream_st {
    int device = 0;
    int number = 0;
    std::deque<fake::operation> work{};
    std::uint64_t finished = 0; ///< operations done so far
    bool running = false;
    double ends = 0;
    CUgraph_st* captured = nullptr; ///< takes up what is enqueued
};
struct CUgraph_st {
    std::vector<fake::operation> work{};
};
struct CUgraphExec_st : CUgraph_st {};
struct CUevent_st {
    int device = 0;
    bool timed = false;
    std::shared_ptr<snapshot> last{};
};
struct CUmemPoolHandle_st {
    int device = 0;
};
struct CUlib_st {
    std::string code;
};
struct CUkern_st {
    std::string name;
};

namespace {

using fake::drive;
using fake::operation;

struct releases {
    std::size_t mapped;
    void operator()(std::byte* data) const {
        if (mapped > 0)
            ::munmap(data, mapped);
        else
            std::free(data);
    }
};
struct block {
    std::size_t bytes;
    cudaMemoryType type;
    int device;
    std::unique_ptr<std::byte, releases> data;
};

struct world {
    std::mutex mutex{};
    std::condition_variable changed{};
    drive how{};
    int gpus = 1;
    std::mt19937 random{1};
    std::thread worker{};
    bool leaving = false;

    double now = 0;
    std::function<double(std::size_t)> copy_seconds{};
    std::function<double(std::string const&)> kernel_seconds{};
    std::map<int, double> slowness{}; ///< of GPUs that have been slowed down
    std::vector<std::unique_ptr<CUstream_st>> streams{};
    std::set<cudaEvent_t> events{};
    std::set<cudaMemPool_t> pools{};
    std::set<cudaLibrary_t> libraries{};
    std::map<std::string, std::unique_ptr<CUkern_st>> kernels{};
    std::map<std::byte*, block> memory{};
    int streams_made = 0;

    std::uint64_t calls = 0;
    std::map<std::string, std::uint64_t> calls_of{};
    std::map<std::string, std::uint64_t> launches_of{};
    std::uint64_t host_waits = 0;
    std::uint64_t failing_call = 0;
    std::uint64_t failing_kernel = 0;
    cudaError_t failure = cudaSuccess;
    bool failure_sticks = false;
    std::string failed_call{};
    cudaError_t lost = cudaSuccess; ///< the GPU is gone
    cudaError_t last = cudaSuccess;

    /// Counts a call; what it must return, if it must fail.
    auto enter(char const* function) -> cudaError_t {
        ++calls;
        ++calls_of[function];
        if (lost != cudaSuccess) return last = lost;
        if (calls != failing_call) return cudaSuccess;
        failed_call = function;
        if (failure_sticks) lose(failure);
        return last = failure;
    }
    auto refuse(cudaError_t code) -> cudaError_t { return last = code; }

    /// Work that has not been done never will be; memory is freed all the same.
    void lose(cudaError_t code) {
        if (lost != cudaSuccess) return;
        lost = code;
        for (auto& each : streams) {
            auto const left = std::exchange(each->work, {});
            each->running = false;
            for (operation const& one : left)
                if (one.always) one.effect();
        }
        changed.notify_all();
    }

    void start_all() {
        for (auto& each : streams) {
            if (each->running || each->work.empty()) continue;
            operation const& oldest = each->work.front();
            if (oldest.ready && !oldest.ready()) continue;
            each->running = true;
            auto const slow = slowness.find(each->device);
            each->ends = now + oldest.seconds * (slow == slowness.end() ? 1 : slow->second);
        }
    }
    auto end_all() -> bool {
        bool any = false;
        std::vector<CUstream_st*> ending;
        for (auto& each : streams)
            if (each->running && each->ends <= now) ending.push_back(each.get());
        if (how == drive::by_thread) std::shuffle(ending.begin(), ending.end(), random);
        for (CUstream_st* each : ending) {
            if (!each->running) continue; // the GPU was lost
            operation const done = std::move(each->work.front());
            each->work.pop_front();
            ++each->finished;
            each->running = false;
            if (done.effect) done.effect();
            any = true;
        }
        return any;
    }
    auto advance() -> bool {
        bool any = false;
        for (start_all(); end_all(); start_all()) any = true;
        if (!any) {
            double next = -1;
            for (auto const& each : streams)
                if (each->running && (next < 0 || each->ends < next)) next = each->ends;
            if (next < 0) return false;
            now = next;
            for (; end_all(); start_all()) any = true;
        }
        changed.notify_all();
        return any;
    }

    [[nodiscard]] auto stuck() const -> std::string {
        std::string text;
        auto const name = [](CUstream_st const& s) { return "stream " + std::to_string(s.number); };
        for (auto const& each : streams)
            if (!each->work.empty())
                text += name(*each) + " cannot do '" + each->work.front().what + "', and " +
                        std::to_string(each->work.size() - 1) + " after it; ";
        for (auto const& begin : streams) {
            std::vector<CUstream_st const*> path;
            for (CUstream_st const* at = begin.get(); at && !at->work.empty() && at->work.front().waits_on;) {
                auto const again = std::find(path.begin(), path.end(), at);
                if (again != path.end()) {
                    text += "the cycle: ";
                    for (auto one = again; one != path.end(); ++one)
                        text += name(**one) + " ('" + (*one)->work.front().what + "') waits for ";
                    return text + name(*at);
                }
                path.push_back(at);
                at = at->work.front().waits_on();
            }
        }
        return text;
    }

    /// The host waits until `done`; returns what the call must return.
    template <class Done>
    auto host_wait(std::unique_lock<std::mutex>& lock, Done done) -> cudaError_t {
        if (done()) return cudaSuccess;
        ++host_waits;
        while (!done()) {
            if (lost != cudaSuccess) return last = lost;
            if (how == drive::by_thread)
                changed.wait(lock);
            else if (!advance())
                return last = cudaErrorLaunchTimeout; // for ever: stuck() says why
        }
        return lost == cudaSuccess ? cudaSuccess : last = lost;
    }

    auto enqueue(std::unique_lock<std::mutex>& lock, cudaStream_t stream, operation what) -> cudaError_t {
        if (stream->captured) return stream->captured->work.push_back(std::move(what)), cudaSuccess;
        cudaError_t const full = host_wait(lock, [&] { return stream->work.size() < 1024; });
        if (full != cudaSuccess) {
            if (what.always) what.effect();
            return full;
        }
        stream->work.push_back(std::move(what));
        changed.notify_all();
        return cudaSuccess;
    }

    void run() {
        std::unique_lock lock{mutex};
        while (!leaving) {
            if (advance()) {
                lock.unlock();
                std::this_thread::yield();
                lock.lock();
            } else {
                changed.wait(lock);
            }
        }
    }

    [[nodiscard]] auto find(void const* pointer) const -> block const* {
        auto const* at = static_cast<std::byte const*>(pointer);
        auto found = memory.upper_bound(const_cast<std::byte*>(at));
        if (found == memory.begin()) return nullptr;
        --found;
        return at < found->first + found->second.bytes ? &found->second : nullptr;
    }
    auto allocate(std::size_t bytes, cudaMemoryType type, int device) -> void* {
        // Large blocks cost nothing until used. The undefined contents of others are not-a-number.
        bool const large = bytes >= std::size_t{1} << 20U;
        auto* const data = static_cast<std::byte*>(
            large ? ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
                  : std::aligned_alloc(256, (bytes + 255) / 256 * 256));
        if (!large) std::memset(data, 0xff, bytes);
        memory.emplace(data, block{bytes, type, device, {data, {large ? bytes : 0}}});
        return data;
    }
    void free(void* data) {
        memory.erase(static_cast<std::byte*>(data));
    }
};

world* here = nullptr;
thread_local int current_device = 0;

/// The body of a call: under the lock, if there is a machine and the call need not fail.
template <class Body>
auto call(char const* function, Body body) -> cudaError_t {
    if (!here) return cudaErrorInsufficientDriver;
    std::unique_lock lock{here->mutex};
    if (cudaError_t const failed = here->enter(function); failed != cudaSuccess) return failed;
    return body(lock);
}
/// A call that destroys: it does so, whatever it returns.
template <class Body>
auto destroy(char const* function, Body body) -> cudaError_t {
    if (!here) return cudaErrorInsufficientDriver;
    std::unique_lock lock{here->mutex};
    cudaError_t const failed = here->enter(function);
    body(lock);
    return failed;
}

auto copy(char const* function, void* to, void const* from, std::size_t bytes, cudaStream_t stream) -> cudaError_t {
    return call(function, [&](std::unique_lock<std::mutex>& lock) {
        auto const known = [](block const* memory) { return memory != nullptr; };
        auto buffer = std::make_shared<std::vector<std::byte>>();
        if (!known(here->find(from))) { // ordinary memory is read by the call
            auto const* const first = static_cast<std::byte const*>(from);
            buffer->assign(first, first + bytes);
        }
        auto const done = std::make_shared<bool>(false);
        operation what{.what = function, .seconds = here->copy_seconds ? here->copy_seconds(bytes) : 0};
        what.effect = [=] {
            std::memcpy(to, buffer->empty() ? from : buffer->data(), bytes);
            *done = true;
        };
        cudaError_t const enqueued = here->enqueue(lock, stream, std::move(what));
        if (enqueued != cudaSuccess || known(here->find(to))) return enqueued;
        return here->host_wait(lock, [&] { return *done; }); // and written by it
    });
}

} // namespace

namespace fake {

machine::machine(drive how, int gpus, unsigned seed) {
    here = new world{};
    here->how = how;
    here->gpus = gpus;
    here->random.seed(seed);
    if (how == drive::by_thread) here->worker = std::thread([world = here] { world->run(); });
}
machine::~machine() {
    {
        std::scoped_lock const lock{here->mutex};
        here->leaving = true;
        here->changed.notify_all();
    }
    if (here->worker.joinable()) here->worker.join();
    for (auto* each : here->events) delete each;
    for (auto* each : here->pools) delete each;
    for (auto* each : here->libraries) delete each;
    delete std::exchange(here, nullptr);
}
auto machine::now() const -> double {
    std::scoped_lock const lock{here->mutex};
    return here->now;
}
auto machine::advance() -> bool {
    std::scoped_lock const lock{here->mutex};
    return here->advance();
}
auto machine::stuck() const -> std::string {
    std::scoped_lock const lock{here->mutex};
    return here->stuck();
}
void machine::copies_take(std::function<double(std::size_t)> seconds) {
    std::scoped_lock const lock{here->mutex};
    here->copy_seconds = std::move(seconds);
}
void machine::kernels_take(std::function<double(std::string const&)> seconds) {
    std::scoped_lock const lock{here->mutex};
    here->kernel_seconds = std::move(seconds);
}
void machine::slow_down(int gpu, double factor) {
    std::scoped_lock const lock{here->mutex};
    here->slowness[gpu] = factor;
}
void machine::fail_call(std::uint64_t number, cudaError_t code, bool sticky) {
    std::scoped_lock const lock{here->mutex};
    here->calls = 0;
    here->calls_of.clear();
    here->failing_call = number;
    here->failure = code;
    here->failure_sticks = sticky;
    here->failed_call.clear();
}
auto machine::failed_call() const -> std::string {
    std::scoped_lock const lock{here->mutex};
    return here->failed_call;
}
void machine::fail_kernel(std::uint64_t number) {
    std::scoped_lock const lock{here->mutex};
    here->failing_kernel = number;
}
auto machine::calls() const -> std::uint64_t {
    std::scoped_lock const lock{here->mutex};
    return here->calls;
}
auto machine::calls(std::string const& function) const -> std::uint64_t {
    std::scoped_lock const lock{here->mutex};
    auto const found = here->calls_of.find(function);
    return found == here->calls_of.end() ? 0 : found->second;
}
auto machine::launches(std::string const& kernel) const -> std::uint64_t {
    std::scoped_lock const lock{here->mutex};
    auto const found = here->launches_of.find(kernel);
    return found == here->launches_of.end() ? 0 : found->second;
}
auto machine::host_waits() const -> std::uint64_t {
    std::scoped_lock const lock{here->mutex};
    return here->host_waits;
}
auto machine::leaks() const -> std::string {
    std::scoped_lock const lock{here->mutex};
    std::string text;
    auto const tell = [&](std::size_t count, char const* what) {
        if (count != 0) text += std::to_string(count) + " " + what + "; ";
    };
    tell(here->streams.size(), "streams");
    tell(here->events.size(), "events");
    tell(here->pools.size(), "memory pools");
    tell(here->libraries.size(), "libraries");
    tell(here->memory.size(), "blocks of memory");
    return text;
}

void launch(cudaStream_t stream, std::string const& what, double seconds, std::function<void()> effect) {
    static_cast<void>(call("kernel", [&](std::unique_lock<std::mutex>& lock) {
        if (stream->device != current_device) return here->refuse(cudaErrorInvalidResourceHandle);
        ++here->launches_of[what];
        auto const run = [effect = std::move(effect)] {
            if (here->failing_kernel != 0 && --here->failing_kernel == 0)
                here->lose(cudaErrorIllegalAddress);
            else if (effect)
                effect();
        };
        return here->enqueue(lock, stream, {.what = what, .seconds = seconds, .effect = run});
    }));
}
auto enqueue(cudaStream_t stream, operation what) -> std::uint64_t {
    std::unique_lock lock{here->mutex};
    static_cast<void>(here->enqueue(lock, stream, std::move(what)));
    return stream->finished + stream->work.size();
}
auto reached(cudaStream_t stream, std::uint64_t number) -> bool { return stream->finished + 1 >= number; }
void lose_gpu(cudaError_t code) { here->lose(code); }

} // namespace fake

// The runtime's functions, in the order of its documentation.

auto cudaGetLastError() -> cudaError_t {
    if (!here) return cudaErrorInsufficientDriver;
    std::scoped_lock const lock{here->mutex};
    cudaError_t const reported = here->last;
    here->last = here->lost;
    return reported;
}
auto cudaGetErrorName(cudaError_t code) -> char const* {
    switch (code) {
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInsufficientDriver: return "cudaErrorInsufficientDriver";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    default: return "cudaErrorOfTheFake";
    }
}
auto cudaGetErrorString(cudaError_t code) -> char const* {
    switch (code) {
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorIllegalAddress: return "an illegal memory access was encountered";
    default: return "as the fake was told to";
    }
}

auto cudaGetDeviceCount(int* count) -> cudaError_t {
    return call("cudaGetDeviceCount", [&](auto&) { return *count = here->gpus, cudaSuccess; });
}
auto cudaSetDevice(int device) -> cudaError_t {
    return call("cudaSetDevice", [&](auto&) {
        if (device < 0 || device >= here->gpus) return here->refuse(cudaErrorInvalidDevice);
        current_device = device;
        return cudaSuccess;
    });
}
auto cudaGetDevice(int* device) -> cudaError_t {
    return call("cudaGetDevice", [&](auto&) { return *device = current_device, cudaSuccess; });
}
auto cudaDeviceGetStreamPriorityRange(int* least, int* greatest) -> cudaError_t {
    return call("cudaDeviceGetStreamPriorityRange", [&](auto&) { return *least = 0, *greatest = -5, cudaSuccess; });
}
auto cudaGetDeviceProperties(cudaDeviceProp* known, int device) -> cudaError_t {
    return call("cudaGetDeviceProperties", [&](auto&) {
        if (device < 0 || device >= here->gpus) return here->refuse(cudaErrorInvalidDevice);
        *known = {};
        std::strcpy(known->name, "a GPU that is a fake");
        return cudaSuccess;
    });
}
auto cudaMemGetInfo(std::size_t* unused, std::size_t* all) -> cudaError_t {
    return call("cudaMemGetInfo", [&](auto&) {
        *all = *unused = std::size_t{1} << 34U;
        for (auto const& [data, what] : here->memory)
            if (what.type == cudaMemoryTypeDevice && what.device == current_device) *unused -= what.bytes;
        return cudaSuccess;
    });
}
auto cudaDeviceCanAccessPeer(int* can, int device, int peer) -> cudaError_t {
    return call("cudaDeviceCanAccessPeer", [&](auto&) { return *can = device != peer, cudaSuccess; });
}
auto cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) -> cudaError_t {
    if (here) *mode = cudaStreamCaptureModeGlobal; // not counted: the poller's thread calls it when it comes to run
    return here ? cudaSuccess : cudaErrorInsufficientDriver;
}

auto cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) -> cudaError_t {
    return call("cudaStreamCreateWithPriority", [&](auto&) {
        here->streams.push_back(std::make_unique<CUstream_st>());
        *stream = here->streams.back().get();
        (*stream)->device = current_device;
        (*stream)->number = ++here->streams_made;
        return cudaSuccess;
    });
}
auto cudaStreamDestroy(cudaStream_t stream) -> cudaError_t {
    return destroy("cudaStreamDestroy", [&](auto& lock) { // its work is done first
        static_cast<void>(here->host_wait(lock, [&] { return stream->work.empty(); }));
        std::erase_if(here->streams, [&](auto const& each) { return each.get() == stream; });
    });
}
auto cudaStreamSynchronize(cudaStream_t stream) -> cudaError_t {
    return call("cudaStreamSynchronize",
                [&](auto& lock) { return here->host_wait(lock, [&] { return stream->work.empty(); }); });
}
auto cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) -> cudaError_t {
    return call("cudaStreamWaitEvent", [&](auto& lock) {
        auto const last = event->last;
        if (!last) return cudaSuccess;
        return here->enqueue(lock, stream,
                             {.what = "wait for an event",
                              .ready = [last] { return last->done; },
                              .waits_on = [last] { return last->stream; }});
    });
}

auto cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) -> cudaError_t {
    return call("cudaStreamBeginCapture", [&](auto&) { return stream->captured = new CUgraph_st{}, cudaSuccess; });
}
auto cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) -> cudaError_t {
    return call("cudaStreamEndCapture", [&](auto&) {
        *graph = std::exchange(stream->captured, nullptr);
        return *graph ? cudaSuccess : here->refuse(cudaErrorIllegalState);
    });
}
auto cudaGraphInstantiate(cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long) -> cudaError_t {
    return call("cudaGraphInstantiate", [&](auto&) { return *ready = new CUgraphExec_st{*graph}, cudaSuccess; });
}
auto cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t stream) -> cudaError_t {
    return call("cudaGraphLaunch", [&](auto& lock) {
        cudaError_t enqueued = cudaSuccess;
        for (operation const& each : ready->work)
            if (enqueued == cudaSuccess) enqueued = here->enqueue(lock, stream, each);
        return enqueued;
    });
}
auto cudaGraphExecDestroy(cudaGraphExec_t ready) -> cudaError_t {
    return destroy("cudaGraphExecDestroy", [&](auto&) { delete ready; });
}
auto cudaGraphDestroy(cudaGraph_t graph) -> cudaError_t {
    return destroy("cudaGraphDestroy", [&](auto&) { delete graph; });
}

auto cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) -> cudaError_t {
    return call("cudaEventCreateWithFlags", [&](auto&) {
        *event = new CUevent_st{.device = current_device, .timed = (flags & cudaEventDisableTiming) == 0};
        here->events.insert(*event);
        return cudaSuccess;
    });
}
auto cudaEventDestroy(cudaEvent_t event) -> cudaError_t {
    return destroy("cudaEventDestroy", [&](auto&) {
        here->events.erase(event);
        delete event;
    });
}
auto cudaEventRecord(cudaEvent_t event, cudaStream_t stream) -> cudaError_t {
    return call("cudaEventRecord", [&](auto& lock) {
        if (event->device != stream->device) return here->refuse(cudaErrorInvalidResourceHandle);
        auto const last = std::make_shared<snapshot>(snapshot{.stream = stream});
        event->last = last;
        return here->enqueue(lock, stream, {.what = "record an event", .effect = [last] {
                                                last->done = true;
                                                last->time = here->now;
                                            }});
    });
}
auto cudaEventQuery(cudaEvent_t event) -> cudaError_t {
    if (!here) return cudaErrorInsufficientDriver;
    std::scoped_lock const lock{here->mutex};
    if (here->how == drive::by_thread) { // how often a poller asks is chance: such calls have no number, and none fails
        ++here->calls_of["cudaEventQuery"];
        if (here->lost != cudaSuccess) return here->last = here->lost;
    } else if (cudaError_t const failed = here->enter("cudaEventQuery"); failed != cudaSuccess) {
        return failed;
    }
    return !event->last || event->last->done ? cudaSuccess : cudaErrorNotReady;
}
auto cudaEventSynchronize(cudaEvent_t event) -> cudaError_t {
    return call("cudaEventSynchronize", [&](auto& lock) {
        auto const last = event->last;
        return here->host_wait(lock, [&] { return !last || last->done; });
    });
}
auto cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) -> cudaError_t {
    return call("cudaEventElapsedTime", [&](auto&) {
        if (!start->timed || !end->timed || !start->last || !end->last)
            return here->refuse(cudaErrorInvalidResourceHandle);
        if (!start->last->done || !end->last->done) return cudaErrorNotReady;
        *milliseconds = static_cast<float>(1e3 * (end->last->time - start->last->time));
        return cudaSuccess;
    });
}

auto cudaMemPoolCreate(cudaMemPool_t* pool, cudaMemPoolProps const* properties) -> cudaError_t {
    return call("cudaMemPoolCreate", [&](auto&) {
        *pool = new CUmemPoolHandle_st{.device = properties->location.id};
        here->pools.insert(*pool);
        return cudaSuccess;
    });
}
auto cudaMemPoolDestroy(cudaMemPool_t pool) -> cudaError_t {
    return destroy("cudaMemPoolDestroy", [&](auto&) {
        here->pools.erase(pool);
        delete pool;
    });
}
auto cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) -> cudaError_t {
    return call("cudaMemPoolSetAttribute", [&](auto&) { return cudaSuccess; });
}
auto cudaMemPoolSetAccess(cudaMemPool_t, cudaMemAccessDesc const*, std::size_t) -> cudaError_t {
    return call("cudaMemPoolSetAccess", [&](auto&) { return cudaSuccess; });
}
auto cudaMallocFromPoolAsync(void** data, std::size_t bytes, cudaMemPool_t pool, cudaStream_t) -> cudaError_t {
    return call("cudaMallocFromPoolAsync", [&](auto&) {
        *data = here->allocate(bytes, cudaMemoryTypeDevice, pool->device);
        return cudaSuccess;
    });
}
/// Frees when the stream comes to it: what uses the memory later is found by AddressSanitizer.
auto cudaFreeAsync(void* data, cudaStream_t stream) -> cudaError_t {
    return destroy("cudaFreeAsync", [&](auto& lock) {
        auto const free = [data] { here->free(data); };
        if (here->lost != cudaSuccess)
            free();
        else
            static_cast<void>(here->enqueue(lock, stream, {.what = "free", .effect = free, .always = true}));
    });
}
auto cudaMallocHost(void** data, std::size_t bytes) -> cudaError_t {
    return call("cudaMallocHost", [&](auto&) {
        *data = here->allocate(bytes, cudaMemoryTypeHost, current_device);
        return cudaSuccess;
    });
}
auto cudaFreeHost(void* data) -> cudaError_t {
    return destroy("cudaFreeHost", [&](auto&) { here->free(data); });
}
auto cudaPointerGetAttributes(cudaPointerAttributes* found, void const* pointer) -> cudaError_t {
    return call("cudaPointerGetAttributes", [&](auto&) {
        *found = {};
        block const* const memory = here->find(pointer);
        found->type = memory ? memory->type : cudaMemoryTypeUnregistered;
        found->device = memory ? memory->device : -1;
        return cudaSuccess;
    });
}

auto cudaMemcpyAsync(void* to, void const* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream)
    -> cudaError_t {
    return copy("cudaMemcpyAsync", to, from, bytes, stream);
}
auto cudaMemcpyPeerAsync(void* to, int, void const* from, int, std::size_t bytes, cudaStream_t stream) -> cudaError_t {
    return copy("cudaMemcpyPeerAsync", to, from, bytes, stream);
}
auto cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) -> cudaError_t {
    return call("cudaMemsetAsync", [&](auto& lock) {
        return here->enqueue(lock, stream,
                             {.what = "cudaMemsetAsync", .effect = [=] { std::memset(to, value, bytes); }});
    });
}

auto cudaLibraryLoadData(cudaLibrary_t* library, void const* code, cudaJitOption*, void**, unsigned,
                         cudaLibraryOption*, void**, unsigned) -> cudaError_t {
    return call("cudaLibraryLoadData", [&](auto&) {
        *library = new CUlib_st{.code = static_cast<char const*>(code)};
        here->libraries.insert(*library);
        return cudaSuccess;
    });
}
auto cudaLibraryUnload(cudaLibrary_t library) -> cudaError_t {
    return destroy("cudaLibraryUnload", [&](auto&) {
        here->libraries.erase(library);
        delete library;
    });
}
auto cudaLibraryGetKernel(cudaKernel_t* kernel, cudaLibrary_t library, char const* name) -> cudaError_t {
    return call("cudaLibraryGetKernel", [&](auto&) {
        std::string const wanted = name;
        if (library->code.find(".entry " + wanted + "(") == std::string::npos)
            return here->refuse(cudaErrorSymbolNotFound);
        auto& known = here->kernels[wanted];
        if (!known) known = std::make_unique<CUkern_st>(CUkern_st{wanted});
        *kernel = known.get();
        return cudaSuccess;
    });
}
auto cudaLaunchKernel(void const* function, dim3 grid, dim3, void** arguments, std::size_t, cudaStream_t stream)
    -> cudaError_t {
    return call("cudaLaunchKernel", [&](auto& lock) {
        if (stream->device != current_device) return here->refuse(cudaErrorInvalidResourceHandle);
        std::string const& name = static_cast<CUkern_st const*>(function)->name;
        return here->enqueue(lock, stream,
                             {.what = name,
                              .seconds = here->kernel_seconds ? here->kernel_seconds(name) : 0,
                              .effect = fake::kernel(name, grid.x, arguments)});
    });
}
