// SPDX-License-Identifier: Apache-2.0
// What cuda_device promises as a device, on the fake CUDA runtime.
#include "catch.hpp"
#include "cuda/fake_cuda.hpp"
#include "says.hpp"

#include "copipe/async/scope.hpp"
#include "copipe/device/cuda.hpp"

#include <array>
#include <cstddef>
#include <string>
#include <thread>
#include <vector>

using namespace copipe;
using fake::drive;

namespace {

cuda_options const polled{.gpu = 0, .polling = cuda_polling::by_program, .make_stream = {}};

/// Enqueues a kernel.
template <class Effect>
void kernel(cuda_stream& s, double seconds, Effect effect) {
    s.launch("kernel", [&](cudaStream_t on) { fake::launch(on, "kernel", seconds, effect); });
}

void finish(fake::machine& gpus) {
    while (gpus.advance()) {}
}

} // namespace

TEST_CASE("a CUDA device models the device concept") {
    STATIC_REQUIRE(device<cuda_device>);
    STATIC_REQUIRE(device_stream<cuda_stream>);
    STATIC_REQUIRE(device_event<cuda_event>);
}

TEST_CASE("without a driver there is no GPU, and asking for one is an error of one sentence that says why") {
    cuda_gpus const none = cuda_gpus::here();
    CHECK(none.count == 0);
    CHECK_THAT(none.why, says("driver"));
    CHECK_THROWS_WITH(cuda_device{}, says("there is no GPU 0") && says("driver"));
}

TEST_CASE("a GPU that is not there is an error that says which there are") {
    fake::machine const gpus{drive::by_test, 2};
    CHECK(cuda_gpus::here().count == 2);
    CHECK_THROWS_WITH(cuda_device{cuda_options{.gpu = 2}}, says("there is no GPU 2") && says("numbered 0 to 1"));
    CHECK_THROWS_AS(cuda_device{cuda_options{.gpu = -1}}, no_such_gpu);
    CHECK(gpus.leaks() == "");
}

TEST_CASE("what a CUDA device makes it destroys, whatever has been done with it") {
    auto const how = GENERATE(drive::by_test, drive::by_thread);
    fake::machine gpus{how, 2};
    {
        cuda_device dev{cuda_options{.gpu = 1}};
        cuda_stream& a = dev.open_stream("a");
        cuda_stream& b = dev.open_link(3);
        float* const x = static_cast<float*>(a.memory()->allocate(64));
        std::array<float, 16> host{};
        a.copy(x, host.data(), sizeof host);
        a.add(x, x, 16);
        auto const e = a.record(timing::on);
        b.wait(e);
        b.copy(host.data(), x, sizeof host);
        a.wait(b.record());
        a.memory()->deallocate(x, 64);
    }
    CHECK(gpus.leaks() == "");
}

TEST_CASE("enqueuing on a CUDA stream does not wait for the work, up to the 1024 operations of its launch queue") {
    fake::machine gpus{drive::by_test};
    cuda_device dev{polled};
    cuda_stream& s = dev.open_stream("s");
    int ran = 0;
    auto const waited = gpus.host_waits();
    for (int i = 0; i < 1024; ++i) kernel(s, 1, [&] { ++ran; });
    CHECK(ran == 0);
    CHECK(gpus.host_waits() == waited);
    kernel(s, 1, [&] { ++ran; });
    CHECK(gpus.host_waits() == waited + 1);
    CHECK(ran == 1);
    s.synchronize();
    CHECK(ran == 1025);
    CHECK(gpus.now() == 1025);
}

TEST_CASE("a CUDA event is a snapshot: it is done when the work before it is, whatever is enqueued later") {
    fake::machine gpus{drive::by_test};
    cuda_device dev{polled};
    cuda_stream& s = dev.open_stream("s");
    kernel(s, 1, [] {});
    auto const between = s.record();
    kernel(s, 1, [] {});
    auto after = s.record();
    CHECK_FALSE(between.done());
    while (!between.done()) REQUIRE(gpus.advance());
    CHECK(gpus.now() == 1);
    CHECK_FALSE(after.done());
    cuda_event const moved{std::move(after)};
    s.synchronize();
    CHECK(moved.done());
    cuda_event const none;
    CHECK(none.done());
    none.check();
    CHECK(none.time() == 0);
}

