// SPDX-License-Identifier: Apache-2.0
// The GPUs of a train_gpt that is linked with the fakes of CUDA and NCCL: as many as the variable FAKE_GPUS says, or
// no driver if it is not set.
#include "nccl/fake_nccl.hpp"

#include <cstdlib>
#include <optional>

namespace {

struct gpus {
    std::optional<fake::machine> machine{};
    std::optional<fake::nccl_library> nccl{};

    gpus() {
        char const* const count = std::getenv("FAKE_GPUS");
        if (!count) return;
        machine.emplace(fake::drive::by_thread, std::atoi(count));
        nccl.emplace();
    }
};
gpus const here;

} // namespace
