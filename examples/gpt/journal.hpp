// SPDX-License-Identifier: Apache-2.0
// What train_gpt tells of a run: the line of progress, the log, the timeline, and the table at the end.
#pragma once

#include "copipe/observe/chrome_trace.hpp"
#include "copipe/observe/json_log.hpp"
#include "copipe/observe/progress.hpp"
#include "copipe/observe/run_summary.hpp"
#include "gpt/options.hpp"
#include "gpt/plan.hpp"

#include <array>
#include <cstddef>
#include <cstdio>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace gpt {

/// Notes every step of a run.
class journal {
public:
    /// Opens the log: anew, or at its end for a resumed run. Throws file_error.
    explicit journal(options const& asked)
        : asked_(asked),
          nowhere_(asked.process.rank == 0 ? nullptr : std::fopen("/dev/null", "w"), &std::fclose),
          line_(nowhere_ ? nowhere_.get() : stderr) {
        auto const start = asked.resume.empty() ? copipe::log_start::empty : copipe::log_start::append;
        if (!asked.log.empty()) log_.emplace(asked.log, start);
    }

    void note(copipe::step_report const& report, copipe::recorder const& spans) {
        std::uint64_t const number = report.step + 1;
        double const tokens = tokens_per_step(asked_) / report.seconds;
        summary_.add(report.measured);
        if (seconds_ == 0) first_loss_ = report.loss;
        last_loss_ = report.loss;
        seconds_ += report.seconds;
        if (log_)
            log_->write({.step = static_cast<std::int64_t>(number),
                         .loss = report.loss,
                         .step_seconds = report.seconds,
                         .tokens_per_second = tokens,
                         .gradient_norm = report.gradient_norm,
                         .pipeline_bubble_ratio = report.measured.bubble_ratios(),
                         .moved_to = report.moved ? report.moved->to.bounds() : std::vector<int>{}});
        line_.show({.step = number,
                    .steps = asked_.steps,
                    .loss = report.loss,
                    .step_seconds = report.seconds,
                    .tokens_per_second = tokens,
                    .bubble_ratio = report.measured.mean_bubble_ratio()});
        if (!asked_.timeline.empty()) keep(spans);
        if (report.moved) note(*report.moved, number);
    }

    /// Prints what the balancer saw and decided, if that is new.
    void note(chosen_balancer const& of) {
        if (of.last.step == decided_at_) return;
        decided_at_ = of.last.step;
        std::string seen;
        for (double const each : of.slowness) seen += (seen.empty() ? "" : ", ") + copipe::decimal(each, 2);
        print("balance: ranks take " + seen + " times the fastest's time; " + of.last.text());
    }

    [[nodiscard]] auto moves() const -> std::size_t { return moved_.size(); }

    /// A line above the progress line.
    void print(std::string const& text) { line_.print(text); }

    /// Ends the progress line.
    void finish() { line_.finish(); }

    /// What the run came to, and where its time went, per rank; `peaks` are bytes of memory. Empty if no step was
    /// trained.
    [[nodiscard]] auto summary(std::vector<std::size_t> const& peaks) const -> std::string {
        if (summary_.steps() == 0) return "";
        auto const steps = static_cast<double>(summary_.steps());
        return summary_.table(peaks) + '\n' + copipe::grouped(steps) + " steps in " + copipe::clock_time(seconds_) +
               ", " + copipe::grouped(steps * tokens_per_step(asked_) / seconds_) + " tokens/s; loss from " +
               copipe::decimal(first_loss_, 4) + " to " + copipe::decimal(last_loss_, 4) + '\n' + table_of_moves();
    }

    /// Throws file_error.
    void write_timeline(run_plan const& plan) const {
        std::vector<copipe::span> measured, planned;
        for (auto const& step : kept_) measured.insert(measured.end(), step.begin(), step.end());
        schedule const& of = plan.order;
        for (auto const& rank : copipe::timeline(of.programs, of.where, of.size.micro_batches, plan.costs()))
            planned.insert(planned.end(), rank.begin(), rank.end());
        std::vector const groups{copipe::trace_group{.name = "measured", .spans = measured},
                                copipe::trace_group{.name = "planned", .spans = planned}};
        copipe::write_chrome_trace(asked_.timeline, groups);
    }

private:
    static constexpr std::size_t steps_kept = 5;

    [[nodiscard]] static auto bounds(copipe::partition const& cut) -> std::string {
        std::string text;
        for (int stage = 0; stage < cut.stages(); ++stage)
            text += (text.empty() ? "" : "+") + std::to_string(cut.last(stage) - cut.first(stage));
        return text;
    }

    void note(copipe::move_report const& moved, std::uint64_t step) {
        print("step " + std::to_string(step) + ": layers move, " + bounds(moved.from) + " -> " + bounds(moved.to) +
              " per stage; predicted gain " + copipe::percent(moved.gain) + ", " + copipe::byte_count(moved.bytes) +
              " in " + milliseconds(moved.seconds) +
              (moved.recomputed.empty() ? "" : "; recomputed: " + names_of(moved.recomputed, moved.to.layers())));
        moved_.emplace_back(step, moved);
        seconds_ += moved.seconds;
    }
    [[nodiscard]] auto table_of_moves() const -> std::string {
        if (moved_.empty()) return "";
        copipe::text_table rows;
        rows.row({"layers moved", "per stage", "predicted gain", "bytes", "pause"});
        for (auto const& [step, moved] : moved_)
            rows.row({"before step " + std::to_string(step), bounds(moved.from) + " -> " + bounds(moved.to),
                      copipe::percent(moved.gain), copipe::byte_count(moved.bytes), milliseconds(moved.seconds)});
        return '\n' + rows.text();
    }

    void keep(copipe::recorder const& spans) {
        if (kept_.size() == steps_kept) kept_.pop_front();
        spans.append_to(kept_.emplace_back());
    }

    options asked_;
    std::optional<copipe::json_log> log_{};
    /// Of several processes only that of rank 0 shows its progress.
    std::unique_ptr<std::FILE, int (*)(std::FILE*)> nowhere_{nullptr, &std::fclose};
    copipe::progress line_;
    copipe::run_summary summary_{};
    double first_loss_ = 0, last_loss_ = 0, seconds_ = 0;
    std::vector<std::pair<std::uint64_t, copipe::move_report>> moved_{};
    std::uint64_t decided_at_ = 0;
    std::deque<std::vector<copipe::span>> kept_{}; ///< of the last steps
};

} // namespace gpt
