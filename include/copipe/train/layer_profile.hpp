// SPDX-License-Identifier: Apache-2.0
// What one layer costs, in time and in memory.
#pragma once

#include <cstddef>

namespace copipe {

/// What one layer costs for one micro-batch; seconds on the device's clock, bytes of device memory.
struct layer_profile {
    double forward = 0;
    double backward_input = 0;
    double backward_weight = 0;
    std::size_t saved_bytes = 0;      ///< kept from forward to backward
    std::size_t parameter_bytes = 0;  ///< values alone
    std::size_t derived_bytes = 0;    ///< kept besides parameters from step to step: what the layer makes of them
    std::size_t checkpoint_bytes = 0; ///< kept in place of `saved_bytes` if the layer is recomputed
    std::size_t working_bytes = 0;    ///< at most, besides what is kept, while one of its passes is enqueued
};

} // namespace copipe
