// SPDX-License-Identifier: Apache-2.0
// What train_gpt does when each rank is a process of its own.
#pragma once

#include "copipe/model/partition.hpp"
#include "copipe/transport/launch.hpp"

#include <chrono>

namespace gpt {

/// Rank 0's division of the model, on all processes, which must agree on it, and all be on GPUs or none. Meets the
/// others, who must all come within the time; throws rendezvous_error.
[[nodiscard]] auto agreed_cut(copipe::launch const& own, copipe::partition const& here, bool on_gpu,
                              std::chrono::seconds within) -> copipe::partition;

} // namespace gpt
