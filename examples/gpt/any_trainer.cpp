// SPDX-License-Identifier: Apache-2.0
// One translation unit for all policies: the engine under them is the same, so that five cost little more than one.
#include "gpt/any_trainer.hpp"

#include <utility>

namespace gpt {
namespace {

template <copipe::schedule_policy Policy>
class trainer_under final : public any_trainer {
public:
    trainer_under(copipe::model<host_device> const& model, copipe::trainer_options<host_device> options)
        : held_(model, std::move(options)) {}

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
    auto spans() const -> copipe::recorder const& override { return held_.spans(); }
    auto memory_in_use(int rank) const -> std::size_t override { return held_.memory_in_use(rank); }
    auto peak_memory(int rank) const -> std::size_t override { return held_.peak_memory(rank); }

private:
    copipe::trainer<Policy, host_device> held_;
};

} // namespace

auto make_trainer(std::string_view policy, copipe::model<host_device> const& model,
                  copipe::trainer_options<host_device> options) -> std::unique_ptr<any_trainer> {
    return with_policy(policy, [&]<class Policy>(Policy) -> std::unique_ptr<any_trainer> {
        return std::make_unique<trainer_under<Policy>>(model, std::move(options));
    });
}

} // namespace gpt
