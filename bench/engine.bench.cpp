// SPDX-License-Identifier: Apache-2.0
// What the engine itself costs: host time per action of a training step whose layers do nothing, four ranks in one
// process on one thread, against a hand-written loop that calls the same layers in the same order.
#include "copipe/device/host.hpp"
#include "copipe/pipeline/rank_pipeline.hpp"
#include "copipe/pipeline/rank_team.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/gpipe.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/transport/in_process.hpp"

#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

namespace {

using copipe::context;
using copipe::host_device;
using copipe::tensor;
using endpoint = copipe::in_process<host_device>::endpoint;

/// Hands its input on.
struct nothing {
    struct saved {};
    static auto forward(context<host_device>&, tensor x, saved&) -> tensor { return x; }
    static auto backward_input(context<host_device>& c, tensor dy, saved&) -> tensor { return dy ? dy : c.make({1}); }
};

struct one_number {
    static auto size() -> std::uint64_t { return 1; }
    static void load(std::uint64_t, copipe::host_array& input, copipe::host_array& target) {
        *input.resize<float>({1}, copipe::dtype::f32) = 0;
        *target.resize<float>({1}, copipe::dtype::f32) = 0;
    }
};

constexpr copipe::shape size{4, 64};

template <copipe::schedule_policy Policy>
auto empty_model(Policy const& policy) -> copipe::model<host_device> {
    copipe::model<host_device> layers;
    for (int i = 0; i < policy.placed(size).model_stages(); ++i) layers.add(nothing{});
    return layers;
}

template <copipe::schedule_policy Policy>
auto count_actions(Policy const& policy) -> std::size_t {
    std::size_t count = 0;
    for (auto const& each : copipe::programs(policy, size)) count += each.size();
    return count;
}

void per_action(benchmark::State& state, std::size_t actions) {
    state.counters["ns/action"] =
        benchmark::Counter(static_cast<double>(actions) * static_cast<double>(state.iterations()) * 1e-9,
                           benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

template <copipe::schedule_policy Policy>
void engine(benchmark::State& state) {
    Policy const policy{};
    auto const layers = empty_model(policy);
    auto const plan = copipe::plan_step(policy, size);
    auto const cut = copipe::partition::even(static_cast<int>(layers.size()), plan.where.model_stages());
    copipe::in_process<host_device> net{size.ranks};
    copipe::rank_team team{size.ranks, copipe::rank_threads::calling_thread};
    std::deque<host_device> devices;
    std::deque<copipe::rank_pipeline<host_device, endpoint>> ranks;
    for (int r = 0; r < size.ranks; ++r) {
        auto& dev = devices.emplace_back(copipe::host_execution::inline_);
        ranks.emplace_back(plan, cut, layers, r, dev, net.connect(r), copipe::pipeline_options{});
    }
    one_number const data;
    copipe::batch const from{copipe::dataset_ref{data}};
    for (auto _ : state) team.run([&](int r) { return ranks[static_cast<std::size_t>(r)].run(from, true); });
    per_action(state, count_actions(policy));
}

/// The least any engine must do: call each chunk's layer in an order that respects all dependencies (found once, ahead
/// of time), and copy what crosses ranks.
template <copipe::schedule_policy Policy>
void hand_written(benchmark::State& state) {
    Policy const policy{};
    auto const where = policy.placed(size);
    auto const all = copipe::programs(policy, size);
    std::vector<copipe::chunk> order;
    std::vector<std::size_t> next(all.size());
    auto const per_stage = static_cast<std::size_t>(where.micro_batches_per_stage(size.micro_batches));
    std::vector<char> forward(static_cast<std::size_t>(where.stages()) * per_stage), backward(forward.size());
    auto const at = [&](int stage, int m) {
        return static_cast<std::size_t>(stage) * per_stage + static_cast<std::size_t>(m);
    };
    for (bool moved = true; std::exchange(moved, false);) {
        for (std::size_t r = 0; r < all.size(); ++r) {
            while (next[r] < all[r].size()) {
                bool ready = true;
                for (auto const& c : all[r][next[r]].chunks()) {
                    if (auto const in = copipe::input_of(c, where)) {
                        auto const& done = in->direction == copipe::flow::forward ? forward : backward;
                        ready = ready && done[at(in->from_stage, in->micro_batch)];
                    }
                }
                if (!ready) break;
                for (auto const& c : all[r][next[r]].chunks()) {
                    order.push_back(c);
                    if (c.what == copipe::op::forward)
                        forward[at(c.stage, c.micro_batch)] = 1;
                    else if (c.what != copipe::op::backward_weight)
                        backward[at(c.stage, c.micro_batch)] = 1;
                }
                ++next[r];
                moved = true;
            }
        }
    }
    host_device dev{copipe::host_execution::inline_};
    auto& stream = dev.open_stream("compute");
    context<host_device> work{.stream = stream};
    nothing layer;
    nothing::saved kept;
    std::vector<tensor> values(forward.size()), gradients(forward.size());
    auto const move_on = [&](copipe::chunk const& c, tensor value) {
        auto const out = copipe::output_of(c, where);
        if (!out) return;
        if (copipe::crosses_ranks(*out, where)) {
            tensor const copy = work.make(value.sizes());
            stream.copy(copy.data(), value.data(), value.bytes());
            value = copy;
        }
        (out->direction == copipe::flow::forward ? values : gradients)[at(out->to_stage, out->micro_batch)] = value;
    };
    for (auto _ : state) {
        for (auto const& c : order) {
            std::size_t const here = at(c.stage, c.micro_batch);
            if (c.what == copipe::op::forward) {
                if (where.is_first(c.stage)) values[here] = work.make({1});
                move_on(c, layer.forward(work, values[here], kept));
            } else if (c.what != copipe::op::backward_weight) {
                move_on(c, layer.backward_input(work, gradients[here], kept));
            }
            if (c.what == copipe::op::backward || c.what == copipe::op::backward_weight)
                values[here] = gradients[here] = {};
        }
    }
    per_action(state, count_actions(policy));
}

BENCHMARK(hand_written<copipe::one_f_one_b>)->Name("step of 4 ranks, no-op layers/one_f_one_b/hand-written loop");
BENCHMARK(engine<copipe::one_f_one_b>)->Name("step of 4 ranks, no-op layers/one_f_one_b/engine");
BENCHMARK(hand_written<copipe::gpipe>)->Name("step of 4 ranks, no-op layers/gpipe/hand-written loop");
BENCHMARK(engine<copipe::gpipe>)->Name("step of 4 ranks, no-op layers/gpipe/engine");
BENCHMARK(hand_written<copipe::dualpipe>)->Name("step of 4 ranks, no-op layers/dualpipe/hand-written loop");
BENCHMARK(engine<copipe::dualpipe>)->Name("step of 4 ranks, no-op layers/dualpipe/engine");
BENCHMARK(hand_written<copipe::dualpipe_v>)->Name("step of 4 ranks, no-op layers/dualpipe_v/hand-written loop");
BENCHMARK(engine<copipe::dualpipe_v>)->Name("step of 4 ranks, no-op layers/dualpipe_v/engine");

} // namespace
