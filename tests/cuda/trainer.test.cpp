// SPDX-License-Identifier: Apache-2.0
// The trainer on CUDA devices: its optimizer and norms are kernels, its checkpoints those of any device.
#include "catch.hpp"
#include "cuda/toy.hpp"
#include "temporary_folder.hpp"

#include "copipe/schedule/dualpipe_v.hpp"
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
