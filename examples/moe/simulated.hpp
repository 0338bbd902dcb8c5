// SPDX-License-Identifier: Apache-2.0
// A transformer of mixtures in virtual time: the layers of layers.hpp with work that takes given seconds, two replicas
// that share their experts, and what a chunk, an overlapped pair and a whole step cost.
#pragma once

#include "moe/layers.hpp"

#include "copipe/async/scope.hpp"
#include "copipe/device/simulated.hpp"
#include "copipe/model/stage.hpp"
#include "copipe/pipeline/rank_pipeline.hpp"
#include "copipe/transport/in_process.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

namespace moe {

using copipe::simulated_device;

/// Seconds of one block. A backward's input and weight gradients take what the forward takes, each.
struct block_seconds {
    double attention = 1;
    double experts = 1;
    double exchange = 0; ///< one all-to-all; a block has two in each direction
};

/// Work that only takes time. The kernels of router, combination and packing take none.
struct timed_work {
    double experts = 1;
    template <class Kernel>
    void operator()(copipe::simulated_stream&, Kernel const&) const {}
    void operator()(copipe::simulated_stream& on, kernels::expert_forward const&) const { on.launch(experts); }
    void operator()(copipe::simulated_stream& on, kernels::expert_backward_input const&) const { on.launch(experts); }
    void operator()(copipe::simulated_stream& on, kernels::expert_backward_weight const&) const { on.launch(experts); }
};

/// The layer before a mixture: needs no other rank.
struct timed_attention {
    double seconds;
    struct saved {};
    static auto parameters() -> std::array<copipe::parameter*, 0> { return {}; }
    auto forward(copipe::context<simulated_device>& c, tensor x, saved&) const -> tensor {
        c.stream.launch(seconds);
        return x;
    }
    auto backward_input(copipe::context<simulated_device>& c, tensor dy, saved&) const -> tensor {
        c.stream.launch(seconds);
        return dy;
    }
    void backward_weight(copipe::context<simulated_device>& c, saved&) const { c.stream.launch(seconds); }
};

/// Two replicas of `blocks` blocks each, sharing one expert per replica and block, in one simulation. An all-to-all of
/// tokens takes `exchange` seconds; that of a router's gradient 1/512 of it.
class twin_models {
public:
    twin_models(int blocks, block_seconds const& cost)
        : net_(replicas, clock, copipe::simulated_behaviour{.seconds_per_byte = cost.exchange / parcel_bytes}) {
        for (int g = 0; g < replicas; ++g) {
            for (int b = 0; b < blocks; ++b) {
                layers_[g].add(timed_attention{cost.attention});
                layers_[g].add(mixture<simulated_device, timed_work>{net_, g, 2 * b + 1, geometry, {cost.experts}});
            }
        }
        clock.on_deadlock([this] { net_.abort(0); });
    }
    [[nodiscard]] auto layers(int replica) const -> copipe::model<simulated_device> const& { return layers_[replica]; }

    static constexpr int replicas = 2;
    static constexpr sizes geometry{.width = 1, .hidden = 1, .experts = 2, .members = 2, .top = 1, .tokens = 1023};
    copipe::simulation clock{};

private:
    static constexpr double parcel_bytes = 4.0 * geometry.parcel(geometry.tokens);
    all_to_all<simulated_device> net_;
    copipe::model<simulated_device> layers_[replicas]{};
};

/// What a stage of some blocks costs.
struct chunk_seconds {
    double forward = 0;
    double input = 0;
    double weight = 0;
    double backward = 0; ///< both gradients as one chunk
    double pair = 0;     ///< a forward and a backward, overlapped
};

/// Measures one stage, in virtual time, running the engine's own `alternate`.
class stage_measurement {
public:
    stage_measurement(int blocks, block_seconds const& cost) : models_(blocks, cost) {
        for (int g = 0; g < twin_models::replicas; ++g) {
            stream& compute = devices_.emplace_back(models_.clock).open_stream("compute");
            streams_.push_back(&compute);
            stages_.emplace_back(models_.layers(g), 0, 2 * blocks, 3, 0, compute);
        }
    }
    auto measure() -> chunk_seconds {
        copipe::run(models_.clock, both());
        return result_;
    }

private:
    using stream = copipe::simulated_stream;

