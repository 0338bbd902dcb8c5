// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"

#include "copipe/async/frame_pool.hpp"

#include <cstdint>
#include <cstring>
#include <set>
#include <thread>
#include <vector>

using copipe::frame_pool;

TEST_CASE("a block is aligned to 64 bytes and as large as asked for, for every size") {
    for (std::size_t bytes = 1; bytes <= 10'000; bytes += bytes < 4200 ? 1 : 97) {
        void* const block = frame_pool::allocate(bytes);
        REQUIRE(reinterpret_cast<std::uintptr_t>(block) % 64 == 0);
        std::memset(block, 0xab, bytes);
        frame_pool::deallocate(block, bytes);
    }
}

TEST_CASE("a returned block is handed out again to the next that fits its class") {
    void* const first = frame_pool::allocate(100);
    frame_pool::deallocate(first, 100);
    void* const again = frame_pool::allocate(128);
    CHECK(again == first);
    frame_pool::deallocate(again, 128);
}

TEST_CASE("blocks in use at the same time never overlap") {
    std::vector<std::byte*> blocks;
    for (std::size_t i = 0; i < 1000; ++i) {
        auto* const block = static_cast<std::byte*>(frame_pool::allocate(1 + i % 300));
        std::memset(block, static_cast<int>(i % 251), 1 + i % 300);
        blocks.push_back(block);
    }
    CHECK(std::set<std::byte*>(blocks.begin(), blocks.end()).size() == blocks.size());
    std::size_t overwritten = 0;
    for (std::size_t i = 0; i < blocks.size(); ++i) {
        auto const expected = static_cast<std::byte>(i % 251);
        for (std::size_t at = 0; at < 1 + i % 300; ++at) overwritten += blocks[i][at] != expected;
        frame_pool::deallocate(blocks[i], 1 + i % 300);
    }
    CHECK(overwritten == 0);
}

TEST_CASE("a block may be returned on another thread, which then uses it") {
    void* const block = frame_pool::allocate(700);
    void* again = nullptr;
    std::thread other{[&] {
        frame_pool::deallocate(block, 700);
        again = frame_pool::allocate(700);
        frame_pool::deallocate(again, 700);
    }};
    other.join();
    CHECK(again == block);
}
