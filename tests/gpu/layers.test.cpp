// SPDX-License-Identifier: Apache-2.0
// On a GPU: the device's own kernels and every layer of the GPT, against the CPU's.
#include "catch.hpp"
#include "gpt/cuda/layers.hpp"

#include "copipe/train/cuda_update.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

using namespace copipe;

namespace {

using floats = std::vector<float>;

auto random_floats(std::size_t count, unsigned seed) -> floats {
    std::mt19937 random{seed};
    std::normal_distribution<float> normal;
    floats values(count);
    for (float& each : values) each = normal(random);
    return values;
}

/// A stream of a device, and tensors on it from and to vectors.
template <class Device>
struct on {
    Device dev{};
    typename Device::stream& stream = dev.open_stream("test");
    context<Device> work{.stream = stream};

    template <class T>
    auto upload(std::vector<T> const& values, extents const& sizes) -> tensor {
        tensor t = work.make(sizes, std::is_same_v<T, float> ? dtype::f32 : dtype::i32);
        stream.copy(t.data(), values.data(), values.size() * sizeof(T));
        stream.synchronize();
        return t;
    }
    auto download(tensor const& t) -> floats {
        floats values(t.count());
        if (t) stream.copy(values.data(), t.data(), t.bytes());
        stream.synchronize();
        return t ? values : floats{};
    }
};

/// What a layer makes of an input: its output, its input gradient, its parameters' gradients.
struct results {
    std::vector<floats> all;

    [[nodiscard]] auto distance_to(results const& other) const -> double {
        double worst = 0;
        for (std::size_t i = 0; i < all.size(); ++i) {
            double most = 0, largest = 1e-6;
            for (std::size_t j = 0; j < all[i].size(); ++j) {
                most = std::max(most, std::abs(static_cast<double>(all[i][j]) - other.all[i].at(j)));
                largest = std::max(largest, std::abs(static_cast<double>(other.all[i][j])));
            }
            worst = std::max(worst, most / largest);
        }
        return worst;
    }
};

template <class Device, class Layer, class T>
auto passed(Layer layer, std::vector<T> const& x, extents const& sizes, extents const& out,
            std::vector<std::int32_t> const& targets = {}) -> results {
    on<Device> device;
    unsigned seed = 10;
    for (parameter* each : layer.parameters()) {
        each->value = device.upload(random_floats(each->count(), ++seed), each->sizes);
        each->gradient = device.upload(random_floats(each->count(), ++seed), each->sizes); // is added to
    }
    if (!targets.empty()) device.work.target = device.upload(targets, {sizes[0], sizes[1]});
    device.work.scale = 0.25F;
    typename Layer::saved saved;
    results found;
    found.all.push_back(device.download(layer.forward(device.work, device.upload(x, sizes), saved)));
    tensor const dy = targets.empty() ? device.upload(random_floats(static_cast<std::size_t>(out.count()), 5), out)
                                      : tensor{};
    found.all.push_back(device.download(layer.backward_input(device.work, dy, saved)));
    layer.backward_weight(device.work, saved);
    for (parameter* each : layer.parameters()) found.all.push_back(device.download(each->gradient));
    return found;
}

} // namespace

TEST_CASE("adding, AdamW and the norm of a gradient on a GPU are those on the host") {
    on<cuda_device> gpu;
    on<host_device> host;
    for (std::int64_t const count : {1, 255, 257, 1'000'003}) {
        auto const run = [&](auto& device) {
            auto const n = static_cast<std::size_t>(count);
            parameter p{.name = "p", .sizes = {count, 1}};
            p.value = device.upload(random_floats(n, 1), p.sizes);
            p.gradient = device.upload(random_floats(n, 2), p.sizes);
            p.state = {device.upload(random_floats(n, 3), p.sizes), device.upload(floats(n, 0.5F), p.sizes)};
            device.stream.add(p.gradient.data(), p.value.data(), n);
            adamw{}.update(device.stream, p, 3, 1e-2, 0.5);
            double squares = 0;
            square_sum(device.stream, p, &squares);
            device.stream.synchronize();
            CHECK(squares > 0);
            return std::pair{results{{device.download(p.value), device.download(p.state[0]),
                                      device.download(p.state[1]), device.download(p.gradient)}},
                             squares};
        };
        auto const [ours, norm] = run(gpu);
        auto const [theirs, expected] = run(host);
        CHECK(ours.distance_to(theirs) < 1e-6);
        CHECK(norm == Approx(expected).epsilon(1e-10));
    }
}

