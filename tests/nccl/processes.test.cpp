// SPDX-License-Identifier: Apache-2.0
// Ranks that are processes of their own, over NCCL: how they come together, and the trainer of one.
#include "catch.hpp"
#include "cuda/toy.hpp"
#include "nccl/fake_nccl.hpp"
#include "transport/processes.hpp"

#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/sequential.hpp"
#include "copipe/train/cuda_update.hpp"
#include "copipe/train/trainer.hpp"
#include "copipe/transport/nccl.hpp"

#include <array>
#include <cstddef>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using namespace copipe;
using namespace std::chrono_literals;
using fake::drive;

template <class Policy>
using process_of = trainer<Policy, cuda_device, static_partition, adamw, nccl_processes>;

TEST_CASE("processes find each other, and messages between ranks without a communicator go the long way") {
    fake::machine gpus{drive::by_thread, 3, 7};
    fake::nccl_library nccl;
    auto const port = free_port();
    using joined = copipe::nccl<cuda_device, tcp>;
    std::vector<std::string> said(3);
    auto const body = [](joined::endpoint& end, cuda_device& dev, int me) -> task<> {
        cuda_stream& stream = dev.open_stream("s");
        std::vector<float> const mine(64, static_cast<float>(me + 1));
        std::vector<float> got(64);
        void* const data = stream.memory()->allocate(512);
        stream.copy(data, mine.data(), 256);
        for (int round = 0; round < 3; ++round) {
            auto const ready = stream.record();
            auto const send = [&](int to) -> task<> {
                envelope const what{.identity = 5, .bytes = 256};
                auto const sent = co_await end.send(to, what, data, ready);
                co_await sent.completion();
            };
            auto const exchange_all = [&](scope& sends) -> task<> {
                for (int to = 0; to < 3; ++to)
                    if (to != me) sends.spawn(send(to));
                for (int from = 0; from < 3; ++from) {
                    if (from == me) continue;
                    auto arrived = co_await end.arrival(from, 5);
                    auto const moved = end.accept(arrived, static_cast<std::byte*>(data) + 256, stream, timing::on);
                    co_await moved.end.completion();
                    stream.copy(got.data(), static_cast<std::byte*>(data) + 256, 256);
                    stream.synchronize();
                    if (got != std::vector<float>(64, static_cast<float>(from + 1))) throw error("other values came");
                }
            };
            co_await in_scope(exchange_all);
            std::array<double, 1> sum{static_cast<double>(me)};
            co_await end.all_reduce(sum);
            if (sum[0] != 3) throw error("another sum");
            if (round == 1) { // all start anew
                try {
                    if (me == 1) end.abort();
                    co_await end.all_reduce(sum);
                    throw error("not ended");
                } catch (peer_failed const&) {
                }
                end.reset();
            }
        }
        stream.memory()->deallocate(data, 512);
    };
    std::vector<std::thread> threads;
    for (int me = 0; me < 3; ++me) {
        threads.emplace_back([&, me] {
            try {
                launch const own{.rank = me, .size = 3, .local_rank = me, .local_size = 3, .port = port};
                joined net{own, {.talking = {{0, 1}, {1, 2}}}, {}, {.meeting = {.deadline = 20s, .retry = 5ms}}};
                cuda_device dev{cuda_options{.gpu = me}};
                auto end = net.connect(me, dev);
                executor exec;
                run(exec, body(end, dev, me));
            } catch (std::exception const& e) {
                said[static_cast<std::size_t>(me)] = e.what();
            }
        });
    }
    for (auto& each : threads) each.join();
    CHECK(said == std::vector<std::string>(3));
    CHECK(nccl.leaks() == "");
    CHECK(gpus.leaks() == "");
}

TEST_CASE("processes of one GPU each are one pipeline over NCCL, and learn what one process does") {
    fake::machine gpus{fake::drive::by_thread, 3};
    fake::nccl_library nccl;
    auto const layers = cuda_toy::network(std::vector<cuda_toy::wave>(8));
    auto const port = free_port();
    std::vector<std::vector<double>> losses(4);
    auto const train = [&](auto& trained, std::size_t who) {
        for (int i = 0; i < 3; ++i) losses[who].push_back(trained.step(cuda_toy::numbers{}).loss);
        losses[who].push_back(trained.evaluate(cuda_toy::numbers{}));
    };
    auto const process = [&](int me) {
        launch const own{.rank = me, .size = 3, .local_rank = me, .local_size = 3, .port = port};
        auto const on_gpu = [me](int) { return std::make_unique<cuda_device>(cuda_options{.gpu = me}); };
        process_of<dualpipe_v> piped{layers, {.ranks = 3, .micro_batches = 8, .process = own, .make_device = on_gpu}};
        train(piped, static_cast<std::size_t>(me));
    };
    std::vector<std::thread> others;
    for (int const me : {1, 2}) others.emplace_back(process, me);
    process(0);
    for (auto& each : others) each.join();
    {
        process_of<sequential> plain{layers, {.micro_batches = 8}};
        train(plain, 3);
    }
    for (std::size_t who : {0U, 1U, 2U}) CHECK(losses[who] == losses[3]);
    CHECK(nccl.leaks() == "");
    CHECK(gpus.leaks() == "");
}
