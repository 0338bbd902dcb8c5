// SPDX-License-Identifier: Apache-2.0
// What a trainer needs of a simulated device: an update and a norm that take no time. Include it before a trainer of
// simulated_device is made.
#pragma once

#include "copipe/device/simulated.hpp"
#include "copipe/train/adamw.hpp"

namespace copipe {

inline void adamw_update(simulated_stream&, adamw_arguments const&) noexcept {}
inline void square_sum(simulated_stream&, parameter const&, double* out) noexcept { *out = 0; }
static_assert(optimizer<adamw, simulated_stream>);

} // namespace copipe
