// SPDX-License-Identifier: Apache-2.0
// On a GPU: the GPT learns what it learns on the CPU, without a pipeline and in one, and goes on from its checkpoint.
#include "catch.hpp"
#include "gpt/cuda/layers.hpp"
#include "gpt/model.hpp"
#include "temporary_folder.hpp"

#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/sequential.hpp"
#include "copipe/train/cuda_update.hpp"
#include "copipe/train/trainer.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

using namespace copipe;

namespace {

constexpr gpt::config size{.blocks = 4, .width = 64, .heads = 4, .context = 32};

/// Two texts in each micro-batch: runs of letters, so that there is something to learn.
struct letters {
    [[nodiscard]] static auto size() -> std::uint64_t { return 1000; }
    static void load(std::uint64_t index, host_array& input, host_array& target) {
        std::int64_t const time = ::size.context;
        auto* const now = input.resize<std::int32_t>({2, time}, dtype::i32);
        auto* const next = target.resize<std::int32_t>({2, time}, dtype::i32);
        auto const stride = static_cast<std::int64_t>(index % 5 + 1);
        auto const letter = [&](std::int64_t at) { return static_cast<std::int32_t>('a' + at * stride % 26); };
        for (std::int64_t i = 0; i < 2 * time; ++i) {
            now[i] = letter(i);
            next[i] = letter(i + 1);
        }
    }
};

/// The losses of some steps.
template <class Trainer>
auto losses(Trainer& trained, int steps) -> std::vector<double> {
    std::vector<double> found;
    for (int i = 0; i < steps; ++i) found.push_back(trained.step(letters{}).loss);
    return found;
}

auto farthest(std::vector<double> const& some, std::vector<double> const& others) -> double {
    double most = 0;
    for (std::size_t i = 0; i < some.size(); ++i) most = std::max(most, std::abs(some[i] - others.at(i)));
    return most;
}

} // namespace

TEST_CASE("the first losses of the GPT on a GPU are within a thousandth of the CPU's, plain and in a pipeline") {
    gpt::gpu_precision() = gpt::precision::f32;
    trainer<sequential> cpu{gpt::make_model(size), {.micro_batches = 6}};
    auto const expected = losses(cpu, 10);
    CHECK(expected.back() < expected.front() - 0.1);

    auto const on_gpu = gpt::make_model<cuda_device>(size);
    trainer<sequential, cuda_device> plain{on_gpu, {.micro_batches = 6}};
    auto const found = losses(plain, 10);
    CHECK(farthest(found, expected) < 1e-3);
    trainer<dualpipe_v, cuda_device> piped{on_gpu, {.ranks = 2, .micro_batches = 6}};
    CHECK(losses(piped, 10) == found); // the same kernels in the same order on the same numbers

    temporary_folder const folder;
    std::string const file = folder / "gpt.safetensors";
    cpu.save(file);
    piped.load(file);
    CHECK(std::abs(piped.evaluate(letters{}, 4) - cpu.evaluate(letters{}, 4)) < 1e-4);
    CHECK(farthest(losses(piped, 3), losses(cpu, 3)) < 1e-3);
}

TEST_CASE("with products in bf16 the GPT learns nearly, but not quite, what it does in 32 bits") {
    auto const losses_in = [](gpt::precision how) {
        gpt::gpu_precision() = how;
        trainer<sequential, cuda_device> plain{gpt::make_model<cuda_device>(size), {.micro_batches = 6}};
        auto const found = losses(plain, 10);
        gpt::gpu_precision() = gpt::precision::f32;
        return found;
    };
    auto const exact = losses_in(gpt::precision::f32), rounded = losses_in(gpt::precision::bf16);
    CHECK(rounded != exact);
    CHECK(farthest(rounded, exact) < 5e-2);
}
