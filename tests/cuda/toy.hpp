// SPDX-License-Identifier: Apache-2.0
// A small model on the fake CUDA runtime, and all ranks of a pipeline that trains it: on threads, or driven by the test
// in virtual time.
#pragma once

#include "cuda/fake_cuda.hpp"

#include "copipe/async/scope.hpp"
#include "copipe/device/cuda.hpp"
#include "copipe/pipeline/gradient_reduction.hpp"
#include "copipe/pipeline/rank_team.hpp"
#include "copipe/transport/in_process.hpp"

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <cstdlib>
#include <deque>
#include <exception>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace cuda_toy {

using copipe::cuda_device;
using copipe::tensor;
using context = copipe::context<cuda_device>;
using endpoint = copipe::in_process<cuda_device>::endpoint;

inline constexpr std::int64_t width = 4;

template <class Effect>
void kernel(context& c, char const* name, double seconds, Effect effect) {
    c.stream.launch(name, [&](cudaStream_t on) { fake::launch(on, name, seconds, effect); });
}

/// y = x + tanh(w x), element by element.
struct wave {
    struct saved {
        tensor x, t, g;
    };
    double forward_seconds = 0, input_seconds = 0, weight_seconds = 0;
    copipe::parameter w{.name = "w", .sizes = {width}, .first = copipe::normal(0.5)};

    auto parameters() { return std::array{&w}; }
    auto forward(context& c, tensor x, saved& s) -> tensor {
        tensor y = c.make(x.sizes());
        s.t = c.make(x.sizes());
        kernel(c, "wave forward", forward_seconds,
               [in = x.data(), a = w.value.data(), t = s.t.data(), out = y.data(), n = x.count()] {
                   for (std::size_t i = 0; i < n; ++i) out[i] = in[i] + (t[i] = std::tanh(a[i % width] * in[i]));
               });
        s.x = std::move(x);
        return y;
    }
    auto backward_input(context& c, tensor dy, saved& s) -> tensor {
        tensor dx = c.make(dy.sizes());
        s.g = c.make(dy.sizes());
        kernel(c, "wave backward input", input_seconds,
               [d = dy.data(), a = w.value.data(), t = s.t.data(), g = s.g.data(), out = dx.data(), n = dy.count()] {
                   for (std::size_t i = 0; i < n; ++i)
                       out[i] = d[i] + (g[i] = d[i] * (1 - t[i] * t[i])) * a[i % width];
               });
        return dx;
    }
    void backward_weight(context& c, saved& s) {
        kernel(c, "wave backward weight", weight_seconds,
               [in = s.x.data(), g = s.g.data(), dw = w.gradient.data(), n = s.x.count()] {
                   for (std::size_t i = 0; i < n; ++i) dw[i % width] += in[i] * g[i];
               });
    }
};

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

/// Micro-batches of three rows of random numbers.
struct numbers {
    [[nodiscard]] static auto size() -> std::uint64_t { return 64; }
    static void load(std::uint64_t index, copipe::host_array& input, copipe::host_array& target) {
        copipe::counter_random const random{17, index};
        float* const x = input.resize<float>({3, width}, copipe::dtype::f32);
        float* const y = target.resize<float>({3, width}, copipe::dtype::f32);
        for (std::size_t i = 0; i < 3 * width; ++i) {
            x[i] = static_cast<float>(random.normal(2 * i));
            y[i] = static_cast<float>(random.normal(2 * i + 1));
        }
    }
};

inline auto network(std::vector<wave> const& waves) -> copipe::model<cuda_device> {
    copipe::model<cuda_device> layers;
    for (wave const& each : waves) layers.add(each);
    layers.add(distance{});
    return layers;
}

struct deadlock : copipe::error {
    using error::error;
};

/// The executor of all ranks in virtual time: when no coroutine can run, it asks the pollers, then lets time pass.
class driver final : public copipe::executor {
public:
    explicit driver(fake::machine& gpus) : gpus_(&gpus) {}
    void serve(cuda_device& dev) { devices_.push_back(&dev); }
    /// Asked first when nothing can go on, if it is set.
    std::function<void()> watch{};
    /// Makes every await end when nothing can go on; `stuck` then says what was waited for.
    std::function<void()> on_deadlock{};
    [[nodiscard]] auto stuck() const -> std::string const& { return stuck_; }

private:
    void idle() override {
        take_woken();
        if (run_one()) return;
        std::size_t woken = 0;
        for (cuda_device* each : devices_) woken += each->poller().poll();
        if (woken == 0 && !gpus_->advance()) {
            if (watch) {
                watch();
                take_woken();
                if (run_one() || gpus_->advance()) return;
            }
            if (!stuck_.empty()) std::abort(); // the way out below did not help
            stuck_ = "every coroutine waits and no GPU has work that can run. " + gpus_->stuck();
            on_deadlock();
        }
        take_woken();
    }
    std::string stuck_{};
    fake::machine* gpus_;
    std::vector<cuda_device*> devices_{};
};

