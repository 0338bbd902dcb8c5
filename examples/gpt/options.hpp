// SPDX-License-Identifier: Apache-2.0
// What the user of train_gpt asks for.
#pragma once

#include "copipe/schedule/shape.hpp"
#include "copipe/transport/launch.hpp"
#include "gpt/model.hpp"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace gpt {

/// `rank` computes `factor` times slower from step `step` on, counted from 1.
struct slow_rank {
    int rank;
    double factor;
    std::uint64_t step;
};

/// The command line of train_gpt; the defaults are what it runs without one.
struct options {
    std::string policy = "dualpipe_v";
    copipe::shape pipeline{.ranks = 2, .micro_batches = 32};
    config model{.blocks = 8, .width = 128, .heads = 4, .context = 128};
    int micro_batch_size = 2;
    std::uint64_t steps = 160;
    double learning_rate = 3e-3;
    std::uint64_t seed = 1;
    std::vector<std::filesystem::path> data{};

    std::uint64_t eval_every = 50;                         ///< steps; 0: never
    int sample = 400;                                      ///< bytes of text after training
    std::string checkpoint{}, resume{}, timeline{}, log{}; ///< files; none if empty
    std::uint64_t checkpoint_every = 0;                    ///< steps; 0: at the end only
    bool compare = false;

    std::string device = "auto";    ///< auto, cpu or cuda
    std::string precision = "f32";  ///< of matrix products on GPUs: f32 or bf16
    int ranks_per_gpu = 0;          ///< that may share one; 0: one if GPUs were asked for, else as many as must

    copipe::launch process{}; ///< this process among those that a launcher has started, one per rank
    int meet_within = 60;     ///< seconds that they wait for each other

    std::size_t memory_limit = 0; ///< bytes that each rank may use of its device's memory; 0: no limit

    std::string layout{};     ///< which layers form which stage; as predicted to be best if empty
    bool balanced = false;    ///< layers move in mid-training
    int balance_every = 100;  ///< steps between two looks at the measurements
    std::vector<slow_rank> slow{};
    std::string fingerprints = "cache"; ///< file of what devices can do; "cache": the user's; "none"
};

/// How many bytes one step is trained on.
[[nodiscard]] inline auto tokens_per_step(options const& asked) -> double {
    return static_cast<double>(asked.pipeline.micro_batches) * asked.micro_batch_size * asked.model.context;
}

/// What is not an option, or not a value of one.
class usage_error : public copipe::error {
public:
    using error::error;
};

/// Reads the command line. Nothing when the user asked for help, which is then on standard output. Throws usage_error.
[[nodiscard]] auto parse(int count, char const* const* arguments) -> std::optional<options>;

} // namespace gpt
