// SPDX-License-Identifier: Apache-2.0
// The trainer whose ranks are threads, on the CPU.
#include "gpt/trainer_under.hpp"

#include <utility>

namespace gpt {

auto make_trainer(std::string_view policy, copipe::model<host_device> const& model,
                  copipe::trainer_options<host_device> options, chosen_balancer decides)
    -> std::unique_ptr<any_trainer> {
    return trainer_named<host_device>(policy, model, std::move(options), std::move(decides));
}

} // namespace gpt
