// SPDX-License-Identifier: Apache-2.0
// The size of a pipelined step, which a schedule policy accepts or refuses.
#pragma once

namespace copipe {

/// `ranks` take part in a step of `micro_batches` (DualPipe: both directions together).
struct shape {
    int ranks, micro_batches;

    friend constexpr bool operator==(shape const&, shape const&) = default;
};

} // namespace copipe
