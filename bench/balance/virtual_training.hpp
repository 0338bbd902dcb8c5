// SPDX-License-Identifier: Apache-2.0
// A training run of the engine in virtual time, whose layers and devices behave as a scenario says, and whose layers a
// balancer moves.
#pragma once

#include "scenarios.hpp"

#include "copipe/balance/balancer.hpp"
#include "copipe/device/simulated.hpp"
#include "copipe/pipeline/migration.hpp"
#include "copipe/pipeline/rank_pipeline.hpp"
#include "copipe/pipeline/rank_team.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/transport/in_process.hpp"

#include <array>
#include <deque>
#include <optional>

namespace bench {

using copipe::partition;
using copipe::simulated_device;
using copipe::tensor;

/// Seconds: a pass of a layer at load 1, a probe, a layer on its way to another rank, an activation on its way.
inline constexpr double pass_seconds = 1e-3, probe_seconds = 1e-3, layer_seconds = 40e-3, message_seconds = 40e-6;
/// Relative standard deviation of the noise on each layer and on each device, drawn anew for each step.
inline constexpr double layer_noise = 0.02, device_noise = 0.005;

/// The step under way in a scenario.
struct world {
    scenario const* of;
    int step = 0;
    [[nodiscard]] double noise(std::uint64_t what, int which, double deviation) const {
        return 1 + deviation * std::clamp(normal(100 + what, step, which), -4.0, 4.0);
    }
};

/// Takes the time that its world says. Its parameter stands for all that moves with it.
struct timed_layer {
    world const* in;
    int number;
    copipe::parameter all{.name = "all", .sizes = {1000}};

    struct saved {};
    auto parameters() -> std::array<copipe::parameter*, 1> { return {&all}; }
    auto forward(copipe::context<simulated_device>& c, tensor, saved&) -> tensor {
        return work(c, in->of->cost(in->step, number).forward, 0);
    }
    auto backward_input(copipe::context<simulated_device>& c, tensor, saved&) -> tensor {
        return work(c, in->of->cost(in->step, number).backward_input, 1);
    }
    void backward_weight(copipe::context<simulated_device>& c, saved&) {
        work(c, in->of->cost(in->step, number).backward_weight, 2);
    }
    auto work(copipe::context<simulated_device>& c, double units, std::uint64_t pass) const -> tensor {
        if (units > 0) c.stream.launch(pass_seconds * units * in->noise(pass, number, layer_noise));
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

/// What a run came to.
struct outcome {
    double seconds = 0;     ///< of all steps, and of moves unless they are free
    int moves = 0;
    double last_step = 0;   ///< seconds
    double utilisation = 0; ///< in the last step: time that ranks work over the time of the step, the mean of all ranks
};

/// The engine's spans on their way to a window; how long ranks worked.
struct listener {
    copipe::measurement_window* window;
    double busy = 0;
    void record(copipe::span const& each) noexcept {
        if (each.kind <= copipe::span_kind::overlapped_backward) busy += each.seconds();
    }
    void record(copipe::layer_span const& each) noexcept {
        auto const what = each.what.what == copipe::op::forward          ? copipe::pass::forward
                          : each.what.what == copipe::op::backward_input ? copipe::pass::backward_input
                                                                         : copipe::pass::backward_weight;
        window->record(each.rank, each.layer, what, each.seconds());
    }
};

template <copipe::balancer Balancer>
class virtual_training {
    using network = copipe::in_process<simulated_device>;
    using endpoint = network::endpoint;

public:
    virtual_training(scenario const& of, Balancer& decide, partition start, bool free_moves)
        : now_{&of}, decide_(decide), free_(free_moves), plan_(copipe::plan_step(copipe::one_f_one_b{}, {of.ranks, of.micro_batches})),
          cut_(std::move(start)), window_(of.layers, plan_.where, of.micro_batches, window_steps), heard_{&window_},
          net_(of.ranks), team_(of.ranks, clock_) {
        for (int layer = 0; layer < of.layers; ++layer) layers_.add(timed_layer{&now_, layer});
        for (int rank = 0; rank < of.ranks; ++rank) {
            devices_.emplace_back(clock_, copipe::simulated_behaviour{
                .seconds_per_byte = layer_seconds / 4000, .stretch = [this, rank](double, double seconds) {
                    return seconds * now_.of->slowness(now_.step, rank) * now_.noise(3, rank, device_noise);
                }});
            ranks_.emplace_back(plan_, cut_, layers_, rank, devices_.back(), net_.connect(rank),
                                copipe::pipeline_options{.listener = copipe::observer_ref{heard_}});
            probes_.push_back(&devices_.back().open_stream("probe"));
        }
    }

    outcome run() {
        outcome done;
        nothing const data;
        copipe::batch const from{copipe::dataset_ref{data}};
        for (; now_.step < now_.of->steps; ++now_.step) {
            double const started = clock_.now();
            heard_.busy = 0;
            team_.run([&](int rank) {
                return ranks_[static_cast<std::size_t>(rank)].run(from, true, decide_.check_every() > 0 ? copipe::timing::on : copipe::timing::off);
            });
            done.last_step = clock_.now() - started;
            done.seconds += done.last_step;
            done.utilisation = heard_.busy / done.last_step / now_.of->ranks;
            if (decide_.check_every() == 0) continue;
            for (int rank = 0; rank < now_.of->ranks; ++rank) window_.probe(rank, probe(rank));
            window_.end_step(static_cast<std::uint64_t>(now_.step) + 1, done.last_step);
            if ((now_.step + 1) % decide_.check_every() == 0) look(done);
        }
        return done;
    }

    static constexpr int window_steps = 10;

private:
    double probe(int rank) {
        auto& on = *probes_[static_cast<std::size_t>(rank)];
        on.launch(probe_seconds);
        return on.record().time() - clock_.now();
    }
    void look(outcome& done) {
        auto seen = free_ ? copipe::measurements{.step = static_cast<std::uint64_t>(now_.step) + 1} : window_.summary();
        if (!seen) return;
        seen->bytes.assign(static_cast<std::size_t>(now_.of->layers), 4000);
        seen->bytes_per_second = 4000 / layer_seconds;
        auto const to = decide_.propose(*seen, cut_);
        if (!to) return;
        double const started = clock_.now();
        std::deque<copipe::migration<simulated_device, endpoint>> moves;
        for (auto& each : ranks_) moves.emplace_back(each, layers_, cut_, *to);
        team_.run([&](int rank) { return moves[static_cast<std::size_t>(rank)].transfer(); });
        for (auto& each : moves) each.commit();
        cut_ = *to;
        window_.moved();
        ++done.moves;
        if (!free_) done.seconds += clock_.now() - started;
    }

    world now_;
    Balancer& decide_;
    bool free_;
    copipe::step_plan plan_;
    partition cut_;
    copipe::measurement_window window_;
    listener heard_;
    copipe::simulation clock_;
    copipe::model<simulated_device> layers_;
    network net_;
    copipe::rank_team team_;
    std::deque<simulated_device> devices_;
    std::deque<copipe::rank_pipeline<simulated_device, endpoint>> ranks_;
    std::vector<copipe::simulated_stream*> probes_;
};

} // namespace bench
