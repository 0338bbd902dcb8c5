// SPDX-License-Identifier: Apache-2.0
// The trainer a user meets: a model, a schedule policy and a device make a pipeline of ranks; step() and fit() train
// it, evaluate() measures it, save() and load() keep it.
#pragma once

#include "copipe/train/planned_trainer.hpp"

#include <utility>

namespace copipe {

/// Trains a model as a pipeline of ranks: threads of this process, or, with a transport between processes such as
/// `tcp` and a `process` of several, one rank here and the others elsewhere. Then all processes make the same trainer
/// and the same calls; loss, norm and values come to the same on all, and rank 0 writes the checkpoints, which all must
/// be able to read.
///
/// All ranks' losses, gradients and updates are those of plain training on one device, whatever the policy and the
/// number of ranks. A step that throws leaves the parameters untouched, and the next one can run; only an update_error
/// says that it did not. For one thread at a time.
///
/// The balancer is asked between steps and decides when layers move; `static_partition`, the default, never moves any,
/// and then nothing is measured for it. Moving does not change what is learned.
template <schedule_policy Policy, device Device = host_device, balancer Balancer = static_partition,
          optimizer<typename Device::stream> Optimizer = adamw, template <class> class Transport = in_process>
class trainer : public planned_trainer<Device, Balancer, Optimizer, Transport> {
public:
    /// Places the model on the ranks. Throws shape_error, partition_error, schedule_error or model_error before
    /// anything runs.
    explicit trainer(model<Device> const& layers, trainer_options<Device> options = {}, Policy const& policy = {},
                     Balancer decides = {}, Optimizer update = {})
        : planned_trainer<Device, Balancer, Optimizer, Transport>{
              plan_step(policy, {options.ranks, options.micro_batches}), layers, std::move(options),
              std::move(decides), std::move(update)} {}
};

} // namespace copipe
