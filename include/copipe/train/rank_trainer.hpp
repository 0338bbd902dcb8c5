// SPDX-License-Identifier: Apache-2.0
// One rank's part in training: its device and pipeline, and what follows a step's backwards: gradients and totals
// summed over the ranks, a decision that all come to alike, the update.
#pragma once

#include "copipe/observe/recorder.hpp"
#include "copipe/pipeline/exchange_order.hpp"
#include "copipe/pipeline/gradient_reduction.hpp"
#include "copipe/pipeline/rank_pipeline.hpp"
#include "copipe/pipeline/step_plan.hpp"
#include "copipe/train/fingerprint.hpp"
#include "copipe/train/layer_times.hpp"
#include "copipe/train/optimizer.hpp"
#include "copipe/train/trainer_options.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace copipe {

/// What the ranks of a trainer have in common.
template <device Device, optimizer<typename Device::stream> Optimizer>
struct shared_training {
    step_plan plan;
    trainer_options<Device> options;
    Optimizer update;
    std::vector<parameter_group> groups{};
    recorder spans{plan.where.ranks};
    std::vector<step_orders> orders{}; ///< by rank, where the transport wants to know
};

/// Loss and gradient norm of a step from its totals, losses by micro-batch before squared norms, in a fixed order of
/// addition; the rest as in `report`. Throws not_finite.
template <class = void>
[[nodiscard]] auto judge(std::span<double const> totals, int micro_batches, step_report report) -> step_report {
    auto const losses = static_cast<std::size_t>(micro_batches);
    double squares = 0;
    for (std::size_t i = 0; i < totals.size(); ++i) {
        if (i < losses && !std::isfinite(totals[i])) throw not_finite(report.step, static_cast<int>(i));
        (i < losses ? report.loss : squares) += totals[i];
    }
    report.gradient_norm = std::sqrt(squares);
    if (!std::isfinite(report.gradient_norm)) throw not_finite(report.step, -1);
    return report;
}

/// One rank of a trainer. Its coroutines run on the rank's executor; what is passed by reference outlives them.
template <device Device, transport_endpoint<Device> Endpoint, optimizer<typename Device::stream> Optimizer>
class rank_trainer {
public:
    using pipeline_type = rank_pipeline<Device, Endpoint>;

    /// Its parameters' optimizer state is zero.
    rank_trainer(shared_training<Device, Optimizer>& all, model<Device> const& layers, partition const& cut, int rank,
                 std::unique_ptr<Device> dev, Endpoint endpoint)
        : all_(&all),
          device_(std::move(dev)),
          heard_{&all.spans, all.options.listener, layer_times{layers.size()}},
          pipeline_(all.plan, cut, layers, rank, *device_, std::move(endpoint),
                    {.lookahead = all.options.lookahead, .seed = all.options.seed, .listener = observer_ref{heard_}}),
          reduction_(pipeline_, all.groups),
          totals_(static_cast<std::size_t>(all.plan.micro_batches) + all.groups.size()) {
        stream& compute = pipeline_.compute_stream();
        for_each_parameter([&](parameter& p) {
            for (std::size_t i = 0; i < Optimizer::state_names.size(); ++i) {
                p.state.emplace_back(*compute.memory(), p.sizes);
                compute.zero(p.state.back().data(), p.state.back().bytes());
            }
        });
        compute.synchronize();
    }

    [[nodiscard]] auto rank() const noexcept -> int { return pipeline_.rank(); }
    [[nodiscard]] auto dev() const noexcept -> Device& { return *device_; }
    [[nodiscard]] auto pipeline() noexcept -> pipeline_type& { return pipeline_; }
    /// Losses by micro-batch, then squared gradient norms by parameter group: the same on all ranks.
    [[nodiscard]] auto totals() const noexcept -> std::vector<double> const& { return totals_; }
    /// Of the last training step, but for times: the same on all ranks.
    [[nodiscard]] auto report() const noexcept -> step_report const& { return report_; }
    /// A parameter of this rank (state 0) or a part of its optimizer state (from 1).
    [[nodiscard]] auto held(parameter_use const& use, std::size_t state) const -> tensor {
        parameter const& p = reduction_.local(use);
        return state == 0 ? p.value : p.state[state - 1];
    }

    /// From now on steps can be measured. Returns what the device can do, as measured now or kept in the options' file.
    auto begin_measuring() -> fingerprint {
        stream& compute = pipeline_.compute_stream();
        int const ranks = all_->plan.where.ranks;
        stream& link = ranks > 1 ? pipeline_.link_from((rank() + 1) % ranks) : compute;
        fingerprint const found = known_fingerprint(all_->options.fingerprints, *device_, compute, link);
        if constexpr (device_probe<Device>::possible) probe_.emplace(compute, 48);
        return found;
    }
    /// Tells what the last measured step has shown; of layers that are `recomputed`, without the second forward.
    void tell_times(measurement_window& to, row<int> const& recomputed) const {
        heard_.layers.tell(to, rank(), recomputed);
        if (probe_) to.probe(rank(), probe_->seconds());
    }

