// SPDX-License-Identifier: Apache-2.0
// Trainers on GPUs whose ranks are processes, for a program that may have been built without NCCL.
#pragma once

#include "copipe/device/cuda.hpp"
#include "gpt/any_trainer.hpp"

#include <memory>
#include <string_view>

namespace gpt {

/// Whether there are any.
extern bool const has_nccl;

/// The process's rank computes on the GPU of its number on this machine. Throws what trainer's constructor throws.
[[nodiscard]] auto make_gpu_process_trainer(std::string_view policy, copipe::model<copipe::cuda_device> const& model,
                                            copipe::trainer_options<copipe::cuda_device> options)
    -> std::unique_ptr<any_trainer>;

} // namespace gpt