struct setup {
    std::size_t lookahead = 4;
    int gpus = 1; ///< over which the ranks are spread in turn
    copipe::cuda_polling polling = copipe::cuda_polling::by_program;
    std::optional<copipe::partition> cut{};
};

/// What a training step came to.
struct outcome {
    std::vector<double> losses;
    std::vector<std::vector<float>> gradients; ///< by parameter

    [[nodiscard]] auto same_bits(outcome const& other) const -> bool {
        if (losses.size() != other.losses.size() || gradients.size() != other.gradients.size()) return false;
        bool same = std::memcmp(losses.data(), other.losses.data(), losses.size() * sizeof(double)) == 0;
        for (std::size_t i = 0; i < gradients.size(); ++i)
            same = same && std::memcmp(gradients[i].data(), other.gradients[i].data(), width * sizeof(float)) == 0;
        return same;
    }
    [[nodiscard]] auto close_to(outcome const& other) const -> bool {
        for (std::size_t i = 0; i < gradients.size(); ++i)
            for (std::size_t j = 0; j < width; ++j)
                if (std::abs(gradients[i][j] - other.gradients.at(i)[j]) > 1e-6F) return false;
        return losses == other.losses;
    }
};

/// Losses of the last step and, after training, gradients; of all copies of a parameter, which must be equal.
template <class Ranks, class Reductions>
auto outcome_of(copipe::step_plan const& plan, std::vector<copipe::parameter_group> const& groups, Ranks& ranks,
                Reductions& reductions) -> outcome {
    outcome found{.losses = std::vector<double>(static_cast<std::size_t>(plan.micro_batches)), .gradients = {}};
    for (auto& each : ranks)
        for (std::size_t m = 0; m < found.losses.size(); ++m) found.losses[m] += each.losses()[m];
    for (copipe::parameter_group const& group : groups) {
        for (copipe::parameter_use const& use : group.uses) {
            auto const r = static_cast<std::size_t>(use.rank);
            std::vector<float> values(width);
            ranks[r].compute_stream().copy(values.data(), reductions[r].local(use).gradient.data(), width * 4);
            ranks[r].compute_stream().synchronize();
            if (&use == &group.uses.front())
                found.gradients.push_back(values);
            else if (values != found.gradients.back())
                throw std::logic_error("copies of a parameter have different gradients");
        }
    }
    return found;
}

class pipeline {
public:
    template <copipe::schedule_policy Policy>
    pipeline(fake::machine& gpus, Policy const& policy, copipe::shape size, copipe::model<cuda_device> const& layers,
             setup const& how = {})
        : plan(copipe::plan_step(policy, size)),
          cut(how.cut ? *how.cut
                      : copipe::partition::even(static_cast<int>(layers.size()), plan.where.model_stages())),
          groups(copipe::parameter_groups(layers, cut, plan.where)),
          net(size.ranks),
          exec(gpus) {
        for (int r = 0; r < size.ranks; ++r) {
            auto& dev = devices.emplace_back(
                copipe::cuda_options{.gpu = r % how.gpus, .polling = how.polling, .make_stream = {}});
            exec.serve(dev);
            ranks.emplace_back(plan, cut, layers, r, dev, net.connect(r),
                               copipe::pipeline_options{.lookahead = how.lookahead, .seed = 3, .listener = {}});
            reductions.emplace_back(ranks.back(), groups);
        }
    }

    /// A step in virtual time, on the calling thread.
    void step_by_test(std::uint64_t first = 0) {
        exec.on_deadlock = [this] { net.connect(0).abort(); };
        try {
            copipe::run(exec, all_ranks(first));
        } catch (...) {
            if (!exec.stuck().empty()) throw deadlock(exec.stuck());
            throw;
        }
    }
    /// A step with a thread for each rank.
    void step_by_threads(copipe::rank_team& team, std::uint64_t first = 0) {
        copipe::batch const from{copipe::dataset_ref{data}, first};
        team.run([&](int r) { return step_of(static_cast<std::size_t>(r), from); });
    }
    void recover() {
        for (auto& each : ranks) each.recover();
    }

    [[nodiscard]] auto result() -> outcome { return outcome_of(plan, groups, ranks, reductions); }

    copipe::step_plan plan;
    copipe::partition cut;
    std::vector<copipe::parameter_group> groups;
    numbers data{};
    copipe::in_process<cuda_device> net;
    driver exec;
    std::deque<cuda_device> devices{};
    std::deque<copipe::rank_pipeline<cuda_device, endpoint>> ranks{};
    std::deque<copipe::gradient_reduction<cuda_device, endpoint>> reductions{};

private:
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

} // namespace cuda_toy