TEST_CASE("work after a wait for another CUDA stream's event runs after the work before the event, the host goes on") {
    fake::machine gpus{drive::by_test, 2};
    cuda_device dev{polled};
    cuda_device other{cuda_options{.gpu = 1, .polling = cuda_polling::by_program}};
    cuda_stream& a = dev.open_stream("a");
    cuda_stream& b = other.open_stream("b");
    auto const waited = gpus.host_waits();
    std::vector<int> order;
    kernel(a, 5, [&] { order.push_back(1); });
    auto const written = a.record();
    kernel(a, 5, [&] { order.push_back(3); });
    b.wait(written);
    kernel(b, 1, [&] { order.push_back(2); });
    a.wait(a.record()); // its own, and none: nothing to wait for
    a.wait(cuda_event{});
    CHECK(gpus.host_waits() == waited);
    finish(gpus);
    CHECK(order == std::vector{1, 2, 3});
    CHECK(gpus.now() == 10);
}

TEST_CASE("times of timed CUDA events are those of the GPU, on the host's clock, over hours") {
    fake::machine gpus{drive::by_test};
    cuda_device dev{polled};
    double const begin = dev.now();
    cuda_stream& s = dev.open_stream("s");
    auto const first = s.record(timing::on);
    double last = 0, expected = 0;
    for (int i = 0; i < 200; ++i) {
        double const seconds = i % 2 == 0 ? 1e-3 : 60;
        kernel(s, seconds, [] {});
        expected += seconds;
        auto const e = s.record(timing::on);
        s.synchronize();
        REQUIRE(e.time() > last);
        last = e.time();
        REQUIRE(e.time() - first.time() == Approx(expected).epsilon(1e-7));
    }
    CHECK(first.time() >= begin);
    CHECK(s.record().time() == 0);
}

TEST_CASE("events on a CUDA device are used again, and timing is paid for only where it is asked for") {
    fake::machine gpus{drive::by_test};
    cuda_device dev{polled};
    cuda_stream& s = dev.open_stream("s");
    auto const made = gpus.calls("cudaEventCreateWithFlags");
    for (int i = 0; i < 100; ++i) {
        auto const plain = s.record();
        auto const timed = s.record(timing::on);
        s.synchronize();
    }
    CHECK(gpus.calls("cudaEventCreateWithFlags") == made + 2);
    CHECK(gpus.calls("cudaEventElapsedTime") == 0);
}

TEST_CASE("copies between a GPU and ordinary host memory are staged, so that the host does not wait for them") {
    fake::machine gpus{drive::by_test};
    cuda_device dev{polled};
    cuda_stream& s = dev.open_stream("s");
    auto* const on_gpu = static_cast<float*>(s.memory()->allocate(12));
    std::vector<float> from{1, 2, 3}, to(3), later(3);
    auto const waited = gpus.host_waits();
    s.copy(on_gpu, from.data(), 12);
    from = {7, 7, 7}; // read by the call
    s.copy(to.data(), on_gpu, 12);
    auto const copied = s.record();
    s.add(on_gpu, on_gpu, 3);
    s.copy(later.data(), on_gpu, 12);
    CHECK(gpus.host_waits() == waited);
    finish(gpus);
    CHECK(to == std::vector<float>(3));
    REQUIRE(copied.done());
    copied.check();
    CHECK(to == std::vector<float>{1, 2, 3});
    CHECK(later == std::vector<float>(3));
    s.synchronize();
    CHECK(later == std::vector<float>{2, 4, 6});
    s.zero(on_gpu, 8);
    s.copy(to.data(), on_gpu, 12);
    s.synchronize();
    CHECK(to == std::vector<float>{0, 0, 6});
    s.memory()->deallocate(on_gpu, 12);
}

