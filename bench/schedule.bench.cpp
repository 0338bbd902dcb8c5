// SPDX-License-Identifier: Apache-2.0
// How fast programs of all ranks are generated, verified and evaluated; items per second are actions.
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/evaluate.hpp"
#include "copipe/schedule/interleaved.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/verify.hpp"
#include "copipe/schedule/zb_v.hpp"

#include <benchmark/benchmark.h>

#include <cstdint>
#include <stdexcept>

namespace {

using namespace copipe;

shape size_of(benchmark::State const& state) {
    return {static_cast<int>(state.range(0)), static_cast<int>(state.range(1))};
}

std::int64_t actions_of(std::vector<program> const& all) {
    std::size_t count = 0;
    for (auto const& own : all) count += own.size();
    return static_cast<std::int64_t>(count);
}

/// The programs of all ranks, made and proved.
template <class Policy>
void generate_and_verify(benchmark::State& state) {
    Policy const policy;
    shape const size = size_of(state);
    std::int64_t actions = 0;
    for (auto _ : state) {
        auto const all = verified_programs(policy, size);
        benchmark::DoNotOptimize(all.data());
        actions += actions_of(all);
    }
    state.SetItemsProcessed(actions);
}

/// The makespan of a step whose programs exist.
template <class Policy>
void evaluate_step(benchmark::State& state) {
    Policy const policy;
    shape const size = size_of(state);
    auto const all = programs(policy, size);
    for (auto _ : state) {
        auto const told = evaluate(all, policy.placed(size), size.micro_batches, uniform_costs{.communication = 0.1});
        benchmark::DoNotOptimize(told.makespan);
    }
    state.SetItemsProcessed(state.iterations() * actions_of(all));
}

constexpr auto milliseconds = benchmark::kMillisecond;
BENCHMARK_TEMPLATE(generate_and_verify, dualpipe_v)->Args({64, 512})->Unit(milliseconds);
BENCHMARK_TEMPLATE(generate_and_verify, interleaved<4>)->Args({64, 512})->Unit(milliseconds);
BENCHMARK_TEMPLATE(generate_and_verify, zb_v)->Args({8, 64})->Unit(milliseconds);
BENCHMARK_TEMPLATE(evaluate_step, one_f_one_b)->Args({8, 64})->Args({64, 512})->Args({1024, 4096})->Unit(milliseconds);
BENCHMARK_TEMPLATE(evaluate_step, dualpipe_v)->Args({8, 64})->Args({64, 512})->Args({1024, 4096})->Unit(milliseconds);
BENCHMARK_TEMPLATE(evaluate_step, interleaved<4>)->Args({64, 512})->Unit(milliseconds);

} // namespace
