// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"

#include "copipe/device/host.hpp"

#include <chrono>
#include <cstddef>
#include <memory>
#include <thread>
#include <vector>

using namespace copipe;
using namespace std::chrono_literals;

TEST_CASE("a host device models the device concept") {
    STATIC_REQUIRE(device<host_device>);
    STATIC_REQUIRE(device_stream<host_stream>);
    STATIC_REQUIRE(device_event<host_event>);
    STATIC_REQUIRE_FALSE(device<host_stream>);
    STATIC_REQUIRE_FALSE(device_event<int>);
}

TEST_CASE("memory is stream-ordered: a freed block serves the next chunk, whose work runs after the earlier") {
    host_device dev;
    host_stream& s = dev.open_stream("s");
    auto& memory = *s.memory();
    int seen = 0;
    int* const first = static_cast<int*>(memory.allocate(sizeof(int)));
    s.launch([first] {
        std::this_thread::sleep_for(5ms);
        *first = 1;
    });
    s.launch([first, &seen] { seen = *first; });
    memory.deallocate(first, sizeof(int)); // before any of it has run
    int* const second = static_cast<int*>(memory.allocate(sizeof(int)));
    CHECK(second == first);
    s.launch([second] { *second = 2; });
    s.synchronize();
    CHECK(seen == 1);
    CHECK(*second == 2);
    memory.deallocate(second, sizeof(int));
    CHECK(dev.memory_in_use() == 0);
}

TEST_CASE("a device adds up the memory of its streams, and its peak can be reset to what is in use") {
    host_device dev;
    auto& a = *dev.open_stream("a").memory();
    auto& b = *dev.open_stream("b").memory();
    void* const one = a.allocate(1024);
    void* const two = b.allocate(4096);
    CHECK(dev.memory_in_use() == 5120);
    b.deallocate(two, 4096);
    CHECK(dev.memory_in_use() == 1024);
    CHECK(dev.peak_memory() == 5120);
    dev.reset_peak_memory();
    CHECK(dev.peak_memory() == 1024);
    a.deallocate(one, 1024);
    CHECK(dev.memory_in_use() == 0);
}

TEST_CASE("a device that was slowed down takes as many times as long for its work, with the same results") {
    for (auto const execution : {host_execution::worker_thread, host_execution::inline_}) {
        host_device dev{execution};
        auto& stream = dev.open_stream("s");
        auto const seconds_of_work = [&] {
            auto const start = stream.record(timing::on);
            stream.launch([] { std::this_thread::sleep_for(4ms); });
            auto const end = stream.record(timing::on);
            stream.synchronize();
            return end.time() - start.time();
        };
        CHECK(seconds_of_work() >= 4e-3);
        dev.slow_down(5);
        CHECK(seconds_of_work() >= 20e-3);
        dev.slow_down(1);
        bool fast_again = false; // the machine may have other things to do
        for (int i = 0; i < 200 && !fast_again; ++i) fast_again = seconds_of_work() < 20e-3;
        CHECK(fast_again);
        dev.slow_down(2);
        stream.launch([] { throw std::runtime_error("as before"); });
        CHECK_THROWS_AS(stream.synchronize(), std::runtime_error);
    }
}

TEST_CASE("the clocks of two devices of one process are comparable") {
    host_device a, b;
    double const first = a.now();
    double const second = b.now();
    double const third = a.now();
    CHECK(first <= second);
    CHECK(second <= third);
}

TEST_CASE("a device can be destroyed while its streams still have work that waits for each other") {
    for (int round = 0; round < 30; ++round) {
        auto result = std::make_unique<int>(0);
        {
            host_device dev;
            std::vector<host_stream*> streams;
            for (int i = 0; i < 3; ++i) streams.push_back(&dev.open_stream("s"));
            host_stream& first = *streams[static_cast<std::size_t>(round) % 3];
            host_stream& second = *streams[static_cast<std::size_t>(round + 1 + round / 3 % 2) % 3];
            int* const value = static_cast<int*>(first.memory()->allocate(sizeof(int)));
            first.launch([value] { *value = 1; });
            second.launch([] { std::this_thread::sleep_for(1ms); });
            second.wait(first.record());
            second.launch([value, to = result.get()] { *to = ++*value; }); // on memory of the other stream
            first.memory()->deallocate(value, sizeof(int));
        }
        REQUIRE(*result == 2);
    }
}
