// SPDX-License-Identifier: Apache-2.0
// Stream-ordered memory of the host device: freed blocks are kept in size classes and handed out again without asking
// the operating system, and what is handed out is counted.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <memory_resource>
#include <new>
#include <vector>

namespace copipe {

/// Bytes handed out by all pools of one device, and their highest value.
struct memory_ledger {
    std::size_t in_use = 0;
    std::size_t peak = 0;
};

/// Blocks of at least 256 bytes, 64-byte aligned, in eight size classes per doubling (at most 12.5 % is wasted). For
/// the rank's thread only. Returns its memory when destroyed; all blocks must have come back by then.
class host_memory final : public std::pmr::memory_resource {
public:
    explicit host_memory(memory_ledger& ledger) noexcept : ledger_(&ledger) {}
    host_memory(host_memory const&) = delete;
    auto operator=(host_memory const&) -> host_memory& = delete;
    ~host_memory() override {
        for (auto& blocks : free_) {
            for (void* block : blocks) ::operator delete(block, alignment);
        }
    }

private:
    static constexpr std::align_val_t alignment{64};
    static constexpr std::size_t smallest_log2 = 8;

    struct size_class {
        std::size_t index, bytes;
    };
    static constexpr auto classify(std::size_t bytes) noexcept -> size_class {
        std::size_t const wanted = std::max(bytes, std::size_t{1} << smallest_log2);
        std::size_t const step_log2 =
            static_cast<std::size_t>(std::bit_width(wanted - 1)) - 1 - 3 + (wanted == 256 ? 1 : 0);
        std::size_t const steps = (wanted + (std::size_t{1} << step_log2) - 1) >> step_log2;
        return {.index = (step_log2 - (smallest_log2 - 3)) * 8 + steps - 8, .bytes = steps << step_log2};
    }

    auto do_allocate(std::size_t bytes, std::size_t) -> void* override {
        auto const [index, size] = classify(bytes);
        auto& blocks = free_.at(index);
        if (blocks.capacity() == blocks.size()) blocks.reserve(2 * blocks.size() + 8);
        void* block = nullptr;
        if (blocks.empty()) {
            block = ::operator new(size, alignment);
        } else {
            block = blocks.back();
            blocks.pop_back();
        }
        ledger_->peak = std::max(ledger_->peak, ledger_->in_use += size);
        return block;
    }
    void do_deallocate(void* block, std::size_t bytes, std::size_t) override {
        auto const [index, size] = classify(bytes);
        free_[index].push_back(block);
        ledger_->in_use -= size;
    }
    [[nodiscard]] auto do_is_equal(std::pmr::memory_resource const& other) const noexcept -> bool override {
        return this == &other;
    }

    memory_ledger* ledger_;
    std::array<std::vector<void*>, 8 * 48> free_{};
};

} // namespace copipe