    /// A training step over the batch, at the step and learning rate of `asked`; what it came to is `report()`.
    auto train(batch const& from, step_report const& asked, timing layers) -> task<> {
        if (layers == timing::on) heard_.layers.clear();
        announce(true);
        co_await pipeline_.run(from, true, layers);
        double const ended = device_->now();
        try {
            co_await reduction_.sum();
            co_await add_totals();
            double const reduced = device_->now();
            tell(span_kind::wait, wait_reason::reduction, ended, reduced);
            report_ = judge(totals_, all_->plan.micro_batches, asked);
            co_await update();
            tell(span_kind::optimizer, wait_reason::none, reduced, device_->now());
            if (layers == timing::on && probe_) {
                probe_->start();
                co_await probe_->ended().completion();
            }
        } catch (...) {
            pipeline_.endpoint().abort();
            throw;
        }
    }

    /// Forwards only: the first totals become the losses of all ranks.
    auto evaluate(batch const& from) -> task<> {
        announce(false);
        co_await pipeline_.run(from, false);
        try {
            auto const& losses = pipeline_.losses();
            std::copy(losses.begin(), losses.end(), totals_.begin());
            co_await pipeline_.endpoint().all_reduce(std::span{totals_}.first(losses.size()));
        } catch (...) {
            pipeline_.endpoint().abort();
            throw;
        }
    }

    void tell(span_kind kind, wait_reason why, double start, double end) const {
        heard_.record(span{.start = start, .end = end, .what = {}, .rank = rank(), .kind = kind, .reason = why});
    }

private:
    using stream = typename Device::stream;
    using event = typename Device::event;

    /// Passes spans to the trainer's own recorder and to the user's listener.
    struct relay {
        recorder* spans;
        observer_ref listener;
        layer_times layers;
        void record(span const& measured) const noexcept {
            spans->record(measured);
            listener.record(measured);
        }
        void record(layer_span const& measured) noexcept {
            layers.record(measured);
            listener.record(measured);
        }
    };

    /// Tells a transport that asks for it in which order this rank and its neighbours exchange a step's messages.
    void announce([[maybe_unused]] bool training) {
        if constexpr (requires { pipeline_.endpoint().follow(std::span<exchange_order const>{}); }) {
            step_orders const& order = all_->orders[static_cast<std::size_t>(rank())];
            pipeline_.endpoint().follow(training ? order.training : order.evaluation);
        }
    }

    /// Every copy on this rank, in checkpoint order.
    template <class Visit>
    void for_each_parameter(Visit visit) {
        for (parameter_group const& group : all_->groups)
            for (parameter_use const& use : group.uses)
                if (reduction_.is_local(use)) visit(reduction_.local(use));
    }

    /// Sums losses and squared norms over the ranks. Each number comes from one rank only, so the sums are exact.
    auto add_totals() -> task<> {
        auto const& losses = pipeline_.losses();
        std::fill(std::copy(losses.begin(), losses.end(), totals_.begin()), totals_.end(), 0.0);
        double* next = totals_.data() + losses.size();
        for (parameter_group const& group : all_->groups) {
            parameter_use const& use = group.uses.front();
            if (reduction_.is_local(use)) square_sum(pipeline_.compute_stream(), reduction_.local(use), next);
            ++next;
        }
        event const summed = pipeline_.compute_stream().record();
        co_await summed.completion();
        summed.check();
        co_await pipeline_.endpoint().all_reduce(totals_);
    }

    auto update() -> task<> {
        double const limit = all_->options.clip_norm;
        double const scale = limit > 0 && report_.gradient_norm > limit ? limit / report_.gradient_norm : 1;
        try {
            for_each_parameter([&](parameter& p) {
                all_->update.update(pipeline_.compute_stream(), p, report_.step + 1, report_.learning_rate, scale);
            });
            event const updated = pipeline_.compute_stream().record();
            co_await updated.completion();
            updated.check();
        } catch (cancelled const&) {
            throw; // another's failure, not the optimizer's
        } catch (std::exception const& why) {
            throw update_error(rank(), report_.step, why.what());
        }
    }

    shared_training<Device, Optimizer>* all_;
    std::unique_ptr<Device> device_;
    relay heard_;
    pipeline_type pipeline_;
    gradient_reduction<Device, Endpoint> reduction_;
    std::vector<double> totals_;
    step_report report_{};
    std::optional<device_probe<Device>> probe_{};
};

} // namespace copipe