TEST_CASE("a copy of any size between a GPU and ordinary host memory arrives, also when many are under way") {
    fake::machine gpus{drive::by_test};
    cuda_device dev{polled};
    cuda_stream& s = dev.open_stream("s");
    for (std::size_t const count : {1U, 63U, 64U, 65U, 70'000U, 262'144U, 262'145U, 1'000'000U}) {
        auto* const on_gpu = static_cast<float*>(s.memory()->allocate(count * 4));
        std::vector<std::vector<float>> to(60, std::vector<float>(count));
        std::vector<float> from(count);
        for (std::size_t i = 0; i < to.size(); ++i) {
            from.front() = static_cast<float>(i);
            from.back() = static_cast<float>(i + count);
            s.copy(on_gpu, from.data(), count * 4);
            s.copy(to[i].data(), on_gpu, count * 4);
        }
        s.synchronize();
        s.memory()->deallocate(on_gpu, count * 4);
        for (std::size_t i = 0; i < to.size(); ++i) REQUIRE(to[i].back() == static_cast<float>(i + count));
    }
}

TEST_CASE("a copy between two GPUs goes from one to the other") {
    fake::machine gpus{drive::by_test, 2};
    cuda_device dev{polled};
    cuda_device other{cuda_options{.gpu = 1, .polling = cuda_polling::by_program}};
    cuda_stream& a = dev.open_stream("a");
    cuda_stream& link = other.open_link(0);
    float const value = 42;
    float seen = 0;
    void* const x = a.memory()->allocate(4);
    void* const y = link.memory()->allocate(4);
    a.copy(x, &value, 4);
    link.wait(a.record());
    link.copy(y, x, 4);
    link.copy(&seen, y, 4);
    link.synchronize();
    CHECK(seen == 42);
    CHECK(gpus.calls("cudaMemcpyPeerAsync") == 1);
    a.memory()->deallocate(x, 4);
    link.memory()->deallocate(y, 4);
}

TEST_CASE("memory on a CUDA device is stream-ordered, counted, and its peak can be reset to what is in use") {
    fake::machine gpus{drive::by_test};
    {
        cuda_device dev{polled};
        cuda_stream& s = dev.open_stream("s");
        auto* const x = static_cast<float*>(s.memory()->allocate(1024));
        float seen = 0;
        kernel(s, 1, [x] { *x = 1; });
        kernel(s, 1, [x, &seen] { seen = *x; });
        s.memory()->deallocate(x, 1024); // before any of it has run
        void* const y = dev.open_stream("t").memory()->allocate(4096);
        CHECK(dev.memory_in_use() == 4096);
        CHECK(dev.peak_memory() == 4096);
        dev.reset_peak_memory();
        finish(gpus);
        CHECK(seen == 1);
        dev.open_stream("t").memory()->deallocate(y, 4096);
        CHECK(dev.memory_in_use() == 0);
        CHECK(dev.peak_memory() == 4096);
    }
    CHECK(gpus.leaks() == "");
}

TEST_CASE("a CUDA call that fails throws what failed, on which GPU and stream, and the device works on") {
    fake::machine gpus{drive::by_test};
    cuda_device dev{polled};
    cuda_stream& s = dev.open_stream("compute");
    gpus.fail_call(1, cudaErrorMemoryAllocation, false);
    CHECK_THROWS_WITH(s.memory()->allocate(64), says("GPU 0, stream compute: cudaMallocFromPoolAsync: out of memory"));
    CHECK(dev.memory_in_use() == 0);
    gpus.fail_call(2, cudaErrorIllegalAddress, false);
    try {
        kernel(s, 1, [] {});
        FAIL("the launch was refused");
    } catch (cuda_error const& e) {
        CHECK(e.code == cudaErrorIllegalAddress);
        CHECK(e.call == "kernel");
        CHECK(e.place == "stream compute");
        CHECK(e.device == 0);
    }
    int ran = 0;
    kernel(s, 1, [&] { ++ran; });
    s.synchronize();
    CHECK(ran == 1);
}

TEST_CASE("a kernel that fails shows at the check of an event after it, and at synchronize, not before") {
    fake::machine gpus{drive::by_test};
    cuda_device dev{polled};
    cuda_stream& s = dev.open_stream("compute");
    kernel(s, 1, [] {});
    auto const before = s.record();
    kernel(s, 1, [] {});
    auto const after = s.record();
    gpus.fail_kernel(2);
    while (!before.done()) REQUIRE(gpus.advance());
    finish(gpus);
    before.check();
    CHECK(after.done());
    CHECK(after.time() == 0);
    CHECK_THROWS_WITH(after.check(), says("stream compute") && says("illegal memory access"));
    CHECK_THROWS_AS(s.synchronize(), cuda_error);
    CHECK_THROWS_AS(s.record(), cuda_error);
}

TEST_CASE("many coroutines await CUDA events and go on, on their executor's thread, with a poller's thread or none") {
    auto const how = GENERATE(cuda_polling::own_thread, cuda_polling::by_program);
    fake::machine gpus{drive::by_thread};
    cuda_device dev{cuda_options{.polling = how}};
    std::array<cuda_stream*, 2> const streams{&dev.open_stream("a"), &dev.open_stream("b")};
    struct polling_executor : executor {
        cuda_device* dev = nullptr;
        void idle() override {
            if (!dev) return executor::idle();
            static_cast<void>(dev->poller().poll());
            take_woken();
        }
    } exec;
    if (how == cuda_polling::by_program) exec.dev = &dev;
    std::vector<cuda_event> events;
    for (int i = 0; i < 40; ++i) {
        kernel(*streams[static_cast<std::size_t>(i) % 2], 1e-3, [] {});
        events.push_back(streams[static_cast<std::size_t>(i) % 2]->record());
    }
    int resumed = 0;
    auto const self = std::this_thread::get_id();
    auto const follow = [&](cuda_event const& e) -> task<> {
        co_await e.completion();
        CHECK(e.done());
        CHECK(std::this_thread::get_id() == self);
        ++resumed;
    };
    auto const body = [&]() -> task<> {
        scope children{co_await this_environment{}};
        for (auto e = events.rbegin(); e != events.rend(); ++e)
            for (int i = 0; i < 3; ++i) children.spawn(follow(*e));
        co_await children.join();
    };
    run(exec, body());
    CHECK(resumed == 120);
}

TEST_CASE("the poller asks for the oldest event of each stream only") {
    fake::machine gpus{drive::by_test};
    cuda_device dev{polled};
    cuda_stream& s = dev.open_stream("s");
    struct : executor {
        void idle() override { take_woken(); }
    } exec;
    environment const env{.exec = &exec};
    std::array<cuda_event, 50> events{};
    std::array<waiter, 50> waiters{};
    for (std::size_t i = 0; i < events.size(); ++i) {
        kernel(s, 1, [] {});
        events[i] = s.record();
        waiters[i] = {.handle = std::noop_coroutine(), .env = &env};
        REQUIRE(events[i].on_completion(waiters[i]));
    }
    auto const asked = gpus.calls("cudaEventQuery");
    for (int i = 0; i < 20; ++i) CHECK(dev.poller().poll() == 0);
    CHECK(gpus.calls("cudaEventQuery") == asked + 20);
    finish(gpus);
    std::size_t woken = 0;
    while (woken < 50) woken += dev.poller().poll();
    CHECK(woken == 50);
    exec.run_until([&] { return exec.resumed() == 50; });
}

TEST_CASE("when the GPU is lost, everyone who waits for it is woken") {
    fake::machine gpus{drive::by_thread};
    cuda_device dev;
    cuda_stream& s = dev.open_stream("s");
    gpus.fail_kernel(3);
    executor exec;
    int failed = 0;
    auto const follow = [&]() -> task<> {
        kernel(s, 1e-3, [] {});
        auto const e = s.record();
        co_await e.completion();
        e.check();
    };
    auto const body = [&]() -> task<> {
        for (int i = 0; i < 5; ++i) {
            try {
                co_await follow();
            } catch (cuda_error const&) {
                ++failed;
            }
        }
    };
    run(exec, body());
    CHECK(failed == 3);
}

TEST_CASE("the fake tells a deadlock with its cycle, and that a machine without work is not stuck") {
    fake::machine gpus{drive::by_test};
    cuda_device dev{polled};
    cudaStream_t const a = dev.open_stream("a").handle(), b = dev.open_stream("b").handle();
    CHECK(gpus.stuck() == "");
    auto const never = [] { return false; };
    static_cast<void>(fake::enqueue(a, {.what = "send", .ready = never, .waits_on = [b] { return b; }}));
    static_cast<void>(fake::enqueue(b, {.what = "receive", .ready = never, .waits_on = [a] { return a; }}));
    CHECK_FALSE(gpus.advance());
    CHECK_THAT(gpus.stuck(), says("the cycle: stream 1 ('send') waits for stream 2 ('receive') waits for stream 1"));
}
