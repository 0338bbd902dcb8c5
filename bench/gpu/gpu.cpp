// SPDX-License-Identifier: Apache-2.0
// Measures copipe on one GPU: what the engine costs beside a hand-written loop and a CUDA graph, what an await costs,
// what overlap gains, schedules on a GPU cut in four against their forecasts, and the GPT. `bench/gpu.sh` builds it.
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/evaluate.hpp"
#include "copipe/schedule/gpipe.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/sequential.hpp"
#include "copipe/schedule/zb_h1.hpp"
#include "copipe/train/cuda_update.hpp"
#include "gpt/cuda/layers.hpp"
#include "gpt/model.hpp"
#include "gpu/green.hpp"
#include "gpu/work.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <functional>
#include <span>
#include <string_view>

namespace bench {
namespace {

/// Where the numbers go; and by what the sizes are divided, for those who only want to see that all of it runs.
struct asked {
    std::string folder;
    int divisor = 1;
};

/// Seconds of `count` products on an otherwise idle stream.
auto seconds_of(arena const& on, copipe::cuda_stream& stream, int count) -> double {
    std::vector<double> seconds;
    for (int i = 0; i < 12; ++i) {
        auto const begin = stream.record(copipe::timing::on);
        on.multiply(stream.handle(), count);
        auto const end = stream.record(copipe::timing::on);
        stream.synchronize();
        if (i >= 2) seconds.push_back(end.time() - begin.time());
    }
    std::sort(seconds.begin(), seconds.end());
    return seconds[seconds.size() / 2];
}

/// A forward chunk of each duration: how much longer a step takes under the engine than as a plain loop.
void engine_against_loop(asked const& how, summary& table) {
    csv out{how.folder, "engine.csv", "size,chunk_us,loop_ms,engine_ms,graph_ms,engine_over_loop,engine_over_graph"};
    constexpr int micro_batches = 32;
    for (auto const& [whole, count] : {std::pair{1024, 4}, {2048, 4}, {4096, 2}, {8192, 1}, {8192, 4}}) {
        int const size = whole / how.divisor;
        std::deque<cuda_device> devices(1);
        arena own{devices[0], size};
        std::vector<arena*> const arenas{&own};
        auto& stream = devices[0].open_stream("loop");
        double const chunk = seconds_of(own, stream, count);
        auto const loop = [&](cudaStream_t on) {
            for (int i = 0; i < 3 * micro_batches; ++i) own.multiply(on, count); // F, I and W of each micro-batch
        };
        double const by_loop = median_seconds(9, 2, [&] {
            loop(stream.handle());
            stream.synchronize();
        });
        pipeline piped{copipe::sequential{}, {1, micro_batches}, 1, count, arenas, devices, 8};
        double const by_engine = median_seconds(9, 2, [&] { piped.step(); });

        cudaGraph_t graph{};
        cudaGraphExec_t ready{};
        auto const at = stream.place();
        copipe::require_cuda(cudaStreamBeginCapture(stream.handle(), cudaStreamCaptureModeThreadLocal), "capture", at);
        loop(stream.handle());
        copipe::require_cuda(cudaStreamEndCapture(stream.handle(), &graph), "cudaStreamEndCapture", at);
        copipe::require_cuda(cudaGraphInstantiate(&ready, graph, 0), "cudaGraphInstantiate", at);
        double const by_graph = median_seconds(9, 2, [&] {
            copipe::require_cuda(cudaGraphLaunch(ready, stream.handle()), "cudaGraphLaunch", at);
            stream.synchronize();
        });
        cudaGraphExecDestroy(ready);
        cudaGraphDestroy(graph);
        out.row(size, 1e6 * chunk, 1e3 * by_loop, 1e3 * by_engine, 1e3 * by_graph, by_engine / by_loop,
                by_engine / by_graph);
        table.line("engine / loop, engine / graph, chunks of " + std::to_string(static_cast<int>(1e6 * chunk)) + " us",
                   by_engine / by_loop, ", ", by_engine / by_graph);
    }
}

/// An executor that polls its device instead of sleeping.
struct polling_executor final : copipe::executor {
    cuda_device* dev;
    explicit polling_executor(cuda_device& of) : dev(&of) {}
    void idle() override {
        static_cast<void>(dev->poller().poll());
        take_woken();
    }
};

/// What it costs to learn on the host that a kernel has ended.
void await_strategies(asked const& how, summary& table) {
    csv out{how.folder, "await.csv", "strategy,round_us,beyond_kernel_us"};
    int const rounds = 2000 / how.divisor;
    auto const measure = [&](std::string const& name, cuda_device& dev, auto round) {
        arena const own{dev, 1024 / how.divisor};
        auto& stream = dev.open_stream("await");
        double const kernel = seconds_of(own, stream, 1);
        double const seconds = round(own, stream) / rounds;
        out.row(name, 1e6 * seconds, 1e6 * (seconds - kernel));
        table.line("await, " + name + ": us beyond the kernel", 1e6 * (seconds - kernel));
    };
    auto const coroutine = [=](copipe::executor& exec, arena const& own, copipe::cuda_stream& stream) {
        auto const body = [&]() -> copipe::task<> {
            for (int i = 0; i < rounds; ++i) {
                own.multiply(stream.handle(), 1);
                auto const end = stream.record();
                co_await end.completion();
            }
        };
        double const begin = copipe::host_seconds();
        copipe::run(exec, body());
        return copipe::host_seconds() - begin;
    };
    {
        cuda_device dev;
        copipe::executor exec;
        measure("the poller's thread", dev,
                [&](arena const& own, auto& stream) { return coroutine(exec, own, stream); });
        measure("cudaStreamSynchronize", dev, [&](arena const& own, copipe::cuda_stream& stream) {
            double const begin = copipe::host_seconds();
            for (int i = 0; i < rounds; ++i) {
                own.multiply(stream.handle(), 1);
                stream.synchronize();
            }
            return copipe::host_seconds() - begin;
        });
    }
    cuda_device dev{copipe::cuda_options{.polling = copipe::cuda_polling::by_program}};
    polling_executor exec{dev};
    measure("the rank's executor polls", dev,
            [&](arena const& own, auto& stream) { return coroutine(exec, own, stream); });
}

/// A forward and a backward on two streams against one after the other, without and with copies between them.
void overlap(asked const& how, summary& table) {
    csv out{how.folder, "overlap.csv", "size,copies,serial_ms,two_streams_ms,gain"};
    cuda_device dev;
    auto& a = dev.open_stream("a");
    auto& b = dev.open_stream("b");
    auto& link = dev.open_link(1);
    std::size_t const bytes = (std::size_t{64} << 20) / static_cast<std::size_t>(how.divisor);
    tensor const from{*link.memory(), {static_cast<std::int64_t>(bytes / 4)}};
    tensor const to{*link.memory(), {static_cast<std::int64_t>(bytes / 4)}};
    for (int const whole : {512, 1024, 2048, 4096}) {
        int const size = whole / how.divisor;
        arena const one{dev, size}, two{dev, size};
        for (bool const copies : {false, true}) {
            auto const run = [&](copipe::cuda_stream& first, copipe::cuda_stream& second) {
                return median_seconds(15, 3, [&] {
                    for (int i = 0; i < 20; ++i) {
                        if (copies) link.copy(to.data(), from.data(), bytes);
                        one.multiply(first.handle(), 1);
                        two.multiply(second.handle(), 2);
                    }
                    for (auto* each : {&first, &second, &link}) each->synchronize();
                });
            };
            double const serial = run(a, a), apart = run(a, b);
            out.row(size, copies ? "yes" : "no", 1e3 * serial, 1e3 * apart, serial / apart);
            table.line("two streams, products of " + std::to_string(size) + (copies ? ", with copies" : "") + ": gain",
                       serial / apart);
        }
    }
}

/// Four ranks on four parts of one GPU: the makespan of each schedule against its forecast from the time of a chunk.
void schedules_on_parts(asked const& how, summary& table) {
    csv out{how.folder, "schedules.csv", "policy,ranks,micro_batches,multiprocessors,forecast_ms,measured_ms,ratio"};
    green_parts const parts{4};
    std::deque<cuda_device> devices;
    std::deque<arena> held;
    std::vector<arena*> arenas;
    for (std::size_t part = 0; part < 4; ++part) {
        devices.emplace_back(
            copipe::cuda_options{.make_stream = [&parts, part](int p) { return parts.make_stream(part, p); }});
        arenas.push_back(&held.emplace_back(devices.back(), 2048 / how.divisor));
    }
    constexpr int layers = 8, micro_batches = 16;
    int const count = std::max(4 / how.divisor, 1);
    double const layer = seconds_of(held[0], devices[0].open_stream("measure"), count);
    auto const measure = [&](auto const& policy) {
        copipe::shape const size{4, micro_batches};
        auto const where = policy.placed(size);
        double const stage = layer * layers / where.model_stages();
        auto const programs = copipe::programs(policy, size);
        copipe::uniform_costs const costs{.forward = stage, .input = stage, .weight = stage};
        double const forecast = copipe::evaluate(programs, where, micro_batches, costs).makespan;
        pipeline piped{policy, size, layers, count, arenas, devices, 16};
        double const measured = median_seconds(9, 2, [&] { piped.step(); });
        out.row(policy.name, 4, micro_batches, parts.multiprocessors, 1e3 * forecast, 1e3 * measured,
                measured / forecast);
        table.line(std::string(policy.name) + " on 4 parts: measured / forecast", measured / forecast);
    };
    measure(copipe::gpipe{});
    measure(copipe::one_f_one_b{});
    measure(copipe::zb_h1{});
    measure(copipe::dualpipe{});
    measure(copipe::dualpipe_v{});
}

/// Random bytes to learn.
struct random_text {
    int batch, time;
    static auto size() -> std::uint64_t { return 1 << 20; }
    void load(std::uint64_t index, copipe::host_array& input, copipe::host_array& target) const {
        auto* const x = input.resize<std::int32_t>({batch, time}, copipe::dtype::i32);
        auto* const y = target.resize<std::int32_t>({batch, time}, copipe::dtype::i32);
        copipe::counter_random const random{index, 7};
        for (int i = 0; i < batch * time; ++i) {
            x[i] = static_cast<std::int32_t>(random.bits(static_cast<std::uint64_t>(i)) % 256);
            y[i] = static_cast<std::int32_t>(random.bits(static_cast<std::uint64_t>(i + 1)) % 256);
        }
    }
};

void gpt_training(asked const& how, summary& table) {
    csv out{how.folder, "gpt.csv", "precision,parameters,tokens_per_step,step_ms,tokens_per_second,tflops,loss"};
    int const full = 1024 / how.divisor;
    gpt::config const size{
        .blocks = 12, .width = full, .heads = std::max(full / 64, 1), .context = full, .vocabulary = 256};
    constexpr int micro_batches = 4;
    random_text const data{8, size.context};
    double const parameters = 12.0 * size.blocks * size.width * size.width;
    double const tokens = static_cast<double>(micro_batches) * data.batch * data.time;
    double const flops = tokens * (6 * parameters + 12.0 * size.blocks * size.context * size.width);
    for (auto const products : {gpt::precision::f32, gpt::precision::bf16}) {
        gpt::gpu_precision() = products;
        cuda_device dev;
        auto const plan = copipe::plan_step(copipe::sequential{}, {1, micro_batches});
        auto const model = gpt::make_model<cuda_device>(size);
        auto const cut = copipe::partition::even(static_cast<int>(model.size()), 1);
        copipe::in_process<cuda_device> net{1};
        copipe::executor exec;
        copipe::rank_pipeline<cuda_device, copipe::in_process<cuda_device>::endpoint> rank{
            plan, cut, model, 0, dev, net.connect(0), {.lookahead = 4}};
        auto& stream = rank.compute_stream();
        std::vector<copipe::parameter*> all;
        for (auto& layer : rank.layers_of(0).layers())
            for (copipe::parameter* each : layer.parameters()) all.push_back(each);
        for (copipe::parameter* each : all) {
            for (int i = 0; i < 2; ++i) {
                each->state.emplace_back(*stream.memory(), each->sizes);
                stream.zero(each->state.back().data(), each->state.back().bytes());
            }
        }
        copipe::adamw const update;
        std::uint64_t step = 0;
        double const seconds = median_seconds(8, 2, [&] {
            copipe::run(exec, rank.run({copipe::dataset_ref{data}, step * micro_batches}, true));
            ++step;
            for (copipe::parameter* each : all) update.update(stream, *each, step, 1e-4, 1);
            stream.synchronize();
        });
        double loss = 0;
        for (double const each : rank.losses()) loss += each;
        char const* const name = products == gpt::precision::f32 ? "f32" : "bf16";
        out.row(name, parameters, tokens, 1e3 * seconds, tokens / seconds, flops / seconds / 1e12, loss);
        table.line(std::string("GPT, ") + name + ": tokens/s, TFLOP/s", tokens / seconds, ", ", flops / seconds / 1e12);
        if (products == gpt::precision::bf16)
            table.line("GPT, bf16: share of 989 TFLOP/s (H100 and H200, dense)", flops / seconds / 989e12);
    }
}

/// The losses of one step, micro-batch by micro-batch, of a GPT under a policy whose ranks share the GPU.
template <class Policy>
auto losses_under(Policy const& policy, copipe::shape size, int divisor) -> std::vector<double> {
    random_text const data{2, 64 / divisor};
    auto const model =
        gpt::make_model<cuda_device>({.blocks = 6, .width = 128 / divisor, .heads = 4, .context = data.time});
    auto const plan = copipe::plan_step(policy, size);
    auto const cut = copipe::partition::even(static_cast<int>(model.size()), plan.where.model_stages());
    copipe::in_process<cuda_device> net{size.ranks};
    copipe::rank_team team{size.ranks};
    std::deque<cuda_device> devices(static_cast<std::size_t>(size.ranks));
    std::deque<copipe::rank_pipeline<cuda_device, copipe::in_process<cuda_device>::endpoint>> ranks;
    for (int r = 0; r < size.ranks; ++r)
        ranks.emplace_back(plan, cut, model, r, devices[static_cast<std::size_t>(r)], net.connect(r),
                           copipe::pipeline_options{.lookahead = 4, .seed = 5});
    copipe::batch const from{copipe::dataset_ref{data}};
    team.run([&](int r) { return ranks[static_cast<std::size_t>(r)].run(from, true); });
    std::vector<double> all(static_cast<std::size_t>(size.micro_batches));
    for (auto& each : ranks)
        for (std::size_t m = 0; m < all.size(); ++m) all[m] += each.losses()[m];
    return all;
}

void pipelined_losses(asked const& how, summary& table) {
    csv out{how.folder, "losses.csv", "micro_batch,sequential,dualpipe_v_2_ranks"};
    gpt::gpu_precision() = gpt::precision::f32;
    int const divisor = std::min(how.divisor, 16);
    auto const plain = losses_under(copipe::sequential{}, {1, 8}, divisor);
    auto const piped = losses_under(copipe::dualpipe_v{}, {2, 8}, divisor);
    double most = 0;
    for (std::size_t m = 0; m < plain.size(); ++m) {
        out.row(m, plain[m], piped[m]);
        most = std::max(most, std::abs(plain[m] - piped[m]));
    }
    table.line("GPT, dualpipe_v on 2 ranks: largest difference of a loss", most);
}

/// Runs one part; what fails is told, and the others still run.
void part(char const* name, asked const& how, summary& table, void (*measure)(asked const&, summary&)) {
    try {
        measure(how, table);
    } catch (std::exception const& failure) {
        table.line(std::string(name) + ": not measured, as", " ", failure.what());
    }
}

} // namespace
} // namespace bench

auto main(int count, char** arguments) -> int {
    if (count < 2 || count > 3) {
        std::cerr << "usage: bench_gpu FOLDER [DIVISOR of all sizes, up to 256]\n";
        return 2;
    }
    auto const gpus = copipe::cuda_gpus::here();
    if (gpus.count == 0) {
        std::cout << "no GPU: " << gpus.why << '\n';
        return 77;
    }
    bench::asked const how{arguments[1], count == 3 ? std::atoi(arguments[2]) : 1};
    bench::summary table;
    bench::part("engine", how, table, bench::engine_against_loop);
    bench::part("await", how, table, bench::await_strategies);
    bench::part("overlap", how, table, bench::overlap);
    bench::part("schedules", how, table, bench::schedules_on_parts);
    bench::part("losses", how, table, bench::pipelined_losses);
    bench::part("GPT", how, table, bench::gpt_training);
    std::cout << "\nSummary\n" << table.text.str();
    std::ofstream{how.folder + "/summary.txt"} << table.text.str();
    return 0;
}
