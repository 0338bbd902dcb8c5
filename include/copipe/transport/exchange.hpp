// SPDX-License-Identifier: Apache-2.0
// What transports may have to know beforehand: which ranks exchange anything, and in which order two of them do. One
// channel that carries both directions, as a communicator of NCCL does, moves in the same order on both sides or not at
// all.
#pragma once

#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace copipe {

/// A tick of the exchange between two ranks: at most one message each way, moved together.
struct exchange {
    static constexpr std::uint64_t none = std::numeric_limits<std::uint64_t>::max();
    std::uint64_t send = none;    ///< identity of what this rank sends
    std::uint64_t receive = none; ///< and of what it receives

    friend constexpr bool operator==(exchange const&, exchange const&) = default;
};

/// All of a step's exchanges with one peer. The peer's list has the same ticks, its sends for this rank's receives.
struct exchange_order {
    int peer = 0;
    std::vector<exchange> ticks{};
};

/// Who exchanges what in every training step, for transports that prepare for it.
struct traffic {
    std::vector<std::pair<int, int>> talking{}; ///< send each other messages; the lower rank first
    std::vector<std::vector<int>> summing{};    ///< add up gradients; in ascending order
};

} // namespace copipe
