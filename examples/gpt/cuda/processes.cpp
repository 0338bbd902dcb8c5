// SPDX-License-Identifier: Apache-2.0
// train_gpt built with CUDA and NCCL: one process for each rank and GPU.
#include "gpt/cuda/processes.hpp"

#include "copipe/pipeline/exchange_order.hpp"
#include "copipe/train/cuda_update.hpp"
#include "copipe/transport/nccl.hpp"
#include "gpt/trainer_under.hpp"

#include <utility>

namespace gpt {

using copipe::cuda_device;

namespace {

/// Names messages in the errors of those that wait for them.
template <class Device>
class over_nccl : public copipe::nccl_processes<Device> {
public:
    over_nccl(copipe::launch own, copipe::traffic expected)
        : copipe::nccl_processes<Device>(std::move(own), std::move(expected), {.name = copipe::name_of_message}) {}
};

} // namespace

bool const has_nccl = true;

auto make_gpu_process_trainer(std::string_view policy, copipe::model<cuda_device> const& model,
                              copipe::trainer_options<cuda_device> options) -> std::unique_ptr<any_trainer> {
    options.make_device = [gpu = options.process.local_rank](int) {
        return std::make_unique<cuda_device>(copipe::cuda_options{.gpu = gpu});
    };
    return trainer_named<cuda_device, over_nccl>(policy, model, std::move(options), {});
}

} // namespace gpt
