// SPDX-License-Identifier: Apache-2.0
// What the pipelines on the fake CUDA runtime, over whatever transport, have in common: the executor in virtual time,
// and the result of a step.
#pragma once

#include "cuda/toy.hpp"

#include "copipe/async/scope.hpp"
#include "copipe/pipeline/gradient_reduction.hpp"
#include "copipe/pipeline/rank_team.hpp"

#include <cstddef>
#include <cstdlib>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace cuda_toy {

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

} // namespace cuda_toy
