// SPDX-License-Identifier: Apache-2.0
// What a trainer is told, and what it reports.
#pragma once

#include "copipe/async/executor.hpp"
#include "copipe/device/host.hpp"
#include "copipe/error.hpp"
#include "copipe/model/partition.hpp"
#include "copipe/observe/summary.hpp"
#include "copipe/pipeline/rank_team.hpp"
#include "copipe/train/learning_rate.hpp"
#include "copipe/train/memory_plan.hpp"
#include "copipe/transport/launch.hpp"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

namespace copipe {

/// What a trainer is made with; the defaults train on one rank.
template <device Device = host_device>
struct trainer_options {
    int ranks = 1;
    int micro_batches = 1;             ///< per step; under DualPipe both directions together
    std::optional<partition> layers{}; ///< which layers form which stage at first; else the balancer's, or even
    /// Rate of the step's update; steps count from 0.
    std::function<double(std::uint64_t step)> learning_rate = constant_rate{1e-3};
    double clip_norm = 1;      ///< global norm that gradients are scaled down to; 0 leaves them as they are
    std::uint64_t seed = 0;    ///< of the parameters' first values
    std::size_t lookahead = 4; ///< actions that a rank's host may be ahead of its device
    rank_threads threads = rank_threads::one_each;
    executor* exec = nullptr; ///< if there is one, all ranks run on it and the calling thread: a simulation, say
    observer_ref listener{};  ///< told of every span, besides the trainer's own measurement
    launch process{};         ///< if the job has several processes, each runs the rank of its number
    /// Every so many steps each layer is timed; 0: in ten steps between two questions to the balancer, if it is asked.
    std::uint64_t measure_every = 0;
    /// What ranks may hold: then layers are recomputed where that is needed, as few and as cheap ones as will do.
    std::optional<memory_limit> memory{};
    std::string fingerprints{}; ///< file that keeps from run to run what devices can do; nowhere if empty
    std::function<std::unique_ptr<Device>(int rank)> make_device = [](int) { return std::make_unique<Device>(); };
};

/// Layers have moved between ranks.
struct move_report {
    partition from, to;
    std::size_t bytes = 0; ///< that crossed ranks
    double seconds = 0;    ///< that training paused
    std::vector<int> recomputed{}; ///< layers that are recomputed from now on, for want of memory
    double gain = 0;       ///< share of a step's time that should be saved, where the balancer says so
    std::string why{};     ///< the balancer's reasons, where it gives them
};

/// What one training step came to.
struct step_report {
    std::uint64_t step = 0;   ///< how many steps had been trained before it
    double loss = 0;          ///< weighted mean over the step's micro-batches
    double gradient_norm = 0; ///< global, before clipping
    double learning_rate = 0;
    double seconds = 0;      ///< of the whole step, on the devices' clock
    step_summary measured{}; ///< busy time and bubble per rank
    std::optional<move_report> moved{}; ///< if layers moved just before it; not part of `seconds`
};

/// The loss or the gradient of a step is not a finite number. The parameters are as they were before the step.
class not_finite : public error {
public:
    not_finite(std::uint64_t at_step, int at_micro_batch)
        : error("step " + std::to_string(at_step) + ": " +
                (at_micro_batch < 0 ? std::string("the gradient")
                                    : "the loss of micro-batch " + std::to_string(at_micro_batch)) +
                " is not finite; lower the learning rate, or look at what the data holds there"),
          step(at_step),
          micro_batch(at_micro_batch) {}
    std::uint64_t step;
    int micro_batch; ///< -1 if all losses are finite but the gradient is not
};

/// The optimizer failed while it updated a rank's parameters: some may be of this step, others of the one before.
class update_error : public error {
public:
    update_error(int at_rank, std::uint64_t at_step, std::string const& why)
        : error("rank " + std::to_string(at_rank) + ", update of step " + std::to_string(at_step) + ": " + why +
                "; some parameters have been updated and others not: load a checkpoint before you go on"),
          rank(at_rank), step(at_step) {}
    int rank;
    std::uint64_t step;
};

/// How long fit() trains: `steps(1000)` more steps, or `epochs(2)` of the dataset.
struct steps {
    std::uint64_t count;
    explicit constexpr steps(std::uint64_t n) noexcept : count(n) {}
};
struct epochs {
    double count;
    explicit constexpr epochs(double n) noexcept : count(n) {}
};

/// What fit() does besides training.
struct fit_options {
    std::function<void(step_report const&)> on_step{}; ///< if it throws, fit ends; it saves if all ranks are here
    std::string checkpoint{};           ///< file; saved at the end, and when stopped; nowhere if empty
    std::uint64_t checkpoint_every = 0; ///< steps; 0: only at the end
    std::stop_token stop{};             ///< finishes the step under way, saves, and returns
};

} // namespace copipe
