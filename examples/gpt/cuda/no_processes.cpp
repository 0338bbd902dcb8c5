// SPDX-License-Identifier: Apache-2.0
// train_gpt built with CUDA, but without NCCL.
#include "gpt/cuda/processes.hpp"

#include <stdexcept>

namespace gpt {

bool const has_nccl = false;

auto make_gpu_process_trainer(std::string_view, copipe::model<copipe::cuda_device> const&,
                              copipe::trainer_options<copipe::cuda_device>) -> std::unique_ptr<any_trainer> {
    throw std::logic_error("this program was built without NCCL");
}

} // namespace gpt