TEST_CASE("the job that probes a GPU computes on it what the host's does") {
    on<cuda_device> gpu;
    on<host_device> host;
    for (int const size : {1, 48, 257}) {
        auto const run = [&](auto& device) {
            auto const n = static_cast<std::size_t>(size);
            tensor const abc = device.upload(random_floats(3 * n * n, 1), {3, size, size});
            probe_product(device.stream, abc.data(), size);
            return results{{device.download(abc)}};
        };
        CHECK(run(gpu).distance_to(run(host)) < 1e-5);
    }
}

TEST_CASE("every layer of the GPT computes on a GPU what it does on the CPU, in 32 bits and, roughly, in bf16") {
    auto const how = GENERATE(gpt::precision::f32, gpt::precision::bf16);
    gpt::gpu_precision() = how;
    double const bound = how == gpt::precision::f32 ? 2e-4 : 5e-2;
    for (auto const& [batch, time, width, heads] : {std::array{2, 8, 64, 4}, std::array{1, 33, 96, 3}}) {
        CAPTURE(batch, time, width, heads);
        extents const sizes{batch, time, width};
        auto const x = random_floats(static_cast<std::size_t>(sizes.count()), 1);
        auto const cpu = passed<host_device>(gpt::block{width, heads, 2}, x, sizes, sizes);
        auto const gpu = passed<cuda_device>(gpt::basic_block<cuda_device>{width, heads, 2}, x, sizes, sizes);
        CHECK(gpu.distance_to(cpu) < bound);

        std::vector<std::int32_t> tokens(static_cast<std::size_t>(batch * time));
        for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(i * 7 % 11);
        auto const cpu_embedding = passed<host_device>(gpt::embedding{256, 40, width}, tokens, {batch, time}, sizes);
        auto const gpu_embedding =
            passed<cuda_device>(gpt::basic_embedding<cuda_device>{256, 40, width}, tokens, {batch, time}, sizes);
        CHECK(gpu_embedding.distance_to(cpu_embedding) < 1e-5);

        tokens[3] = gpt::ignored;
        auto const cpu_head = passed<host_device>(gpt::head{256, width}, x, sizes, {1}, tokens);
        auto const gpu_head = passed<cuda_device>(gpt::basic_head<cuda_device>{256, width}, x, sizes, {1}, tokens);
        CHECK(gpu_head.distance_to(cpu_head) < bound);
    }
    gpt::gpu_precision() = gpt::precision::f32;
}

TEST_CASE("an event is done when the work before it is, and its time lies between those before and after it") {
    on<cuda_device> gpu;
    std::vector<float> const x(1 << 20, 1);
    tensor const sum = gpu.upload(x, {1 << 20}), addend = gpu.upload(x, {1 << 20});
    double last = 0;
    for (int i = 0; i < 100; ++i) {
        auto const start = gpu.stream.record(timing::on);
        gpu.stream.add(sum.data(), addend.data(), sum.count());
        auto const end = gpu.stream.record(timing::on);
        gpu.stream.synchronize();
        REQUIRE(end.done());
        REQUIRE(start.time() >= last - 1e-5);
        REQUIRE(end.time() > start.time());
        last = end.time();
    }
    CHECK(last <= gpu.dev.now() + 1e-3);
    CHECK(gpu.download(sum)[12345] == 101);
}
