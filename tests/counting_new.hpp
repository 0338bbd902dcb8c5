// SPDX-License-Identifier: Apache-2.0
// Counts what is asked of the heap, by any thread: replaces the global operator new. For one file of an executable.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

inline std::atomic<std::size_t> heap_allocations{0};

[[gnu::noinline]] inline auto counted_allocation(std::size_t bytes, std::size_t alignment) -> void* {
    heap_allocations.fetch_add(1, std::memory_order_relaxed);
    void* const block = std::aligned_alloc(alignment, (bytes + alignment) / alignment * alignment);
    if (!block) throw std::bad_alloc{};
    return block;
}
[[gnu::noinline]] inline void counted_release(void* block) noexcept { std::free(block); }

auto operator new(std::size_t bytes) -> void* { return counted_allocation(bytes, alignof(std::max_align_t)); }
auto operator new(std::size_t bytes, std::align_val_t alignment) -> void* {
    return counted_allocation(bytes, static_cast<std::size_t>(alignment));
}
auto operator new(std::size_t bytes, std::nothrow_t const&) noexcept -> void* {
    heap_allocations.fetch_add(1, std::memory_order_relaxed);
    return std::malloc(bytes);
}
void operator delete(void* block) noexcept { counted_release(block); }
void operator delete(void* block, std::size_t) noexcept { counted_release(block); }
void operator delete(void* block, std::nothrow_t const&) noexcept { counted_release(block); }
void operator delete(void* block, std::align_val_t) noexcept { counted_release(block); }
void operator delete(void* block, std::size_t, std::align_val_t) noexcept { counted_release(block); }
