// SPDX-License-Identifier: Apache-2.0
// train_gpt built with CUDA: its trainers on GPUs.
#include "gpt/gpus.hpp"

#include "copipe/train/cuda_update.hpp"
#include "gpt/cuda/layers.hpp"
#include "gpt/cuda/processes.hpp"
#include "gpt/plan.hpp"
#include "gpt/trainer_under.hpp"

#include <utility>

namespace gpt {

using copipe::cuda_device;

auto find_gpus() -> usable_gpus {
    auto const found = copipe::cuda_gpus::here();
    return {.count = found.count, .why = found.why, .between_processes = has_nccl};
}

auto measured_on_gpu(options const& asked, micro_batches const& data) -> std::vector<copipe::layer_profile> {
    gpu_precision() = asked.precision == "bf16" ? precision::bf16 : precision::f32;
    return measured(make_model<cuda_device>(asked.model), data);
}

auto make_gpu_trainer(options const& asked, int gpus, copipe::trainer_options<host_device> like,
                      chosen_balancer decides) -> std::unique_ptr<any_trainer> {
    gpu_precision() = asked.precision == "bf16" ? precision::bf16 : precision::f32;
    copipe::trainer_options<cuda_device> options{.ranks = like.ranks,
                                                 .micro_batches = like.micro_batches,
                                                 .layers = like.layers,
                                                 .learning_rate = like.learning_rate,
                                                 .clip_norm = like.clip_norm,
                                                 .seed = like.seed,
                                                 .lookahead = like.lookahead,
                                                 .process = like.process,
                                                 .memory = like.memory,
                                                 .fingerprints = like.fingerprints};
    if (like.process.size > 1)
        return make_gpu_process_trainer(asked.policy, make_model<cuda_device>(asked.model), std::move(options));
    options.make_device = [gpus](int rank) {
        return std::make_unique<cuda_device>(copipe::cuda_options{.gpu = rank % gpus});
    };
    return trainer_named<cuda_device>(asked.policy, make_model<cuda_device>(asked.model), std::move(options),
                                      std::move(decides));
}

} // namespace gpt
