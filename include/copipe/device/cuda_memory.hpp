// SPDX-License-Identifier: Apache-2.0
// Memory of a CUDA device: a stream-ordered pool that keeps what it has, and pinned blocks through which small arrays
// of ordinary host memory are copied without the host waiting.
#pragma once

#include "copipe/device/cuda_error.hpp"
#include "copipe/device/host_memory.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <memory_resource>
#include <vector>

namespace copipe {

/// A CUDA memory pool of one device, readable by the GPUs that can reach it. It returns nothing to the driver before
/// its end, and never makes one stream wait for another in order to use a block again.
class cuda_pool {
public:
    explicit cuda_pool(int device) : device_(device) {
        cudaMemPoolProps properties{};
        properties.allocType = cudaMemAllocationTypePinned;
        properties.location.type = cudaMemLocationTypeDevice;
        properties.location.id = device;
        require_cuda(cudaMemPoolCreate(&handle_, &properties), "cudaMemPoolCreate", place());
        try {
            configure();
        } catch (...) {
            cudaMemPoolDestroy(handle_);
            throw;
        }
    }
    cuda_pool(cuda_pool const&) = delete;
    auto operator=(cuda_pool const&) -> cuda_pool& = delete;
    ~cuda_pool() { cudaMemPoolDestroy(handle_); } // a failure now has been seen before

    [[nodiscard]] auto handle() const noexcept -> cudaMemPool_t { return handle_; }

private:
    [[nodiscard]] auto place() const noexcept -> cuda_place { return {device_, "memory pool"}; }
    void configure() {
        std::uint64_t keep = std::numeric_limits<std::uint64_t>::max();
        require_cuda(cudaMemPoolSetAttribute(handle_, cudaMemPoolAttrReleaseThreshold, &keep),
                     "cudaMemPoolSetAttribute", place());
        int hidden_waits = 0;
        require_cuda(cudaMemPoolSetAttribute(handle_, cudaMemPoolReuseAllowInternalDependencies, &hidden_waits),
                     "cudaMemPoolSetAttribute", place());
        int gpus = 0;
        require_cuda(cudaGetDeviceCount(&gpus), "cudaGetDeviceCount", place());
        for (int peer = 0; peer < gpus; ++peer) {
            int reachable = 0;
            if (peer == device_) continue;
            require_cuda(cudaDeviceCanAccessPeer(&reachable, peer, device_), "cudaDeviceCanAccessPeer", place());
            if (reachable == 0) continue;
            cudaMemAccessDesc access{};
            access.location.type = cudaMemLocationTypeDevice;
            access.location.id = peer;
            access.flags = cudaMemAccessFlagsProtReadWrite;
            require_cuda(cudaMemPoolSetAccess(handle_, &access, 1), "cudaMemPoolSetAccess", place());
        }
    }

    int device_;
    cudaMemPool_t handle_ = nullptr;
};

/// The memory of one stream, out of its device's pool. A freed block may be handed out again at once, to this stream;
/// to another one when the work before its freeing is over. Throws cuda_error.
class cuda_memory final : public std::pmr::memory_resource {
public:
    cuda_memory(cuda_pool const& pool, cudaStream_t stream, cuda_place const& place, memory_ledger& ledger) noexcept
        : pool_(&pool), stream_(stream), place_(place), ledger_(&ledger) {}

private:
    auto do_allocate(std::size_t bytes, std::size_t) -> void* override {
        void* block = nullptr;
        require_cuda(cudaMallocFromPoolAsync(&block, bytes, pool_->handle(), stream_), "cudaMallocFromPoolAsync",
                     place_);
        ledger_->peak = std::max(ledger_->peak, ledger_->in_use += bytes);
        return block;
    }
    /// Destructors free: a failure, which can only be that of earlier work, is left to the next call that may throw.
    void do_deallocate(void* block, std::size_t bytes, std::size_t) override {
        cudaFreeAsync(block, stream_);
        ledger_->in_use -= bytes;
    }
    [[nodiscard]] auto do_is_equal(std::pmr::memory_resource const& other) const noexcept -> bool override {
        return this == &other;
    }

    cuda_pool const* pool_;
    cudaStream_t stream_;
    cuda_place place_;
    memory_ledger* ledger_;
};

/// A block that goes back to where it is from.
struct give_back {
    std::pmr::memory_resource* from;
    std::size_t bytes;
    void operator()(std::byte* block) const { from->deallocate(block, bytes); }
};
using cuda_block = std::unique_ptr<std::byte, give_back>;

[[nodiscard]] inline auto take_block(std::pmr::memory_resource& from, std::size_t bytes) -> cuda_block {
    return {static_cast<std::byte*>(from.allocate(bytes)), give_back{&from, bytes}};
}

/// Pinned host memory in blocks of a power of two, up to `largest` bytes each and `most` bytes in use at a time.
class cuda_staging {
public:
    static constexpr std::size_t largest = std::size_t{1} << 20U;
    static constexpr std::size_t most = std::size_t{1} << 25U;

    explicit cuda_staging(int device) noexcept : device_(device) {}
    cuda_staging(cuda_staging const&) = delete;
    auto operator=(cuda_staging const&) -> cuda_staging& = delete;
    ~cuda_staging() {
        for (void* slab : slabs_) cudaFreeHost(slab); // a failure now has been seen before
    }

    [[nodiscard]] auto fits(std::size_t bytes) const noexcept -> bool {
        return bytes <= largest && in_use_ + std::bit_ceil(bytes) <= most;
    }
    [[nodiscard]] auto take(std::size_t bytes) -> void* {
        auto& free = free_[class_of(bytes)];
        if (free.empty()) grow(class_of(bytes));
        void* const block = free.back();
        free.pop_back();
        in_use_ += std::bit_ceil(bytes);
        return block;
    }
    void give_back(void* block, std::size_t bytes) noexcept {
        free_[class_of(bytes)].push_back(block); // has room: see grow
        in_use_ -= std::bit_ceil(bytes);
    }

private:
    static constexpr std::size_t smallest = 256;
    [[nodiscard]] static auto class_of(std::size_t bytes) noexcept -> std::size_t {
        return static_cast<std::size_t>(std::bit_width((std::max(bytes, smallest) - 1) / smallest));
    }
    void grow(std::size_t of) {
        std::size_t const block = smallest << of;
        std::size_t const slab = std::max(block, std::size_t{1} << 16U);
        void* memory = nullptr;
        slabs_.reserve(slabs_.size() + 1);
        counts_[of] += slab / block;
        free_[of].reserve(counts_[of]);
        require_cuda(cudaMallocHost(&memory, slab), "cudaMallocHost", {device_, "staging memory"});
        slabs_.push_back(memory);
        for (std::size_t at = 0; at < slab; at += block) free_[of].push_back(static_cast<std::byte*>(memory) + at);
    }

    int device_;
    std::size_t in_use_ = 0;
    std::vector<void*> slabs_{};
    std::array<std::vector<void*>, 13> free_{};
    std::array<std::size_t, 13> counts_{};
};

} // namespace copipe
