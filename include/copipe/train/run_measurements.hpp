// SPDX-License-Identifier: Apache-2.0
// What a trainer collects of its run for a balancer: steps that are measured, what devices can do, what moves cost; and
// when the balancer is to be asked.
#pragma once

#include "copipe/observe/recorder.hpp"
#include "copipe/observe/summary.hpp"
#include "copipe/train/fingerprint.hpp"
#include "copipe/train/layer_times.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace copipe {

/// For one thread at a time. A step is measured if `is_due` said so before it.
template <class = void> class basic_run_measurements {
public:
    /// Of so many layers; `bytes` of each, its optimizer state included. The balancer is asked every `checks` steps,
    /// and each `every`-th is measured; 0: ten between two questions.
    basic_run_measurements(std::vector<std::size_t> bytes, placement const& where, int micro_batches,
                           std::uint64_t checks, std::uint64_t every)
        : where_(where),
          checks_(std::max<std::uint64_t>(1, checks)),
          every_(every != 0 ? every : std::max<std::uint64_t>(1, checks / 10)),
          bytes_(std::move(bytes)),
          window_(static_cast<int>(bytes_.size()), stages_on_ranks(where), micro_batches) {}

    [[nodiscard]] auto window() noexcept -> measurement_window& { return window_; }
    [[nodiscard]] auto fingerprints() const noexcept -> std::vector<fingerprint> const& { return fingerprints_; }
    /// Of the next rank's device.
    void know(fingerprint const& found) {
        fingerprints_.push_back(found);
        if (found.link > 0) link_rate_ = link_rate_ > 0 ? std::min(link_rate_, found.link) : found.link;
    }

    /// Whether the step after so many is to be measured.
    [[nodiscard]] auto is_due(std::uint64_t trained) const noexcept -> bool {
        return hurried_ || (trained + 1) % every_ == 0;
    }
    /// From now on all steps are measured, until there are enough of them to ask the balancer: something has changed,
    /// and steps from before say nothing.
    void hurry() noexcept {
        hurried_ = true;
        window_.moved();
    }
    /// Ends a measured step, which took `seconds`, the ranks' layers and probes recorded already.
    void end_step(std::uint64_t trained, double seconds, recorder const& spans, step_summary const& summary) {
        for (int rank = 0; rank < spans.ranks(); ++rank) {
            window_.waited(rank, summary.ranks[static_cast<std::size_t>(rank)].waiting);
            for (span const& one : spans.of(rank)) {
                if (one.kind != span_kind::receive) continue;
                int const stage = where_.model_stage(one.what.stage);
                window_.message(one.what.what == op::forward ? stage - 1 : stage, one.seconds());
            }
        }
        window_.end_step(trained, seconds);
    }

    /// What to ask the balancer with after so many steps, once each; nothing if it is not the time.
    [[nodiscard]] auto question(std::uint64_t trained) -> std::optional<measurements> {
        if (trained == asked_at_ || (!hurried_ && trained % checks_ != 0)) return {};
        auto seen = window_.summary();
        if (!seen) return {};
        asked_at_ = trained;
        hurried_ = false;
        seen->bytes = bytes_;
        seen->bytes_per_second = link_rate_;
        seen->move_seconds = move_seconds_;
        return seen;
    }
    /// Layers have moved: in so many seconds, in which the busiest rank received so many bytes.
    void moved(double seconds, std::size_t bytes) noexcept {
        double const in_transit = link_rate_ > 0 ? static_cast<double>(bytes) / link_rate_ : 0;
        move_seconds_ = std::max(0.0, seconds - in_transit);
        window_.moved();
    }

private:
    placement where_;
    std::uint64_t checks_, every_;
    row<std::size_t> bytes_; ///< [layers]
    measurement_window window_;
    std::vector<fingerprint> fingerprints_{};
    double link_rate_ = 0;        ///< bytes a second of the slowest link; 0: unknown
    double move_seconds_ = 0;     ///< of the last move, without the time its bytes took
    std::uint64_t asked_at_ = 0;  ///< step
    bool hurried_ = false;
};

using run_measurements = basic_run_measurements<>;

} // namespace copipe
