// SPDX-License-Identifier: Apache-2.0
// The trainer over NCCL: order, gradient sums, evaluation and checkpoints as over any transport.
#include "catch.hpp"
#include "cuda/toy.hpp"
#include "nccl/fake_nccl.hpp"
#include "temporary_folder.hpp"

#include "copipe/schedule/data_parallel.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/sequential.hpp"
#include "copipe/train/cuda_update.hpp"
#include "copipe/train/trainer.hpp"
#include "copipe/transport/nccl.hpp"

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

using namespace copipe;

template <class Policy>
using over_nccl = trainer<Policy, cuda_device, static_partition, adamw, nccl_threads>;

TEST_CASE("a trainer over NCCL learns, evaluates, saves and moves layers as one without a pipeline does") {
    fake::machine gpus{fake::drive::by_thread, 3};
    fake::nccl_library nccl;
    temporary_folder const folder;
    {
        std::string const file = folder / "checkpoint.safetensors";
        auto const layers = cuda_toy::network(std::vector<cuda_toy::wave>(8));
        auto const on_gpus = [](int rank) { return std::make_unique<cuda_device>(cuda_options{.gpu = rank}); };
        cuda_toy::numbers const data;
        over_nccl<sequential> plain{layers, {.micro_batches = 8}};
        over_nccl<dualpipe_v> piped{layers, {.ranks = 3, .micro_batches = 8, .make_device = on_gpus}};
        for (int i = 0; i < 3; ++i) {
            CHECK(piped.step(data).loss == plain.step(data).loss);
            if (i == 0) CHECK(piped.evaluate(data, 2, 10) == plain.evaluate(data, 2, 10));
            if (i == 1) CHECK(piped.repartition(partition::given({0, 2, 3, 4, 6, 7, 9}, 9)) > 0);
        }
        piped.save(file);
        plain.load(file);
        CHECK(plain.step(data).loss == piped.step(data).loss);
        CHECK(plain.values("layers.2.w") == piped.values("layers.2.w"));
    }
    CHECK(nccl.leaks() == "");
    CHECK(gpus.leaks() == "");
}

TEST_CASE("whichever call fails while layers move over NCCL, they have moved on no rank, and training goes on") {
    fake::machine gpus{fake::drive::by_thread, 3};
    fake::nccl_library nccl;
    temporary_folder const folder;
    {
        auto const layers = cuda_toy::network(std::vector<cuda_toy::wave>(8));
        auto const on_gpus = [](int rank) { return std::make_unique<cuda_device>(cuda_options{.gpu = rank}); };
        cuda_toy::numbers const data;
        over_nccl<one_f_one_b> still{layers, {.ranks = 3, .micro_batches = 3, .make_device = on_gpus}};
        over_nccl<one_f_one_b> moving{layers, {.ranks = 3, .micro_batches = 3, .make_device = on_gpus}};
        auto const checkpoint = [&](over_nccl<one_f_one_b>& of) {
            of.save(folder / "checkpoint");
            return contents(folder / "checkpoint");
        };
        still.step(data);
        moving.step(data);
        std::string const before = checkpoint(moving);
        auto const from = moving.layers(), to = partition::given({0, 1, 2, 9}, 9); // rank 0 gives to both others
        auto const fail_each = [&](std::uint64_t stride, auto fail, auto failed_call) {
            std::uint64_t number = 1;
            for (bool none = false; !none; number += stride) {
                fail(number);
                bool threw = false;
                try {
                    moving.repartition(to);
                } catch (error const&) {
                    threw = true;
                }
                std::string const failed = failed_call();
                none = failed.empty();
                fail(0);
                static_cast<void>(cudaGetLastError()); // of a call that frees: it is left to the next one
                CAPTURE(number, failed);
                REQUIRE(moving.layers() == (threw ? from : to));
                REQUIRE(checkpoint(moving) == before);
                if (!threw) moving.repartition(from);
            }
            CHECK(number > 40 * stride);
        };
        fail_each(1, [&](std::uint64_t number) { nccl.fail_call(number); }, [&] { return nccl.failed_call(); });
        fail_each(5, [&](std::uint64_t number) { gpus.fail_call(number, cudaErrorMemoryAllocation, false); },
                  [&] { return gpus.failed_call(); });
        moving.repartition(to);
        still.step(data);
        moving.step(data);
        CHECK(checkpoint(moving) == checkpoint(still));
    }
    CHECK(nccl.leaks() == "");
    CHECK(gpus.leaks() == "");
}

TEST_CASE("layers that move between ranks without a communicator come in order, again and again") {
    fake::machine gpus{fake::drive::by_thread, 3};
    fake::nccl_library nccl;
    auto const layers = cuda_toy::network(std::vector<cuda_toy::wave>(15));
    auto const on_gpus = [](int rank) { return std::make_unique<cuda_device>(cuda_options{.gpu = rank}); };
    over_nccl<one_f_one_b> moving{layers, {.ranks = 3, .micro_batches = 3, .make_device = on_gpus}};
    for (int i = 0; i < 20; ++i) {
        CHECK(moving.repartition(partition::given({0, 1, 2, 16}, 16)) > 0);
        CHECK(moving.repartition(partition::given({0, 14, 15, 16}, 16)) > 0);
    }
}

TEST_CASE("replicas over NCCL learn together what one pipeline does, and one goes on from their checkpoint") {
    fake::machine gpus{fake::drive::by_thread, 4};
    fake::nccl_library nccl;
    temporary_folder const folder;
    {
        std::string const file = folder / "checkpoint.safetensors";
        auto const layers = cuda_toy::network(std::vector<cuda_toy::wave>(4));
        auto const on_gpus = [](int rank) { return std::make_unique<cuda_device>(cuda_options{.gpu = rank}); };
        cuda_toy::numbers const data;
        over_nccl<data_parallel<one_f_one_b>> both{layers, {.ranks = 4, .micro_batches = 8, .make_device = on_gpus}};
        over_nccl<sequential> plain{layers, {.micro_batches = 8}};
        for (int i = 0; i < 3; ++i) CHECK(both.step(data).loss == Approx(plain.step(data).loss).epsilon(1e-5));
        CHECK(both.repartition(partition::given({0, 1, 5}, 5)) > 0);
        both.save(file);
        plain.load(file);
        CHECK(plain.values("layers.2.w") == both.values("layers.2.w"));
        CHECK(plain.evaluate(data) == both.evaluate(data));
    }
    CHECK(nccl.leaks() == "");
    CHECK(gpus.leaks() == "");
}
