// SPDX-License-Identifier: Apache-2.0
#include "cuda/toy.hpp"

#include "cuda/toy_engine.hpp"

#include "copipe/transport/in_process.hpp"

#include <exception>

namespace cuda_toy {
namespace {

using endpoint = copipe::in_process<cuda_device>::endpoint;

template <class Effect>
void kernel(context& c, char const* name, double seconds, Effect effect) {
    c.stream.launch(name, [&](cudaStream_t on) { fake::launch(on, name, seconds, effect); });
}

/// Half the mean squared distance to the target. Costs nothing in virtual time.
struct distance {
    struct saved {
        tensor d;
    };
    auto forward(context& c, tensor x, saved& s) -> tensor {
        s.d = c.make(x.sizes());
        tensor loss = c.make({1});
        kernel(c, "distance", 0, [y = x.data(), t = c.target.data(), d = s.d.data(), out = loss.data(), n = x.count()] {
            float sum = 0;
            for (std::size_t i = 0; i < n; ++i) {
                d[i] = y[i] - t[i];
                sum += d[i] * d[i];
            }
            *out = sum / (2 * static_cast<float>(n));
        });
        return loss;
    }
    auto backward_input(context& c, tensor, saved& s) -> tensor {
        tensor dx = c.make(s.d.sizes());
        kernel(c, "distance backward", 0,
               [d = s.d.data(), out = dx.data(), n = dx.count(), f = c.scale / static_cast<float>(dx.count())] {
                   for (std::size_t i = 0; i < n; ++i) out[i] = d[i] * f;
               });
        return dx;
    }
};

} // namespace

auto wave::forward(context& c, tensor x, saved& s) -> tensor {
    tensor y = c.make(x.sizes());
    s.t = c.make(x.sizes());
    kernel(c, "wave forward", forward_seconds,
           [in = x.data(), a = w.value.data(), t = s.t.data(), out = y.data(), n = x.count()] {
               for (std::size_t i = 0; i < n; ++i) out[i] = in[i] + (t[i] = std::tanh(a[i % width] * in[i]));
           });
    s.x = std::move(x);
    return y;
}
auto wave::backward_input(context& c, tensor dy, saved& s) -> tensor {
    tensor dx = c.make(dy.sizes());
    s.g = c.make(dy.sizes());
    kernel(c, "wave backward input", input_seconds,
           [d = dy.data(), a = w.value.data(), t = s.t.data(), g = s.g.data(), out = dx.data(), n = dy.count()] {
               for (std::size_t i = 0; i < n; ++i)
                   out[i] = d[i] + (g[i] = d[i] * (1 - t[i] * t[i])) * a[i % width];
           });
    return dx;
}
void wave::backward_weight(context& c, saved& s) {
    kernel(c, "wave backward weight", weight_seconds,
           [in = s.x.data(), g = s.g.data(), dw = w.gradient.data(), n = s.x.count()] {
               for (std::size_t i = 0; i < n; ++i) dw[i % width] += in[i] * g[i];
           });
}

auto network(std::vector<wave> const& waves) -> copipe::model<cuda_device> {
    copipe::model<cuda_device> layers;
    for (wave const& each : waves) layers.add(each);
    layers.add(distance{});
    return layers;
}

struct pipeline::engine {
    engine(fake::machine& gpus, copipe::step_plan const& plan, copipe::model<cuda_device> const& layers,
           setup const& how)
        : cut(how.cut ? *how.cut
                      : copipe::partition::even(static_cast<int>(layers.size()), plan.where.model_stages())),
          groups(copipe::parameter_groups(layers, cut, plan.where)),
          net(plan.where.ranks),
          exec(gpus) {
        for (int r = 0; r < net.ranks(); ++r) {
            auto& dev = devices.emplace_back(
                copipe::cuda_options{.gpu = r % how.gpus, .polling = how.polling, .make_stream = {}});
            exec.serve(dev);
            ranks.emplace_back(plan, cut, layers, r, dev, net.connect(r),
                               copipe::pipeline_options{.lookahead = how.lookahead, .seed = 3, .listener = {}});
            reductions.emplace_back(ranks.back(), groups);
        }
    }

    copipe::partition cut;
    std::vector<copipe::parameter_group> groups;
    numbers data{};
    copipe::in_process<cuda_device> net;
    driver exec;
    std::optional<copipe::rank_team> team{};
    std::deque<cuda_device> devices{};
    std::deque<copipe::rank_pipeline<cuda_device, endpoint>> ranks{};
    std::deque<copipe::gradient_reduction<cuda_device, endpoint>> reductions{};
    std::exception_ptr echo_{};

    auto all_ranks(std::uint64_t first) -> copipe::task<> {
        copipe::batch const from{copipe::dataset_ref{data}, first};
        std::exception_ptr cause;
        copipe::scope together{co_await copipe::this_environment{}};
        for (std::size_t r = 0; r < ranks.size(); ++r) together.spawn(noted(r, from, cause));
        co_await together.join();
        auto const echo = std::exchange(echo_, nullptr);
        if (cause) std::rethrow_exception(cause);
        if (echo) std::rethrow_exception(echo);
    }
    /// Keeps a rank's failure, but not that another one failed.
    auto noted(std::size_t r, copipe::batch const& from, std::exception_ptr& cause) -> copipe::task<> {
        try {
            co_await step_of(r, from);
        } catch (copipe::peer_failed const&) {
            if (!cause) echo_ = std::current_exception();
        } catch (...) {
            cause = std::current_exception();
        }
    }
    auto step_of(std::size_t r, copipe::batch const& from) -> copipe::task<> {
        co_await ranks[r].run(from, true);
        co_await reductions[r].sum();
        auto const summed = ranks[r].compute_stream().record();
        co_await summed.completion();
        summed.check();
    }
};

pipeline::pipeline(fake::machine& gpus, copipe::step_plan planned, copipe::model<cuda_device> const& layers,
                   setup const& how)
    : plan_(std::move(planned)),
      engine_(std::make_unique<engine>(gpus, plan_, layers, how)),
      devices(engine_->devices) {}
pipeline::~pipeline() = default;

void pipeline::step_by_test(std::uint64_t first) {
    auto& exec = engine_->exec;
    exec.on_deadlock = [this] { engine_->net.connect(0).abort(); };
    try {
        copipe::run(exec, engine_->all_ranks(first));
    } catch (...) {
        if (!exec.stuck().empty()) throw deadlock(exec.stuck());
        throw;
    }
}
void pipeline::step_by_threads(std::uint64_t first) {
    if (!engine_->team) engine_->team.emplace(engine_->net.ranks());
    copipe::batch const from{copipe::dataset_ref{engine_->data}, first};
    engine_->team->run([&](int r) { return engine_->step_of(static_cast<std::size_t>(r), from); });
}
void pipeline::recover() {
    for (auto& each : engine_->ranks) each.recover();
}
auto pipeline::result() -> outcome {
    return outcome_of(plan_, engine_->groups, engine_->ranks, engine_->reductions);
}

} // namespace cuda_toy
