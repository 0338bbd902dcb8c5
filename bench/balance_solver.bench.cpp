// SPDX-License-Identifier: Apache-2.0
// The partition solver and the expert placement on one core, at the sizes of real models. Times are in nanoseconds with
// noise in every digit, so that no two layers are alike.
#include "copipe/balance/refined_experts.hpp"
#include "copipe/balance/solve_partition.hpp"

#include <benchmark/benchmark.h>

#include <random>

namespace {

using namespace copipe;

row<ticks> measured(int count, ticks mean, unsigned seed) {
    std::mt19937 random(seed);
    row<ticks> values;
    for (int i = 0; i < count; ++i) values.push_back(mean * 3 / 4 + static_cast<ticks>(random()) % (mean / 2));
    return values;
}

/// 61 layers as in DeepSeek-V3: three lighter ones first, a heavy head.
partition_problem model(int layers, int ranks) {
    partition_problem problem{.ranks = ranks, .weights = measured(layers, 8'000'000, 1)};
    for (int i = 0; i < 3; ++i) problem.weights[i] /= 2;
    problem.weights[layers - 1] += 5'000'000;
    return problem;
}

void measure(benchmark::State& state, partition_problem const& problem, present_partition const* present = nullptr) {
    for (auto _ : state) benchmark::DoNotOptimize(solve_partition(problem, present));
    auto const plan = solve_partition(problem, present);
    state.counters["over_ideal"] = plan ? static_cast<double>(plan->objective) / ideal_time(problem) : 0;
    state.counters["exact"] = plan && plan->exact;
}

partition_problem with_slow_ranks(partition_problem problem) {
    problem.slow = measured(problem.ranks, 1'000, 2);
    for (ticks& weight : problem.weights) weight /= 1'000;
    return problem;
}

void uniform(benchmark::State& state) {
    measure(state, model(static_cast<int>(state.range(0)), static_cast<int>(state.range(1))));
}
BENCHMARK(uniform)->Args({61, 16})->Args({1000, 64})->Unit(benchmark::kMicrosecond);

void slow_ranks(benchmark::State& state) { measure(state, with_slow_ranks(model(61, 16))); }
BENCHMARK(slow_ranks)->Unit(benchmark::kMicrosecond);

void slow_ranks_and_transfers(benchmark::State& state) {
    auto problem = with_slow_ranks(model(61, 16));
    problem.transfer = measured(62, 1'000'000, 3);
    problem.link = measured(15, 3, 4);
    measure(state, problem);
}
BENCHMARK(slow_ranks_and_transfers)->Unit(benchmark::kMicrosecond);

void memory_limit(benchmark::State& state) {
    auto problem = with_slow_ranks(model(61, 16));
    problem.parameters = measured(61, 1'000'000, 5);
    problem.activations = measured(61, 100'000, 6);
    for (int rank = 0; rank < 16; ++rank) problem.in_flight.push_back(16 - rank);
    problem.capacity = row<ticks>(16, 10'000'000);
    if (state.range(0) != 0) {
        problem.forward = problem.weights;
        for (ticks& forward : problem.forward) forward /= 3;
        problem.checkpoint = measured(61, 10'000, 7);
        problem.capacity = row<ticks>(16, 6'000'000);
    }
    measure(state, problem);
}
BENCHMARK(memory_limit)->ArgName("recompute")->Arg(0)->Arg(1)->Unit(benchmark::kMicrosecond);

void step_of_64_micro_batches(benchmark::State& state) {
    auto problem = with_slow_ranks(model(61, 16));
    problem.transfer = measured(62, 1'000'000, 3);
    problem.link = measured(15, 3, 4);
    problem.micro_batches = 64;
    measure(state, problem);
}
BENCHMARK(step_of_64_micro_batches)->Unit(benchmark::kMillisecond);

void best_order_of_two_kinds(benchmark::State& state) {
    auto problem = model(4 * static_cast<int>(state.range(0)), static_cast<int>(state.range(0)));
    problem.order = stage_order::best;
    for (int rank = 0; rank < problem.ranks; ++rank) problem.slow.push_back(1 + rank % 2);
    measure(state, problem);
}
BENCHMARK(best_order_of_two_kinds)->Arg(16)->Arg(128)->Unit(benchmark::kMillisecond);

void dualpipe_pairs(benchmark::State& state) {
    auto problem = model(61, 16);
    problem.order = stage_order::bidirectional;
    if (state.range(0) == 1) {
        problem.forward = measured(61, 3'000'000, 8);
        problem.lock_step = true;
    }
    if (state.range(0) == 2) {
        problem.parameters = measured(61, 1'000'000, 5);
        problem.activations = measured(61, 100'000, 6);
        for (int rank = 0; rank < 16; ++rank) {
            problem.in_flight.push_back(16 - rank);
            problem.in_flight_far.push_back(rank + 1);
        }
        problem.capacity = row<ticks>(16, 17'000'000);
    }
    measure(state, problem);
}
BENCHMARK(dualpipe_pairs)->ArgName("lock_step_memory")->DenseRange(0, 2)->Unit(benchmark::kMillisecond);

void dualpipe_v_pairs(benchmark::State& state) {
    auto problem = model(61, 16);
    problem.order = stage_order::v;
    measure(state, problem);
}
BENCHMARK(dualpipe_v_pairs)->Unit(benchmark::kMillisecond);

void interleaved(benchmark::State& state) {
    auto problem = model(61, static_cast<int>(state.range(0)));
    problem.order = stage_order::loop;
    problem.stages_per_rank = 2;
    measure(state, problem);
}
BENCHMARK(interleaved)->Arg(4)->Arg(16)->Unit(benchmark::kMillisecond);

void fewest_moves(benchmark::State& state) {
    auto problem = model(61, 16);
    auto const before = solve_partition(problem);
    present_partition const present{before->bounds, measured(61, 1'000'000, 10), 0.01};
    problem.weights[20] *= 2;
    if (state.range(0) == 1) problem.order = stage_order::bidirectional;
    measure(state, problem, &present);
}
BENCHMARK(fewest_moves)->ArgName("pairs")->Arg(0)->Arg(1)->Unit(benchmark::kMicrosecond);

void experts(benchmark::State& state) {
    auto const shape = expert_shape{.replicas = 288, .groups = 8, .nodes = 4, .gpus = 32};
    std::vector<double> loads;
    for (ticks const load : measured(256, 10'000, 11)) loads.push_back(static_cast<double>(load * load));
    auto const place = state.range(0) == 0 ? place_experts<> : refine_experts<>;
    for (auto _ : state) benchmark::DoNotOptimize(place(loads, shape));
    state.counters["max_over_mean"] = max_over_mean(loads, place(loads, shape), shape.gpus);
}
BENCHMARK(experts)->ArgName("refined")->Arg(0)->Arg(1)->Unit(benchmark::kMicrosecond);

} // namespace
