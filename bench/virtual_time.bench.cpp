// SPDX-License-Identifier: Apache-2.0
// The engine in virtual time: chunks per second of one training step, all ranks on one thread, and what 1024 ranks with
// 4096 micro-batches need. Peak memory is the process's, from getrusage.
#include "copipe/async/scope.hpp"
#include "copipe/device/simulated.hpp"
#include "copipe/pipeline/rank_pipeline.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/evaluate.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/transport/in_process.hpp"

#include <benchmark/benchmark.h>
#include <sys/resource.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

namespace {

using copipe::simulated_device;
using copipe::tensor;
using endpoint = copipe::in_process<simulated_device>::endpoint;

/// One second of forward, input gradient and weight gradient each.
struct second {
    struct saved {};
    static auto parameters() -> std::array<copipe::parameter*, 0> { return {}; }
    static auto forward(copipe::context<simulated_device>& c, tensor, saved&) -> tensor { return work(c); }
    static auto backward_input(copipe::context<simulated_device>& c, tensor, saved&) -> tensor { return work(c); }
    static void backward_weight(copipe::context<simulated_device>& c, saved&) { c.stream.launch(1); }
    static auto work(copipe::context<simulated_device>& c) -> tensor {
        c.stream.launch(1);
        return c.make({1});
    }
};

struct nothing {
    static auto size() -> std::uint64_t { return 1; }
    static void load(std::uint64_t, copipe::host_array& input, copipe::host_array& target) {
        input.resize<float>({1}, copipe::dtype::f32);
        target.resize<float>({1}, copipe::dtype::f32);
    }
};

template <copipe::schedule_policy Policy>
void step(benchmark::State& state) {
    copipe::shape const size{static_cast<int>(state.range(0)), static_cast<int>(state.range(1))};
    copipe::simulation clock;
    auto const plan = copipe::plan_step(Policy{}, size);
    copipe::model<simulated_device> layers;
    for (int i = 0; i < plan.where.model_stages(); ++i) layers.add(second{});
    auto const cut = copipe::partition::even(static_cast<int>(layers.size()), plan.where.model_stages());
    copipe::in_process<simulated_device> net{size.ranks};
    std::deque<simulated_device> devices;
    std::deque<copipe::rank_pipeline<simulated_device, endpoint>> ranks;
    std::size_t chunks = 0;
    for (int r = 0; r < size.ranks; ++r) {
        devices.emplace_back(clock);
        ranks.emplace_back(plan, cut, layers, r, devices.back(), net.connect(r), copipe::pipeline_options{});
        for (auto const& each : plan.training[static_cast<std::size_t>(r)].actions) chunks += each.chunks().size();
    }
    nothing const data;
    copipe::batch const from{copipe::dataset_ref{data}};
    auto const all = [&]() -> copipe::task<> {
        copipe::scope together{co_await copipe::this_environment{}};
        for (auto& each : ranks) together.spawn(each.run(from, true));
        co_await together.join();
    };
    for (auto _ : state) copipe::run(clock, all());
    auto const run_chunks = static_cast<double>(chunks) * static_cast<double>(state.iterations());
    state.counters["chunks/s"] = benchmark::Counter(run_chunks, benchmark::Counter::kIsRate);
    rusage used{};
    getrusage(RUSAGE_SELF, &used);
    state.counters["peak GiB"] = static_cast<double>(used.ru_maxrss) / (1024 * 1024);
}

BENCHMARK(step<copipe::one_f_one_b>)->Name("virtual time/one_f_one_b")->Args({4, 1000})->Args({64, 512});
BENCHMARK(step<copipe::dualpipe_v>)->Name("virtual time/dualpipe_v")->Args({4, 1000})->Args({64, 512});
BENCHMARK(step<copipe::one_f_one_b>)->Name("virtual time/one_f_one_b")->Args({1024, 4096})->Iterations(1);
BENCHMARK(step<copipe::dualpipe_v>)->Name("virtual time/dualpipe_v")->Args({1024, 4096})->Iterations(1);

} // namespace
