// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"

#include "copipe/device/host_memory.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <set>
#include <utility>
#include <vector>

using namespace copipe;

TEST_CASE("a block of any size is large enough, aligned, counted, and wastes at most an eighth") {
    memory_ledger ledger;
    host_memory memory{ledger};
    std::size_t last = 0;
    for (std::size_t bytes = 1; bytes <= 100'000; ++bytes) {
        void* const block = memory.allocate(bytes, 64);
        std::size_t const counted = ledger.in_use;
        bool const fits = counted >= bytes && counted >= last && counted >= 256;
        bool const tight = bytes < 256 || (counted - bytes) * 8 <= bytes;
        if (!fits || !tight || reinterpret_cast<std::uintptr_t>(block) % 64 != 0) {
            CAPTURE(bytes, counted, last);
            FAIL("a block of a wrong size or alignment");
        }
        last = counted;
        memory.deallocate(block, bytes, 64);
        if (ledger.in_use != 0) FAIL("the ledger forgot something");
    }
    CHECK(ledger.peak == last);
}

TEST_CASE("the whole of a block can be written, also at the edges of the size classes") {
    memory_ledger ledger;
    host_memory memory{ledger};
    for (std::size_t power = 256; power <= 65536; power *= 2) {
        for (std::size_t step = 0; step < 8; ++step) {
            for (std::size_t bytes : {power + step * power / 8, power + step * power / 8 + 1}) {
                void* const block = memory.allocate(bytes, 64);
                std::memset(block, 1, bytes);
                memory.deallocate(block, bytes, 64);
            }
        }
    }
    SUCCEED();
}

TEST_CASE("a freed block is handed out again, to the same size class only") {
    memory_ledger ledger;
    host_memory memory{ledger};
    void* const small = memory.allocate(1000, 64);
    memory.deallocate(small, 1000, 64);
    void* const other = memory.allocate(2000, 64);
    CHECK(other != small);
    void* const same_class = memory.allocate(961, 64);
    CHECK(same_class == small);
    memory.deallocate(other, 2000, 64);
    memory.deallocate(same_class, 961, 64);
}

TEST_CASE("the ledger adds up the pools of a device and keeps the peak") {
    memory_ledger ledger;
    host_memory a{ledger};
    host_memory b{ledger};
    void* const one = a.allocate(1024, 64);
    void* const two = b.allocate(2048, 64);
    CHECK(ledger.in_use == 3072);
    a.deallocate(one, 1024, 64);
    CHECK(ledger.in_use == 2048);
    void* const three = a.allocate(512, 64);
    CHECK(ledger.in_use == 2560);
    CHECK(ledger.peak == 3072);
    b.deallocate(two, 2048, 64);
    a.deallocate(three, 512, 64);
    CHECK(ledger.in_use == 0);
    CHECK(ledger.peak == 3072);
}

TEST_CASE("blocks in use never overlap, however sizes are mixed and freed") {
    memory_ledger ledger;
    host_memory memory{ledger};
    std::vector<std::pair<std::byte*, std::size_t>> held;
    std::size_t seed = 1;
    std::size_t wrong = 0;
    auto const release = [&](std::size_t at) {
        auto const [block, bytes] = held[at];
        auto const expected = static_cast<std::byte>(bytes % 251);
        wrong += block[0] != expected || block[bytes - 1] != expected;
        memory.deallocate(block, bytes, 64);
        held[at] = held.back();
        held.pop_back();
    };
    for (int i = 0; i < 20'000; ++i) {
        seed = seed * 6364136223846793005U + 1442695040888963407U;
        std::size_t const bytes = 1 + (seed >> 33U) % 5000;
        auto* const block = static_cast<std::byte*>(memory.allocate(bytes, 64));
        std::memset(block, static_cast<int>(bytes % 251), bytes);
        held.emplace_back(block, bytes);
        if (held.size() > 50) release((seed >> 20U) % held.size());
    }
    while (!held.empty()) release(0);
    CHECK(wrong == 0);
    CHECK(ledger.in_use == 0);
}
