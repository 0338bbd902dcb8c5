// SPDX-License-Identifier: Apache-2.0
// Recycled memory for coroutine frames and other small short-lived blocks: after warm-up, a pipeline step asks the heap
// for nothing. Neither g++ nor clang elides the frames of a task, so this is where their cost is paid.
#pragma once

#include <array>
#include <cstddef>
#include <new>

namespace copipe {

/// A free list per size class, one pool per thread. Blocks are 64-byte aligned (g++ 12 misaligns over-aligned locals in
/// smaller frames) and may be returned on another thread than they came from; they then serve that thread.
class frame_pool {
public:
    frame_pool() = default;
    frame_pool(frame_pool const&) = delete;
    auto operator=(frame_pool const&) -> frame_pool& = delete;

    ~frame_pool() {
        for (free_block*& head : free_) {
            while (head) ::operator delete(pop(head), alignment);
        }
    }

    /// At least `bytes` bytes, aligned to 64. Throws std::bad_alloc.
    [[nodiscard]] static auto allocate(std::size_t bytes) -> void* {
        std::size_t const index = size_class(bytes);
        if (index >= classes) return ::operator new(bytes, alignment);
        free_block*& head = local().free_[index];
        return head ? pop(head) : ::operator new((index + 1) * granule, alignment);
    }

    /// Returns a block of `allocate(bytes)`.
    static void deallocate(void* block, std::size_t bytes) noexcept {
        std::size_t const index = size_class(bytes);
        if (index >= classes) return ::operator delete(block, alignment);
        free_block*& head = local().free_[index];
        head = ::new (block) free_block{head};
    }

private:
    struct free_block {
        free_block* next;
    };
    static constexpr std::size_t granule = 64;
    static constexpr std::size_t classes = 64;
    static constexpr std::align_val_t alignment{granule};

    static constexpr auto size_class(std::size_t bytes) noexcept -> std::size_t { return (bytes - 1) / granule; }

    static auto pop(free_block*& head) noexcept -> void* {
        free_block* const block = head;
        head = block->next;
        return block;
    }

    static auto local() -> frame_pool& {
        thread_local frame_pool pool;
        return pool;
    }

    std::array<free_block*, classes> free_{};
};

} // namespace copipe
