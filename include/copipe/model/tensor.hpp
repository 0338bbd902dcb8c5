// SPDX-License-Identifier: Apache-2.0
// A dense row-major array in a device's stream-ordered memory, shared by reference within one rank.
#pragma once

#include "copipe/async/frame_pool.hpp"

#include <algorithm>
#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory_resource>
#include <string>
#include <string_view>
#include <utility>

namespace copipe {

/// Element types a tensor can hold; the names are those of safetensors.
enum class dtype : std::uint8_t { f32, bf16, i32, u8 };

[[nodiscard]] constexpr auto bytes_of(dtype type) noexcept -> std::size_t {
    return type == dtype::u8 ? 1 : type == dtype::bf16 ? 2 : 4;
}
[[nodiscard]] constexpr auto name_of(dtype type) noexcept -> std::string_view {
    constexpr std::array<std::string_view, 4> names{"F32", "BF16", "I32", "U8"};
    return names[static_cast<std::size_t>(type)];
}

/// The sizes of a tensor's dimensions, outermost first; at most five.
class extents {
public:
    constexpr extents() = default;
    constexpr extents(std::initializer_list<std::int64_t> sizes) : extents(sizes.begin(), sizes.size()) {}
    constexpr extents(std::int64_t const* sizes, std::size_t rank) : rank_(rank) {
        assert(rank <= sizes_.size());
        std::copy_n(sizes, rank, sizes_.begin());
    }
    [[nodiscard]] constexpr auto rank() const noexcept -> std::size_t { return rank_; }
    [[nodiscard]] constexpr auto operator[](std::size_t dimension) const -> std::int64_t { return sizes_[dimension]; }
    [[nodiscard]] constexpr auto begin() const noexcept { return sizes_.begin(); }
    [[nodiscard]] constexpr auto end() const noexcept { return sizes_.begin() + rank_; }
    /// The number of elements: 1 for a scalar.
    [[nodiscard]] constexpr auto count() const noexcept -> std::int64_t {
        std::int64_t product = 1;
        for (std::int64_t size : *this) product *= size;
        return product;
    }
    [[nodiscard]] constexpr auto operator==(extents const&) const -> bool = default;

private:
    std::array<std::int64_t, 5> sizes_{};
    std::size_t rank_ = 0;
};

/// "[4, 64, 128]".
[[nodiscard]] inline auto to_string(extents const& sizes) -> std::string {
    std::string text = "[";
    for (std::int64_t size : sizes) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
    return text + "]";
}

/// A reference to a block of device memory with a shape. Copies share the block; the last one returns it to the memory
/// it came from, ordered on that memory's stream (see device_stream). For the thread of the rank it belongs to:
/// launched work takes `data<T>()`, never the tensor. The contents of a new tensor are undefined.
class tensor {
public:
    tensor() = default;
    /// Throws std::bad_alloc.
    tensor(std::pmr::memory_resource& memory, extents const& sizes, dtype type = dtype::f32)
        : block_(new (frame_pool::allocate(sizeof(block))) block{}), extents_(sizes), type_(type) {
        block_->memory = &memory;
        block_->bytes = std::max<std::size_t>(bytes(), 1);
        try {
            block_->data = memory.allocate(block_->bytes, 64);
        } catch (...) {
            frame_pool::deallocate(block_, sizeof(block));
            throw;
        }
    }
    tensor(tensor const& other) noexcept : block_(other.block_), extents_(other.extents_), type_(other.type_) {
        if (block_) ++block_->references;
    }
    tensor(tensor&& other) noexcept
        : block_(std::exchange(other.block_, nullptr)), extents_(other.extents_), type_(other.type_) {}
    auto operator=(tensor const& other) noexcept -> tensor& { return *this = tensor{other}; }
    auto operator=(tensor&& other) noexcept -> tensor& {
        block* const taken = std::exchange(other.block_, nullptr);
        release();
        block_ = taken;
        extents_ = other.extents_;
        type_ = other.type_;
        return *this;
    }
    ~tensor() { release(); }

    [[nodiscard]] explicit operator bool() const noexcept { return block_ != nullptr; }
    [[nodiscard]] auto sizes() const noexcept -> extents const& { return extents_; }
    [[nodiscard]] auto size(std::size_t dimension) const -> std::int64_t { return extents_[dimension]; }
    [[nodiscard]] auto type() const noexcept -> dtype { return type_; }
    [[nodiscard]] auto count() const noexcept -> std::size_t { return static_cast<std::size_t>(extents_.count()); }
    [[nodiscard]] auto bytes() const noexcept -> std::size_t { return block_ ? count() * bytes_of(type_) : 0; }

    /// The device address; on a host device it can be read and written by launched work, or after a synchronize.
    template <class T = float>
    [[nodiscard]] auto data() const noexcept -> T* {
        return block_ ? static_cast<T*>(block_->data) : nullptr;
    }
    /// The same block seen with other extents of the same count.
    [[nodiscard]] auto reshaped(extents const& sizes) const -> tensor {
        assert(sizes.count() == extents_.count());
        tensor view = *this;
        view.extents_ = sizes;
        return view;
    }

private:
    struct block {
        void* data = nullptr;
        std::size_t bytes = 0;
        std::pmr::memory_resource* memory = nullptr;
        std::size_t references = 1;
    };

    void release() const noexcept {
        if (!block_ || --block_->references != 0) return;
        block_->memory->deallocate(block_->data, block_->bytes, 64);
        frame_pool::deallocate(block_, sizeof(block));
    }

    block* block_ = nullptr;
    extents extents_{};
    dtype type_ = dtype::f32;
};

} // namespace copipe
