// SPDX-License-Identifier: Apache-2.0
// train_gpt built without CUDA: it finds no GPU.
#include "gpt/gpus.hpp"

#include <stdexcept>

namespace gpt {

auto find_gpus() -> usable_gpus { return {.why = "this program was built without CUDA"}; }
auto measured_on_gpu(options const&, micro_batches const&) -> std::vector<copipe::layer_profile> {
    throw std::logic_error(find_gpus().why);
}
auto make_gpu_trainer(options const&, int, copipe::trainer_options<host_device>, chosen_balancer)
    -> std::unique_ptr<any_trainer> {
    throw std::logic_error(find_gpus().why);
}

} // namespace gpt
