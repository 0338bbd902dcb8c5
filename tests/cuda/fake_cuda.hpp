// SPDX-License-Identifier: Apache-2.0
// The CUDA runtime without a GPU: the functions that copipe calls, with CUDA's signatures, linked in place of the real
// ones. Streams are FIFOs, events snapshots, memory is the host's; time is virtual, so that makespans are exact and
// "nothing can run and work is left" is found at once.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace fake {

/// Who lets the GPUs work: a thread, at once and in a random order; or the test, by `advance`, and any call that waits.
enum class drive : bool { by_thread, by_test };

/// Something that a stream has to do.
struct operation {
    std::string what;
    double seconds = 0;
    std::function<void()> effect{};           ///< done at its end
    std::function<bool()> ready{};            ///< whether it can start once it is the oldest of its stream; if set
    std::function<cudaStream_t()> waits_on{}; ///< whose work must come first while it cannot; to tell deadlocks
    bool always = false;                      ///< done even after the GPU has failed (memory is freed)
};

/// The machine that the calls of the CUDA runtime go to while this object lives; one at a time. Before and after there
/// is no driver: every call returns cudaErrorInsufficientDriver.
class machine {
public:
    explicit machine(drive how, int gpus = 1, unsigned seed = 1);
    machine(machine const&) = delete;
    auto operator=(machine const&) -> machine& = delete;
    ~machine();

    /// Virtual seconds since the beginning.
    [[nodiscard]] auto now() const -> double;
    /// Lets everything end that ends at this moment, or, if nothing does, at the next at which something does. False if
    /// nothing can run: everything is done, or `stuck()` says who waits for whom.
    auto advance() -> bool;
    /// Empty when no stream has work left; else each stream's oldest operation, and the cycle if there is one.
    [[nodiscard]] auto stuck() const -> std::string;
    /// How long each copy of so many bytes takes; 0 seconds if never set.
    void copies_take(std::function<double(std::size_t bytes)> seconds);
    /// The same of kernels that are launched by cudaLaunchKernel.
    void kernels_take(std::function<double(std::string const& kernel)> seconds);
    /// From now on everything on this GPU takes so many times as long.
    void slow_down(int gpu, double factor);

    /// Call number `number` (from 1, since the last call of this function or the beginning) returns `code`; with
    /// `sticky` the GPU is lost then, and every later call returns it, too.
    void fail_call(std::uint64_t number, cudaError_t code, bool sticky);
    /// The name of the call that failed so; empty if none did.
    [[nodiscard]] auto failed_call() const -> std::string;
    /// The GPU is lost when it comes to kernel number `number` from now on (from 1).
    void fail_kernel(std::uint64_t number);
    /// Calls since the beginning or the last `fail_call`; those that only look at errors are not counted.
    [[nodiscard]] auto calls() const -> std::uint64_t;
    /// The same, of one function.
    [[nodiscard]] auto calls(std::string const& function) const -> std::uint64_t;
    /// How often a `.cu` file has launched a kernel of that name.
    [[nodiscard]] auto launches(std::string const& kernel) const -> std::uint64_t;
    /// How often a call made the host wait: synchronizations, copies to ordinary memory, full launch queues.
    [[nodiscard]] auto host_waits() const -> std::uint64_t;
    /// What has been made and not been destroyed; empty if nothing.
    [[nodiscard]] auto leaks() const -> std::string;
};

/// What a `.cu` file does: launches a kernel. A refusal is left for cudaGetLastError.
void launch(cudaStream_t stream, std::string const& what, double seconds, std::function<void()> effect);

/// For other fakes (NCCL's): enqueues anything; blocks while the stream has 1024 operations. Returns its number.
auto enqueue(cudaStream_t stream, operation what) -> std::uint64_t;
/// Whether an operation is the oldest of its stream, or done. Only from `ready` and `effect`: they run inside the fake.
[[nodiscard]] auto reached(cudaStream_t stream, std::uint64_t number) -> bool;
/// Loses the GPU, as a kernel's fault does. Only from `effect`.
void lose_gpu(cudaError_t code);

} // namespace fake
