// SPDX-License-Identifier: Apache-2.0
// The trainer on CUDA devices: its optimizer and norms are kernels, its checkpoints those of any device.
#include "catch.hpp"
#include "cuda/toy.hpp"
#include "temporary_folder.hpp"

#include "copipe/balance/balanced.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/sequential.hpp"
#include "copipe/train/cuda_update.hpp"
#include "copipe/train/trainer.hpp"

#include <cmath>
#include <cstddef>
#include <memory>
#include <random>
#include <string>
#include <vector>

using namespace copipe;
using fake::drive;

namespace {

/// The update and the norm on the host, of the same numbers.
struct on_host {
    host_device dev{};
    host_stream& stream = dev.open_stream("s");
};

auto numbers(std::size_t count, unsigned seed) -> std::vector<float> {
    std::mt19937 random{seed};
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (float& each : values) each = normal(random);
    return values;
}

template <class Stream>
auto parameter_on(Stream& stream, std::size_t count) -> parameter {
    parameter p{.name = "p", .sizes = {static_cast<std::int64_t>(count / 5), 5}};
    std::vector<tensor> made;
    for (unsigned i = 0; i < 4; ++i) {
        auto values = numbers(count, i);
        if (i == 3)
            for (float& each : values) each = std::abs(each);
        made.emplace_back(*stream.memory(), p.sizes);
        stream.copy(made.back().data(), values.data(), count * 4);
        stream.synchronize();
    }
    p.value = made[0];
    p.gradient = made[1];
    p.state = {made[2], made[3]};
    return p;
}

template <class Stream>
auto updated(Stream& stream, std::size_t count) -> std::vector<float> {
    parameter p = parameter_on(stream, count);
    adamw const update;
    for (std::uint64_t step = 1; step <= 3; ++step) update.update(stream, p, step, 1e-2, 0.5);
    std::vector<float> values(3 * count);
    stream.copy(values.data(), p.value.data(), count * 4);
    stream.copy(values.data() + count, p.state[0].data(), count * 4);
    stream.copy(values.data() + 2 * count, p.state[1].data(), count * 4);
    stream.synchronize();
    return values;
}

template <class Stream>
auto squares(Stream& stream, std::size_t count) -> double {
    parameter const p = parameter_on(stream, count);
    double sum = -1;
    square_sum(stream, p, &sum);
    stream.synchronize();
    return sum;
}

} // namespace

TEST_CASE("AdamW and the norm of a gradient on a CUDA stream are those on the host") {
    fake::machine const gpus{drive::by_test};
    cuda_device dev;
    cuda_stream& stream = dev.open_stream("s");
    on_host host;
    for (std::size_t const count : {5U, 255U, 260U, 70'000U}) {
        CHECK(updated(stream, count) == updated(host.stream, count));
        CHECK(squares(stream, count) == Approx(squares(host.stream, count)).epsilon(1e-12));
    }
}

TEST_CASE("the job that probes a GPU computes what the host's does") {
    fake::machine const gpus{drive::by_test};
    cuda_device dev;
    on_host host;
    auto const product = [](auto& stream, int size) {
        auto const factors = numbers(static_cast<std::size_t>(2 * size * size), 1);
        tensor const abc{*stream.memory(), {3, size, size}};
        stream.copy(abc.data(), factors.data(), factors.size() * 4);
        probe_product(stream, abc.data(), size);
        std::vector<float> all(3 * factors.size() / 2);
        stream.copy(all.data(), abc.data(), all.size() * 4);
        stream.synchronize();
        return all;
    };
    for (int const size : {1, 7, 64}) {
        auto const there = product(dev.open_stream("s"), size), here = product(host.stream, size);
        for (std::size_t i = 0; i < here.size(); ++i) CHECK(there[i] == Approx(here[i]).margin(1e-5));
    }
}

TEST_CASE("the fingerprint of a GPU is what its kernels and copies take, and kept by its name") {
    fake::machine gpus{drive::by_test};
    gpus.kernels_take([](std::string const& name) { return name == "copipe_product" ? 2e-6 : 0; });
    gpus.copies_take([](std::size_t bytes) { return 1e-9 * static_cast<double>(bytes); });
    temporary_folder const folder;
    auto const known = [&] {
        cuda_device dev;
        cuda_stream& compute = dev.open_stream("compute");
        std::size_t const before = dev.free_memory();
        CHECK((tensor{*compute.memory(), {1000}}, dev.free_memory()) == before - 4000);
        return known_fingerprint(folder / "devices", dev, compute, dev.open_link(1));
    };
    fingerprint const found = known();
    CHECK_FALSE(found.read);
    CHECK(found.small_product == Approx(2.0 * 64 * 64 * 64 / 2e-6));
    CHECK(found.large_product == Approx(2.0 * 256 * 256 * 256 / 2e-6));
    CHECK(found.memory == Approx(2e9));
    CHECK(found.link == Approx(1e9));
    CHECK(found.copy > 0);
    CHECK(found.free_bytes > 0);
    CHECK(known().read);
    CHECK(gpus.leaks() == "");
}

TEST_CASE("a trainer on CUDA devices learns as one without a pipeline does, and goes on from its checkpoint") {
    fake::machine const gpus{drive::by_thread};
    {
        temporary_folder const folder;
        std::string const file = folder / "checkpoint.safetensors";
        auto const layers = cuda_toy::network(std::vector<cuda_toy::wave>(4));
        cuda_toy::numbers const data;
        trainer<sequential, cuda_device> plain{layers, {.micro_batches = 6}};
        trainer<dualpipe_v, cuda_device> piped{layers, {.ranks = 2, .micro_batches = 6}};
        for (int i = 0; i < 3; ++i) CHECK(piped.step(data).loss == plain.step(data).loss);
        piped.save(file);
        trainer<dualpipe_v, cuda_device> later{layers, {.ranks = 2, .micro_batches = 6}};
        later.load(file);
        CHECK(later.step(data).loss == piped.step(data).loss);
        CHECK(later.values("layers.2.w") == piped.values("layers.2.w"));
        CHECK(piped.evaluate(data) == later.evaluate(data));
    }
    CHECK(gpus.leaks() == "");
}

TEST_CASE("layers leave a GPU that has become slow") {
    fake::machine gpus{drive::by_thread, 2};
    gpus.kernels_take([](std::string const& name) { return name == "copipe_product" ? 1e-4 : 0; });
    // Six layers that cost the same, and a loss that costs nothing.
    cuda_toy::wave const layer{.forward_seconds = 1e-3, .input_seconds = 1e-3, .weight_seconds = 1e-3};
    auto const on_gpu = [](int rank) {
        return std::make_unique<cuda_device>(cuda_options{.gpu = rank, .make_stream = {}});
    };
    trainer<one_f_one_b, cuda_device, balanced> with{cuda_toy::network(std::vector(6, layer)),
                                                     {.ranks = 2,
                                                      .micro_batches = 6,
                                                      .layers = partition::given({0, 3, 7}, 7),
                                                      .make_device = on_gpu},
                                                     {},
                                                     balanced{{.check_every = 20}}};
    cuda_toy::numbers const data;
    for (int i = 0; i < 25; ++i) REQUIRE_FALSE(with.step(data).moved);
    gpus.slow_down(1, 3);
    step_report last;
    for (int i = 0; i < 300 && !last.moved; ++i) last = with.step(data);
    REQUIRE(last.moved);
    CHECK(with.layers() == partition::given({0, 5, 7}, 7));
}