    auto both() -> copipe::task<> {
        copipe::scope replicas{co_await copipe::this_environment{}};
        replicas.spawn(one(0));
        replicas.spawn(one(1));
        co_await replicas.join();
    }
    auto one(std::size_t g) -> copipe::task<> {
        auto& stage = stages_[g];
        copipe::context<simulated_device> first{.stream = *streams_[g], .micro_batch = 0};
        copipe::context<simulated_device> second{.stream = *streams_[g], .micro_batch = 1};
        tensor const x = first.make({twin_models::geometry.tokens, 1});
        result_.forward = co_await seconds(g, drop(stage.forward(first, 0, x)));
        result_.pair = co_await seconds(g, overlapped(stage.forward(second, 1, x), stage.backward(first, 0, x, true)));
        result_.backward = co_await seconds(g, drop(stage.backward(second, 1, x, true)));
        static_cast<void>(co_await seconds(g, drop(stage.forward(first, 2, x))));
        result_.input = co_await seconds(g, drop(stage.backward(first, 2, x, false)));
        result_.weight = co_await seconds(g, stage.backward_weight(first, 2));
    }
    /// From an idle device to an idle device.
    auto seconds(std::size_t g, copipe::task<> work) -> copipe::task<double> {
        double const start = models_.clock.now();
        co_await work;
        copipe::simulated_event const end = streams_[g]->record();
        co_await end.completion();
        co_return models_.clock.now() - start;
    }
    static auto drop(copipe::task<tensor> work) -> copipe::task<> { static_cast<void>(co_await work); }
    static auto overlapped(copipe::task<tensor> forward, copipe::task<tensor> backward) -> copipe::task<> {
        copipe::alternate pair{std::move(forward), std::move(backward)};
        static_cast<void>(co_await pair);
    }

    twin_models models_;
    std::deque<simulated_device> devices_{};
    std::vector<stream*> streams_{};
    std::deque<copipe::stage<simulated_device>> stages_{};
    chunk_seconds result_{};
};

inline auto measure_stage(int blocks, block_seconds const& cost) -> chunk_seconds {
    return stage_measurement{blocks, cost}.measure();
}

/// The makespan of a training step under a policy: the engine itself, both replicas, in virtual time. `blocks` are
/// spread evenly over the policy's stages; messages between ranks take no time.
class step_simulation {
public:
    template <copipe::schedule_policy Policy>
    step_simulation(Policy const& policy, copipe::shape size, int blocks, block_seconds const& cost)
        : plan_(copipe::plan_step(policy, size)), models_(blocks, cost) {
        int const per_stage = blocks / plan_.where.model_stages();
        std::vector<int> bounds;
        for (int s = 0; s <= plan_.where.model_stages(); ++s) bounds.push_back(2 * per_stage * s);
        auto const cut = copipe::partition::given(bounds, 2 * blocks);
        for (int g = 0; g < twin_models::replicas; ++g) {
            auto& net = nets_.emplace_back(size.ranks);
            for (int r = 0; r < size.ranks; ++r) {
                auto const all = plan_.training[static_cast<std::size_t>(r)].actions.size();
                ranks_.emplace_back(plan_, cut, models_.layers(g), r, devices_.emplace_back(models_.clock),
                                    net.connect(r), copipe::pipeline_options{.lookahead = all});
            }
        }
    }
    auto makespan() -> double {
        double const start = models_.clock.now();
        copipe::run(models_.clock, all());
        return models_.clock.now() - start;
    }

private:
    using endpoint = copipe::in_process<simulated_device>::endpoint;

    struct tokens {
        static auto size() -> std::uint64_t { return 1; }
        static void load(std::uint64_t, copipe::host_array& input, copipe::host_array& target) {
            input.resize<float>({twin_models::geometry.tokens, 1}, copipe::dtype::f32);
            target.resize<float>({1}, copipe::dtype::f32);
        }
    };
    auto all() -> copipe::task<> {
        tokens const data;
        copipe::batch const from{copipe::dataset_ref{data}};
        copipe::scope together{co_await copipe::this_environment{}};
        for (auto& each : ranks_) together.spawn(each.run(from, true));
        co_await together.join();
    }

    copipe::step_plan plan_;
    twin_models models_;
    std::deque<copipe::in_process<simulated_device>> nets_{};
    std::deque<simulated_device> devices_{};
    std::deque<copipe::rank_pipeline<simulated_device, endpoint>> ranks_{};
};

template <copipe::schedule_policy Policy>
auto makespan(Policy const& policy, copipe::shape size, int blocks, block_seconds const& cost) -> double {
    return step_simulation{policy, size, blocks, cost}.makespan();
}

} // namespace moe
