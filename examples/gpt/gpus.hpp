// SPDX-License-Identifier: Apache-2.0
// What train_gpt does with GPUs, for a program that may have been built without CUDA.
#pragma once

#include "copipe/train/profile.hpp"
#include "gpt/any_trainer.hpp"
#include "gpt/options.hpp"

#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

namespace gpt {

/// Where a run computes.
struct place {
    int gpus = 0;           ///< over which the ranks of this process are spread in turn; 0: on the CPU
    std::string sentence{}; ///< for the user

    /// How many actions a rank's host may be ahead.
    [[nodiscard]] auto lookahead() const noexcept -> std::size_t { return gpus > 0 ? 8 : 4; }
};

/// The GPUs that can be used here, and how many there are or why there are none.
struct usable_gpus {
    int count = 0;
    std::string why{};
    bool between_processes = false; ///< this program has NCCL
};
[[nodiscard]] auto find_gpus() -> usable_gpus;

/// For one of several processes, each of which needs a GPU of its own.
[[nodiscard]] inline auto choose_place_of_process(options const& asked) -> place {
    std::string const who = "; " + asked.process.description();
    if (asked.device == "cpu") return {.sentence = "CPU" + who};
    usable_gpus const found = find_gpus();
    int const here = std::max(asked.process.local_size, asked.process.local_rank + 1);
    std::string missing;
    if (found.count == 0)
        missing = found.why;
    else if (!found.between_processes)
        missing = "this program was built without NCCL, which joins the GPUs of several processes";
    else if (here > found.count)
        missing = std::to_string(here) + " processes run here, and each needs one of its own: " + found.why;
    if (missing.empty())
        return {.gpus = 1,
                .sentence = "GPU " + std::to_string(asked.process.local_rank) + " here, over NCCL, products in " +
                            asked.precision + who};
    if (asked.device == "cuda") throw usage_error("--device cuda needs a GPU: " + missing + "; use --device cpu");
    return {.sentence = "CPU; no GPU, as " + missing + who};
}

/// GPU or CPU, as asked for and as there is. Throws usage_error when GPUs were asked for and there are none, or fewer
/// than the ranks need.
[[nodiscard]] inline auto choose_place(options const& asked) -> place {
    if (asked.process.size > 1) return choose_place_of_process(asked);
    if (asked.device == "cpu") return {.sentence = "CPU"};
    usable_gpus const found = find_gpus();
    bool const insists = asked.device == "cuda";
    if (found.count == 0) {
        if (insists) throw usage_error("--device cuda needs a GPU: " + found.why + "; use --device cpu");
        return {.sentence = "CPU; no GPU, as " + found.why};
    }
    if (asked.compare || !asked.slow.empty()) {
        if (insists) throw usage_error("--compare and --slow run on the CPU: leave --device cuda out");
        return {.sentence = "CPU, on which --compare and --slow run"};
    }
    int const shared = asked.ranks_per_gpu != 0 ? asked.ranks_per_gpu : insists ? 1 : asked.pipeline.ranks;
    if (asked.pipeline.ranks > found.count * shared) {
        throw usage_error("--ranks " + std::to_string(asked.pipeline.ranks) + " is too many at " +
                          std::to_string(shared) + " to a GPU: " + found.why +
                          "; use fewer ranks, or let more share a GPU with --ranks-per-gpu");
    }
    int const used = std::min(found.count, asked.pipeline.ranks);
    return {.gpus = used,
            .sentence = std::to_string(asked.pipeline.ranks) + " ranks on " + std::to_string(used) +
                        (used == 1 ? " GPU" : " GPUs") + ", products in " + asked.precision};
}

/// Measures the layers on GPU 0.
[[nodiscard]] auto measured_on_gpu(options const& asked, micro_batches const& data)
    -> std::vector<copipe::layer_profile>;

/// A trainer whose rank r computes on GPU r % gpus, or, if it is one of several processes, its rank on the GPU of its
/// number on this machine. Throws what trainer's constructor throws.
[[nodiscard]] auto make_gpu_trainer(options const& asked, int gpus, copipe::trainer_options<host_device> like,
                                    chosen_balancer decides) -> std::unique_ptr<any_trainer>;

} // namespace gpt
