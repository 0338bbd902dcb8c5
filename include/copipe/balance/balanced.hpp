// SPDX-License-Identifier: Apache-2.0
// The balancer that plans exactly and moves when that pays: at the latest when staying has cost as much as a move.
#pragma once

#include "copipe/balance/balancer.hpp"
#include "copipe/balance/drift_alarm.hpp"
#include "copipe/balance/measured_problem.hpp"
#include "copipe/balance/solve_partition.hpp"

#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <utility>

namespace copipe {

/// When `balanced` looks, and when it moves.
struct balanced_options {
    int check_every = 100;  ///< steps
    double alarm = 0.02;    ///< looks earlier when a rank's work has changed by this share of the longest's, when a
                            ///< plan begins to pay, and for the first time after some 20 steps; 0: does not
    double slack = 0.01;    ///< of plans this near to the best, but not to the present, the one that moves least
    double least_cost = 1;  ///< what a move is taken to cost at least, in steps
    int dwell = 200;        ///< a move within so many steps after another must pay twice what that had to, and so on
    double caution = 2;     ///< standard errors that are taken off a gain before it counts
};

/// What a look at the measurements came to. Seconds are predicted, for one step unless said otherwise.
struct decision {
    std::uint64_t step = 0;
    double now = 0, best = 0; ///< with the present partition, and with the plan, on measurements it was not fitted to
    double noise = 0;         ///< standard error of such a prediction
    double missed = 0;        ///< seconds in all that the plan would have saved so far
    double cost = 0;          ///< seconds in all that moving would take
    ticks bytes = 0;          ///< that would cross ranks
    bool moves = false;
    char const* why = "nothing was measured yet";

    /// One line for a log.
    template <class = void> [[nodiscard]] std::string text() const {
        std::array<char, 256> numbers{};
        std::snprintf(numbers.data(), numbers.size(),
                      " (a step takes %.3g s, with the plan %.3g s, give or take %.2g s; missed so far %.3g s, "
                      "moving %lld bytes costs %.3g s)",
                      now, best, noise, missed, static_cast<long long>(bytes), cost);
        return "step " + std::to_string(step) + ": " + why + numbers.data();
    }
};

/// Plans with solve_partition from what is measured, and moves when the plan would have saved, since it has been
/// better, what moving costs (ski rental): for one change of costs, at most the cost of one move is lost against
/// knowing the future, besides what passes until the change can be measured. Savings are predicted from measurements
/// that the plan was not fitted to, less what may be noise; while the plan would be worse they are used up again. So
/// neither noise nor a device that throttles and recovers too often makes layers move. It looks every so many steps,
/// and as soon as can be measured when a rank's work in a step has changed. Throws partition_problem_error where the
/// measurements contradict themselves.
class balanced {
public:
    explicit balanced(balanced_options options = {}) : options_(options), alarm_(options.alarm) {
        if (options.check_every > 2 * soon) pays_at_ = soon; // uneven from the start, perhaps
    }

    [[nodiscard]] auto check_every() const noexcept -> int { return options_.check_every; }
    [[nodiscard]] auto last_decision() const noexcept -> decision const& { return last_; }

    template <class = void> [[nodiscard]] auto notices(row<double> const& work, std::uint64_t step) -> bool {
        if (noticed_ || options_.alarm <= 0) return false;
        bool const changed = alarm_.rings(work);
        if (changed) noticed_ = step;
        else if (step >= pays_at_) noticed_ = last_.step; // nothing new, but it may pay by now
        return noticed_.has_value();
    }

