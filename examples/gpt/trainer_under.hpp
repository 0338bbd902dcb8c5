// SPDX-License-Identifier: Apache-2.0
// A trainer of one device and transport behind the interface that all share; one serves all policies.
#pragma once

#include "gpt/any_trainer.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace gpt {

template <copipe::device Device, template <class> class Transport>
class trainer_under final : public any_trainer {
public:
    trainer_under(copipe::step_plan plan, copipe::model<Device> const& model, copipe::trainer_options<Device> options,
                  chosen_balancer decides)
        : held_(std::move(plan), model, std::move(options), std::move(decides)) {}

    auto step(micro_batches const& data) -> copipe::step_report override { return held_.step(data); }
    auto fit(micro_batches const& data, copipe::steps until, copipe::fit_options const& options)
        -> std::uint64_t override {
        return held_.fit(data, until, options);
    }
    auto evaluate(micro_batches const& data, std::uint64_t batches) -> double override {
        return held_.evaluate(data, batches);
    }
    void load(std::string const& file) override { held_.load(file); }
    auto values(std::string const& name) -> std::vector<float> override { return held_.values(name); }
    auto parameters() const -> std::vector<copipe::parameter_group> const& override { return held_.parameters(); }
    auto steps_done() const -> std::uint64_t override { return held_.steps_done(); }
    auto layers() const -> copipe::partition const& override { return held_.layers(); }
    auto balancer() -> chosen_balancer const& override { return held_.balancer(); }
    auto fingerprints() const -> std::vector<copipe::fingerprint> override { return held_.fingerprints(); }
    auto spans() const -> copipe::recorder const& override { return held_.spans(); }
    auto memory_in_use(int rank) const -> std::size_t override { return held_.memory_in_use(rank); }
    auto peak_memory(int rank) const -> std::size_t override { return held_.peak_memory(rank); }

private:
    copipe::planned_trainer<Device, chosen_balancer, copipe::adamw, Transport> held_;
};

/// A trainer under the policy of that name.
template <copipe::device Device, template <class> class Transport = copipe::in_process>
[[nodiscard]] auto trainer_named(std::string_view policy, copipe::model<Device> const& model,
                                 copipe::trainer_options<Device> options, chosen_balancer decides)
    -> std::unique_ptr<any_trainer> {
    copipe::shape const size{options.ranks, options.micro_batches};
    return std::make_unique<trainer_under<Device, Transport>>(
        with_policy(policy, [&](auto const& chosen) { return copipe::plan_step(chosen, size); }), model,
        std::move(options), std::move(decides));
}

} // namespace gpt
