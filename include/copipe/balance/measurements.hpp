// SPDX-License-Identifier: Apache-2.0
// What a balancer sees of a run: what each layer costs and how fast each rank is, told apart, from robust medians over
// the last measured steps.
#pragma once

#include "copipe/balance/partition_problem.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>

namespace copipe {

/// What a layer does with a micro-batch.
enum class pass : std::uint8_t { forward, backward_input, backward_weight };

/// Seconds of a layer on one micro-batch.
struct pass_times {
    double forward = 0, backward_input = 0, backward_weight = 0;
    [[nodiscard]] constexpr double total() const noexcept { return forward + backward_input + backward_weight; }
};

/// What a balancer sees. The window fills in what it measures, the trainer the rest.
struct measurements {
    std::uint64_t step = 0; ///< steps trained so far
    stage_map where{};
    int micro_batches = 1;         ///< per step
    row<pass_times> layers{};      ///< [layers] median, brought to the speed of a rank of slowness 1
    row<pass_times> held_out{};    ///< [layers] the same from other steps, for a second opinion
    row<double> slowness{};        ///< [ranks] 1 is the fastest
    row<double> messages{};        ///< [stages - 1] seconds of a message between a stage and the next; 0: none seen
    row<row<double>> waits{};      ///< [ranks] seconds of the last measured step without work, by wait_reason
    double step_seconds = 0;       ///< median
    row<std::size_t> bytes{};      ///< [layers] parameters and optimizer state: what a move carries
    double bytes_per_second = 0;   ///< of one link, while layers move; 0: unknown
    double move_seconds = 0;       ///< what a move takes however little it carries; 0: unknown
    partition_problem memory{};    ///< bytes that a plan must respect: its fields from `parameters` on, where known
};

/// The last measured steps of a run. Allocates nothing after construction but in `summary`. For one thread at a time.
///
/// A timer only gives a layer's cost times its rank's slowness. Slowness comes from probes, a fixed job timed on each
/// rank, if there were any since the last summary. Otherwise a rank whose layers all changed in all passes by one
/// factor has changed itself, unless a mirrored rank with copies of these layers changed as much; any other change is
/// the layers'. Without probes, ranks count as equally fast at first, but for mirrored ones, which copies tell apart.
template <class = void> class basic_measurement_window {
public:
    /// Medians are taken over half of the last `steps` measured steps each, the odd and the even; at least 6 steps.
    basic_measurement_window(int layers, stage_map where, int micro_batches, int steps = 10)
        : where_(where), micro_batches_(micro_batches), layers_(layers), steps_(std::max(6, steps + steps % 2)),
          copies_(where.copies()), sums_(3 * layers * copies_), counts_(sums_.count()),
          rank_(layers * copies_), taken_(steps_, sums_), step_seconds_(steps_), probes_(where.ranks),
          slowness_(where.ranks, 1.0), waits_(where.ranks), message_sums_(where.stages() - 1),
          message_counts_(message_sums_.count()), messages_(steps_, message_sums_) {
        for (auto& each : probes_) each.reserve(static_cast<std::size_t>(steps_));
    }

    /// One layer took `seconds` for a pass of one micro-batch. Within a step the mean counts.
    void record(int rank, int layer, pass what, double seconds) noexcept {
        int const slot = layer + (copies_ == 2 && 2 * rank >= where_.ranks ? layers_ : 0);
        int const at = 3 * slot + static_cast<int>(what);
        rank_[slot] = rank;
        sums_[at] += seconds;
        ++counts_[at];
    }

    /// A job that is the same on all ranks took `seconds` on this one.
    void probe(int rank, double seconds) noexcept {
        auto& kept = probes_[rank];
        if (kept.count() == steps_) kept.erase(kept.begin());
        kept.push_back(seconds);
    }

    /// A message between a stage and the next, either way, took `seconds`. Within a step the mean counts.
    void message(int stage, double seconds) noexcept {
        message_sums_[stage] += seconds;
        ++message_counts_[stage];
    }
    /// For what a rank has waited in the step, in seconds by wait_reason.
    template <class Seconds> void waited(int rank, Seconds const& by_reason) {
        waits_[rank].assign(by_reason.begin(), by_reason.end());
    }

    /// Ends a measured step, which took `seconds`; `trained` steps have been done so far.
    void end_step(std::uint64_t trained, double seconds) noexcept {
        auto& now = taken_[count_ % steps_];
        for (int at = 0; at < now.count(); ++at) now[at] = counts_[at] > 0 ? sums_[at] / counts_[at] : 0;
        auto& messages = messages_[count_ % steps_];
        for (int at = 0; at < messages.count(); ++at)
            messages[at] = message_counts_[at] > 0 ? message_sums_[at] / message_counts_[at] : 0;
        step_seconds_[count_++ % steps_] = seconds;
        trained_ = trained;
        sums_.assign(sums_.size(), 0);
        counts_.assign(counts_.size(), 0);
        message_sums_.assign(message_sums_.size(), 0);
        message_counts_.assign(message_counts_.size(), 0);
    }

    /// Layers have moved: what ranks took before says nothing of them now. What is known of costs and slowness stays.
    void moved() noexcept { count_ = 0; }

    /// What the window shows; nothing until it is full. Costs, slowness and the time of the step are set.
    [[nodiscard]] auto summary() -> std::optional<measurements> {
        if (count_ < steps_) return {};
        auto const all = medians(taken_, 0, 1);
        if (known_.empty()) known_ = costs(all, [](double a, double b) { return std::min(a, b); });
        find_slowness(all);
        auto const mean = [](double a, double b) { return (a + b) / 2; };
        known_ = costs(all, mean);
        measurements seen{.step = trained_, .where = where_, .micro_batches = micro_batches_};
        seen.step_seconds = median(step_seconds_);
        seen.messages = medians(messages_, 0, 1);
        seen.waits = waits_;
        double const fastest = *std::min_element(slowness_.begin(), slowness_.end());
        for (double const each : slowness_) seen.slowness.push_back(each / fastest);
        for (auto const& [first, into] : {std::pair{0, &seen.layers}, {1, &seen.held_out}}) {
            auto const found = costs(medians(taken_, first, 2), mean);
            for (int at = 0; at < found.count(); at += 3)
                into->push_back({found[at] * fastest, found[at + 1] * fastest, found[at + 2] * fastest});
        }
        return seen;
    }

private:
    [[nodiscard]] static double median(row<double> values) {
        auto const middle = values.begin() + values.count() / 2;
        std::nth_element(values.begin(), middle, values.end());
        return *middle;
    }
    /// Of each number, over every `stride`-th step.
    [[nodiscard]] row<double> medians(row<row<double>> const& steps, int first, int stride) const {
        row<double> found, column;
        for (int at = 0; at < steps[0].count(); ++at) {
            column.clear();
            for (int step = first; step < steps_; step += stride) column.push_back(steps[step][at]);
            found.push_back(median(column));
        }
        return found;
    }
    /// [3 layers] at slowness 1, both copies of a layer joined.
    template <class Join>
    [[nodiscard]] row<double> costs(row<double> const& times, Join join) const {
        row<double> found;
        auto const cost = [&](int at) { return times[at] / slowness_[rank_[at / 3]]; };
        for (int at = 0, copy = (copies_ - 1) * 3 * layers_; at < 3 * layers_; ++at)
            found.push_back(join(cost(at), cost(at + copy)));
        return found;
    }

    void find_slowness(row<double> const& times) {
        row<double> factors;
        for (int rank = 0; rank < where_.ranks; ++rank) factors.push_back(change(rank, times));
        for (int rank = 0; rank < where_.ranks; ++rank) {
            bool const vouched = copies_ == 2 && alike(factors[rank], factors[where_.ranks - 1 - rank]);
            if (!vouched) slowness_[rank] *= factors[rank];
        }
        bool const probed =
            std::none_of(probes_.begin(), probes_.end(), [](auto const& each) { return each.empty(); });
        for (int rank = 0; probed && rank < where_.ranks; ++rank) slowness_[rank] = median(probes_[rank]);
        for (auto& each : probes_) each.clear();
    }
    /// The factor by which all that a rank runs has changed; 1 if there is none, or if it is small.
    [[nodiscard]] double change(int rank, row<double> const& times) const {
        double least = std::numeric_limits<double>::infinity(), most = 0;
        for (int at = 0; at < times.count(); ++at) {
            int const layer = at / 3 % layers_, known = at % (3 * layers_);
            double const whole = known_[3 * layer] + known_[3 * layer + 1] + known_[3 * layer + 2];
            if (rank_[at / 3] != rank || known_[known] < whole / 10) continue; // too short to tell from overheads
            double const factor = times[at] / (known_[known] * slowness_[rank]);
            least = std::min(least, factor);
            most = std::max(most, factor);
        }
        double const middle = (least + most) / 2;
        return alike(least, most) && !(middle > 0.8 && middle < 1.25) ? middle : 1;
    }
    [[nodiscard]] static bool alike(double a, double b) { return std::max(a, b) <= 1.1 * std::min(a, b); }

    stage_map where_;
    int micro_batches_, layers_, steps_, copies_;
    row<double> sums_; ///< [copies x layers x passes] of the step under way; copies on the upper half of ranks last
    row<int> counts_;
    row<int> rank_;           ///< [copies x layers]
    row<row<double>> taken_;  ///< [steps] as sums_, means over the step
    row<double> step_seconds_;
    row<row<double>> probes_; ///< [ranks] since the last summary
    row<double> slowness_, known_{}; ///< as of the last summary; costs [layers x passes]
    row<row<double>> waits_;
    row<double> message_sums_; ///< of the step under way, by the stage before
    row<int> message_counts_;
    row<row<double>> messages_; ///< [steps] means over the step
    int count_ = 0; ///< measured steps since layers moved
    std::uint64_t trained_ = 0;
};

using measurement_window = basic_measurement_window<>;

} // namespace copipe