    template <class = void>
    [[nodiscard]] auto propose(measurements const& seen, partition const& now) -> std::optional<partition> {
        auto const since = noticed_ ? std::max(last_.step, *noticed_) : last_.step;
        auto const steps = static_cast<double>(
            std::min<std::uint64_t>(seen.step - since, static_cast<std::uint64_t>(options_.check_every)));
        double const ahead = options_.alarm > 0 ? std::min(options_.check_every, soon) : options_.check_every;
        if (noticed_ && *noticed_ > last_.step) alarm_.restart(); // else it was only time: what is usual stays so
        noticed_.reset();
        pays_at_ = std::numeric_limits<std::uint64_t>::max();
        last_ = {.step = seen.step, .missed = last_.missed};
        row<int> const bounds(now.bounds());
        if (bounds != present_) last_.missed = 0;
        present_ = bounds;
        if (last_.missed == 0) plan_ = bounds;

        auto const problem = problem_of(seen, seen.layers), held_out = problem_of(seen, seen.held_out);
        auto const optimum = solve_partition(problem);
        if (!optimum) return stay("no partition fits into memory");
        auto const times = rank_times(problem, bounds);
        double const gap = times.max() / static_cast<double>(optimum->objective) - 1;
        double const slack = std::min(options_.slack, gap / 4);
        present_partition const present{bounds, {seen.bytes.begin(), seen.bytes.end()}, slack};
        auto const best = gap > 0 ? solve_partition(problem, &present) : std::nullopt;
        bool const better = best && best->bounds != bounds;
        if (better) plan_ = best->bounds;

        double const unit = seen.step_seconds / step_time(held_out, bounds, seen.micro_batches);
        last_.now = seen.step_seconds;
        last_.best = unit * step_time(held_out, plan_, seen.micro_batches);
        last_.noise = noise(times, rank_times(held_out, bounds)) * seen.step_seconds;
        last_.bytes = best ? best->moved : 0;
        last_.cost = std::max(options_.least_cost * seen.step_seconds,
                              seen.move_seconds + transfer_seconds(seen, bounds));
        bool const lately = moved_ && seen.step - *moved_ < static_cast<std::uint64_t>(options_.dwell);
        double const needed = last_.cost * (lately ? 2 * hesitation_ : 1);
        double const gain = last_.now - last_.best - options_.caution * last_.noise;
        last_.missed = std::max(0.0, last_.missed + steps * gain);
        if (!better) return stay("the present partition is as good as any");
        if (gain <= 0) return stay("the better plan does not hold on other measurements");
        if (double const lacks = needed - last_.missed - ahead * gain; lacks > 0) {
            pays_at_ = seen.step + static_cast<std::uint64_t>(std::max(1.0, std::min(lacks / gain, 1e9) - soon));
            return stay("moving does not pay yet");
        }
        alarm_.restart();
        last_.moves = true;
        last_.why = "layers move";
        hesitation_ = needed / last_.cost;
        moved_ = seen.step;
        return partition::given(plan_, now.layers());
    }

private:
    static constexpr int soon = 10; ///< steps that must be measured before a look

    template <class = void> auto stay(char const* why) -> std::optional<partition> {
        last_.why = why;
        return {};
    }
    template <class = void>
    [[nodiscard]] auto transfer_seconds(measurements const& seen, row<int> const& bounds) const -> double {
        if (seen.bytes_per_second <= 0) return 0;
        return busiest_transfer(seen.where, bounds, plan_, seen.bytes) / seen.bytes_per_second;
    }
    /// The relative standard error of ranks' times, from how much two halves of the measurements disagree, now and
    /// before.
    template <class = void> auto noise(row<double> const& fitted, row<double> const& held_out) -> double {
        double squares = 0;
        for (int rank = 0; rank < fitted.count(); ++rank) squares += std::pow(fitted[rank] - held_out[rank], 2) / 2;
        double const variance = squares / fitted.count() / std::pow(held_out.max(), 2);
        variance_ = variance_ < 0 ? variance : (3 * variance_ + variance) / 4;
        return std::sqrt(variance_);
    }

    balanced_options options_;
    drift_alarm alarm_;
    std::optional<std::uint64_t> noticed_{}; ///< since when something is different
    std::uint64_t pays_at_ = std::numeric_limits<std::uint64_t>::max(); ///< step about which a move begins to pay
    decision last_{};
    row<int> present_{}, plan_{}; ///< bounds
    std::optional<std::uint64_t> moved_{}; ///< when
    double hesitation_ = 1; ///< how many times its cost the last move had to pay
    double variance_ = -1; ///< of a rank's time, relative; negative: unknown
};
static_assert(balancer<balanced>);

} // namespace copipe
