// SPDX-License-Identifier: Apache-2.0
// Which layers form which stage, and which of them are recomputed so that every rank stays within its memory.
#pragma once

#include "copipe/pipeline/step_plan.hpp"
#include "copipe/train/memory_plan.hpp"

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace copipe {

/// A partition that a trainer uses, with what limits of memory ask for, if there are any.
template <class = void> class basic_layer_cut {
public:
    /// Of so many layers under a plan; `states` and `lookahead` as for memory_problem. `first`, if it does not fit into
    /// memory and is not `told`, gives way to a partition that does. Throws partition_error or memory_error.
    basic_layer_cut(step_plan const& plan, int layers, partition const& first, bool told,
                    std::optional<memory_limit> const& limit, std::size_t states, std::size_t lookahead)
        : policy_(plan.policy), stages_(plan.where.model_stages()), now_{checked(first, layers)} {
        if (!limit) return;
        planner_ = limit->planner;
        std::vector<program> programs;
        for (rank_program const& each : plan.training) programs.push_back(each.actions);
        memory_ = planner_->problem(*limit, programs, plan.where, states, lookahead);
        now_ = planner_->fit(*memory_, now_.cut, told);
    }

    [[nodiscard]] auto now() const noexcept -> partition const& { return now_.cut; }
    /// The layers that are recomputed for want of memory, in order.
    [[nodiscard]] auto recomputed() const noexcept -> row<int> const& { return now_.recomputed; }
    [[nodiscard]] auto memory() const noexcept -> std::optional<partition_problem> const& { return memory_; }

    /// Another partition of the same layers. Throws partition_error or memory_error.
    [[nodiscard]] auto moved(partition const& to) const -> basic_layer_cut {
        basic_layer_cut next = *this;
        next.now_ = {checked(to, now().layers())};
        if (memory_) next.now_ = planner_->fit(*memory_, next.now(), true);
        return next;
    }
    /// From now on limits of memory go with what was measured.
    void learn(partition_problem measured) { memory_ = std::move(measured); }

private:
    [[nodiscard]] auto checked(partition const& given, int layers) const -> partition {
        if (given.stages() == stages_) return partition::given(given.bounds(), layers);
        throw partition_error("the partition has " + std::to_string(given.stages()) + " stages, but " +
                              std::string(policy_) + " cuts the model into " + std::to_string(stages_));
    }

    std::string_view policy_;
    int stages_;
    fitted_layers now_;
    memory_planner const* planner_ = nullptr;
    std::optional<partition_problem> memory_{};
};

using layer_cut = basic_layer_cut<>;

} // namespace copipe
