// SPDX-License-Identifier: Apache-2.0
// Counts what is asked of the heap, by any thread: replaces the global operator new, and aligned_alloc, which Asio
// calls. For one file of an executable.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

inline std::atomic<std::size_t> heap_allocations{0};

[[gnu::noinline]] inline auto counted_allocation(std::size_t bytes, std::size_t alignment) noexcept -> void* {
    heap_allocations.fetch_add(1, std::memory_order_relaxed);
    void* block = nullptr;
    return posix_memalign(&block, alignment, bytes) == 0 ? block : nullptr;
}
[[gnu::noinline]] inline auto counted_or_throw(std::size_t bytes, std::size_t alignment) -> void* {
    if (void* const block = counted_allocation(bytes, alignment)) return block;
    throw std::bad_alloc{};
}
[[gnu::noinline]] inline void counted_release(void* block) noexcept { std::free(block); }

extern "C" auto aligned_alloc(std::size_t alignment, std::size_t bytes) noexcept -> void* {
    return counted_allocation(bytes, alignment);
}
auto operator new(std::size_t bytes) -> void* { return counted_or_throw(bytes, alignof(std::max_align_t)); }
auto operator new(std::size_t bytes, std::align_val_t alignment) -> void* {
    return counted_or_throw(bytes, static_cast<std::size_t>(alignment));
}
auto operator new(std::size_t bytes, std::nothrow_t const&) noexcept -> void* {
    return counted_allocation(bytes, alignof(std::max_align_t));
}
void operator delete(void* block) noexcept { counted_release(block); }
void operator delete(void* block, std::size_t) noexcept { counted_release(block); }
void operator delete(void* block, std::nothrow_t const&) noexcept { counted_release(block); }
void operator delete(void* block, std::align_val_t) noexcept { counted_release(block); }
void operator delete(void* block, std::size_t, std::align_val_t) noexcept { counted_release(block); }
