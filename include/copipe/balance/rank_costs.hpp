// SPDX-License-Identifier: Apache-2.0
// What ranks take for the stages that they hold, in time and in memory.
#pragma once

#include "copipe/balance/partition_problem.hpp"
#include "copipe/balance/recompute.hpp"

#include <array>
#include <map>

namespace copipe {

/// The sums of all runs of values.
class running_sums {
public:
    running_sums(row<ticks> const& values) {
        for (ticks const value : values) sums_.push_back(sums_.back() + value);
    }
    [[nodiscard]] ticks operator()(int begin, int end) const { return sums_[end] - sums_[begin]; }
    [[nodiscard]] ticks total() const { return sums_.back(); }

private:
    row<ticks> sums_{0};
};

/// A rank that holds the stage from `a` to `b` and, where stages are mirrored, the stage from `c` to `d`, b <= c. Where
/// ranks share stages, rank r stands for a group of r + 1 of them.
template <class = void> class basic_rank_costs {
public:
    explicit basic_rank_costs(partition_problem const& problem)
        : problem_(problem), forward_(problem.forward), parameters_(problem.parameters),
          activations_(problem.activations), own_work_(!problem.costs.empty()),
          limited_(!problem.capacity.empty() && problem.order != stage_order::loop),
          plain_(!limited_ && !problem.lock_step && problem.sync == 0) {
        for (int rank = 0; rank < problem.ranks; ++rank) slow_.push_back(problem.slowness(rank));
        for (auto const& own : problem.costs) work_.push_back(own);
        if (work_.empty()) work_.push_back(problem.weights);
    }

    [[nodiscard]] running_sums const& work() const noexcept { return work_[0]; }
    /// The most work that a rank can do in `bound`.
    [[nodiscard]] ticks room(int rank, ticks bound) const {
        return std::min(bound / slow_[rank] * (problem_.lock_step ? 2 : 1), work_[0].total());
    }

    /// Work, recomputation included, but no messages; `never` where the memory does not suffice. Never less where a
    /// stage gets more layers.
    [[nodiscard]] ticks floor(int rank, int a, int b, int c = 0, int d = 0) const {
        ticks const work = work_[own_work_ * rank](a, b) + work_[own_work_ * rank](c, d);
        return plain_ ? slow_[rank] * work : special_time(rank, work, a, b, c, d);
    }
    /// The same with messages: what counts where a rank has one stage.
    [[nodiscard]] ticks time(int rank, int begin, int end) const {
        ticks const own = floor(rank, begin, end);
        if (problem_.transfer.empty() || own == never) return own;
        if (problem_.order == stage_order::replicated)
            return std::max(own, begin > 0 ? slow_[0] * problem_.transfer[begin] : 0);
        ticks const in = rank > 0 ? problem_.link[rank - 1] * problem_.transfer[begin] : 0;
        ticks const out = rank + 1 < problem_.ranks ? problem_.link[rank] * problem_.transfer[end] : 0;
        return problem_.overlapped ? std::max(own, out) : in + own + out;
    }

    /// The bytes that a rank needs, if nothing is recomputed.
    [[nodiscard]] ticks bytes(int rank, int a, int b, int c = 0, int d = 0) const {
        ticks const far = problem_.mirrored() ? problem_.in_flight_far[rank] * activations_(c, d) : 0;
        return (problem_.fixed.empty() ? 0 : problem_.fixed[rank]) + parameters_(a, b) + parameters_(c, d) +
               problem_.in_flight[rank] * activations_(a, b) + far;
    }
    /// The layers to recompute so that the rank, and where stages are on two the other one, has enough memory.
    [[nodiscard]] recompute_choice recomputed(int rank, int a, int b, int c = 0, int d = 0) const {
        ticks lacks = limited_ ? bytes(rank, a, b, c, d) - problem_.capacity[rank] : 0;
        int const other = problem_.ranks - 1 - rank;
        bool const copied = limited_ && problem_.order == stage_order::bidirectional;
        if (copied) lacks = std::max(lacks, bytes(other, c, d, a, b) - problem_.capacity[other]);
        if (lacks <= 0) return {0, {}, true};
        if (problem_.checkpoint.empty()) return {never, {}, true};
        row<recompute_option> options;
        bool alike = true;
        auto const offer = [&](int layer, ticks here, ticks there) {
            options.push_back({layer, copied ? std::min(here, there) : here, problem_.forward[layer]});
            alike = alike && (!copied || here == there);
        };
        for (int i = a; i < b; ++i) offer(i, saves(i, rank, false), copied ? saves(i, other, true) : 0);
        for (int i = c; i < d; ++i) offer(i, saves(i, rank, true), copied ? saves(i, other, false) : 0);
        auto choice = choose_recompute(options, lacks + problem_.recompute_space);
        choice.exact = choice.exact && alike;
        return choice;
    }
    /// The same for a rank of `loop` and all its stages.
    [[nodiscard]] recompute_choice recomputed(int rank, row<int> const& bounds) const {
        if (problem_.capacity.empty()) return {0, {}, true};
        ticks lacks = (problem_.fixed.empty() ? 0 : problem_.fixed[rank]) - problem_.capacity[rank];
        row<recompute_option> options;
        for (int stage = rank; stage < problem_.stages(); stage += problem_.ranks) {
            int const begin = bounds[stage], end = bounds[stage + 1];
            lacks += parameters_(begin, end) + problem_.in_flight[stage] * activations_(begin, end);
            for (int i = begin; i < end && !problem_.checkpoint.empty(); ++i)
                options.push_back({i, saves(i, stage, false), problem_.forward[i]});
        }
        if (lacks <= 0) return {0, {}, true};
        return choose_recompute(options, lacks + problem_.recompute_space);
    }
    /// What a rank of `loop` does in all its stages; `never` where the memory does not suffice.
    [[nodiscard]] ticks looped(int rank, row<int> const& bounds) const {
        auto const choice = recomputed(rank, bounds);
        exact_ = exact_ && choice.exact;
        ticks work = choice.extra;
        for (int stage = rank; work != never && stage < problem_.stages(); stage += problem_.ranks)
            work += work_[0](bounds[stage], bounds[stage + 1]);
        return work == never ? never : slow_[rank] * work;
    }
    /// [layers] the bytes that each layer takes at least in a stage of `loop`.
    [[nodiscard]] running_sums least_bytes(int stage) const {
        row<ticks> each;
        for (int i = 0; i < problem_.layers(); ++i) {
            ticks const saved = problem_.checkpoint.empty() ? 0 : std::max<ticks>(0, saves(i, stage, false));
            each.push_back(problem_.parameters[i] + problem_.in_flight[stage] * problem_.activations[i] - saved);
        }
        return each;
    }

    /// Whether all answers so far were exact: the choice of layers to recompute has a limit.
    [[nodiscard]] bool exact() const noexcept { return exact_; }

private:
    [[nodiscard]] ticks special_time(int rank, ticks work, int a, int b, int c, int d) const {
        if (problem_.lock_step) {
            ticks const one_way = forward_(a, b) + work_[0](c, d) - forward_(c, d);
            work = std::max(one_way, work - one_way);
        }
        if (problem_.sync > 0) work += 2 * rank * problem_.sync * parameters_(a, b);
        ticks const extra = limited_ ? extra_time(rank, a, b, c, d) : 0;
        return extra == never ? never : slow_[rank] * (work + extra);
    }
    [[nodiscard]] ticks extra_time(int rank, int a, int b, int c, int d) const {
        if (problem_.checkpoint.empty()) return recomputed(rank, a, b, c, d).extra;
        auto const [known, is_new] = known_.try_emplace({rank, a, b, c, d});
        if (is_new) {
            auto const choice = recomputed(rank, a, b, c, d);
            known->second = choice.extra;
            exact_ = exact_ && choice.exact;
        }
        return known->second;
    }
    /// Bytes that a rank saves if a layer of its one stage, or of the far one, is recomputed.
    [[nodiscard]] ticks saves(int layer, int rank, bool far) const {
        auto const& restored = far ? problem_.restored_far : problem_.restored;
        ticks const in_flight = (far ? problem_.in_flight_far : problem_.in_flight)[rank];
        ticks const back = restored.empty() ? 0 : restored[rank], all = problem_.activations[layer];
        return in_flight * (all - problem_.checkpoint[layer]) - back * all;
    }

    partition_problem const& problem_;
    running_sums forward_, parameters_, activations_;
    row<running_sums> work_;
    row<ticks> slow_;
    int own_work_; ///< 1 where each rank has its own sums of work, else 0
    bool limited_, plain_;
    mutable std::map<std::array<int, 5>, ticks> known_;
    mutable bool exact_ = true;
};

using rank_costs = basic_rank_costs<>;

} // namespace copipe
