// SPDX-License-Identifier: Apache-2.0
// A trainer's balancer and what it is shown: measured steps in, now and then a move out. Costs nothing, not even time
// to compile, where the balancer's type says that it is never asked.
#pragma once

#include "copipe/balance/balancer.hpp"
#include "copipe/balance/measured_problem.hpp"
#include "copipe/pipeline/step_plan.hpp"
#include "copipe/train/layer_cut.hpp"
#include "copipe/train/run_measurements.hpp"
#include "copipe/train/trainer_options.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

namespace copipe {

/// A balancer whose check_every() is the constant 0.
template <class Balancer>
concept idle_balancer = balancer<Balancer> && std::bool_constant<(Balancer::check_every() == 0)>::value;

/// Between steps, on the trainer's thread. All but `is_asked` is only for balancers that are.
template <balancer Balancer>
class balancing {
public:
    explicit balancing(Balancer decides) : balancer_(std::move(decides)) {}

    [[nodiscard]] auto balancer() noexcept -> Balancer& { return balancer_; }
    [[nodiscard]] auto balancer() const noexcept -> Balancer const& { return balancer_; }
    [[nodiscard]] auto is_asked() const -> bool { return balancer_.check_every() > 0; }

    /// Layers of these bytes train by a plan; `every` is the option `measure_every`.
    void begin(std::vector<std::size_t> bytes, step_plan const& plan, std::uint64_t every) {
        seen_.emplace(std::move(bytes), plan.where, plan.micro_batches,
                      static_cast<std::uint64_t>(balancer_.check_every()), every);
    }
    /// What the run has shown; the trainer fills it in. Nothing before `begin`.
    [[nodiscard]] auto seen() noexcept -> std::optional<run_measurements>& { return seen_; }
    [[nodiscard]] auto seen() const noexcept -> std::optional<run_measurements> const& { return seen_; }

    /// After every step: tells a balancer that wants to know how long the ranks worked. If it notices a change, the
    /// next steps are measured.
    void watch(step_report const& report) {
        if constexpr (requires(row<double> const& work) { balancer_.notices(work, report.step); }) {
            row<double> work;
            for (rank_summary const& each : report.measured.ranks) work.push_back(each.busy);
            if (balancer_.notices(work, report.step + 1)) seen_->hurry();
        }
    }

    /// Asks the balancer after so many steps, if it is the time: what it wants to move, and why. Layers then cost what
    /// was measured.
    [[nodiscard]] auto ask(std::uint64_t trained, layer_cut& cut) -> std::optional<move_report> {
        auto question = seen_ ? seen_->question(trained) : std::nullopt;
        if (!question) return {};
        if (cut.memory()) question->memory = *cut.memory();
        std::optional<partition> const to = balancer_.propose(*question, cut.now());
        if (!to || *to == cut.now()) return {};
        if (cut.memory()) cut.learn(problem_of(*question, question->layers));
        move_report found{.from = cut.now(), .to = *to};
        if constexpr (requires { balancer_.last_decision().text(); }) {
            auto const& decided = balancer_.last_decision();
            found.gain = decided.now > 0 ? 1 - decided.best / decided.now : 0;
            found.why = decided.text();
        }
        return found;
    }

private:
    Balancer balancer_;
    std::optional<run_measurements> seen_{};
};

} // namespace copipe
