// SPDX-License-Identifier: Apache-2.0
// What can be asked of the NCCL transport, and the errors it ends with.
#pragma once

#include "copipe/error.hpp"

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

namespace copipe {

/// How the messages of a step are laid on communicators.
enum class nccl_mode : bool {
    strict, ///< one for both directions between two ranks, in an order proved beforehand: needs `follow`
    relaxed ///< one for each direction; relies on the GPU to run several operations of NCCL at once
};

/// Who looks after operations that do not end: a thread, or the program, which calls `watch` now and then.
enum class nccl_watch : bool { own_thread, by_program };

struct nccl_options {
    nccl_mode mode = nccl_mode::strict;
    std::chrono::milliseconds deadline{600'000}; ///< in which something must move while something is under way
    std::chrono::milliseconds opening{120'000};  ///< in which all communicators must stand
    std::chrono::milliseconds aborting{10'000};  ///< in which all communicators must have been given up
    std::chrono::milliseconds poll{20};          ///< between two looks of the thread
    int max_ctas = 0;                            ///< thread blocks per operation; 0: 4 if relaxed, else NCCL's choice
    nccl_watch watch = nccl_watch::own_thread;
    /// What a message is called in errors.
    std::function<std::string(std::uint64_t identity)> name = [](std::uint64_t identity) {
        return "message " + std::to_string(identity);
    };
};

/// Nothing has moved for too long.
class transfer_stalled : public error {
public:
    transfer_stalled(int waiting_rank, int missing_peer, std::string const& action, double seconds)
        : error("rank " + std::to_string(waiting_rank) + " is missing " + named(missing_peer) + ": " + action +
                ", and nothing has moved for " + std::to_string(seconds).substr(0, 5) + " s; " + named(missing_peer) +
                " has ended, hangs, or runs another schedule"),
          rank(waiting_rank),
          peer(missing_peer) {}
    int rank;
    int peer; ///< -1 if it can be any

private:
    [[nodiscard]] static auto named(int peer) -> std::string {
        return peer < 0 ? "another rank" : "rank " + std::to_string(peer);
    }
};

/// Two ranks on one GPU, which NCCL before 2.30 refuses.
class shared_gpu : public error {
public:
    shared_gpu(int one_rank, int other_rank, std::string const& gpu)
        : error("ranks " + std::to_string(one_rank) + " and " + std::to_string(other_rank) + " share the GPU " + gpu +
                ", which NCCL before 2.30 refuses: give each rank a GPU of its own, or run ranks that share one as "
                "threads of one process with the transport in_process") {}
};

} // namespace copipe
