// SPDX-License-Identifier: Apache-2.0
// All ranks of a pipeline on fake GPUs, connected by the NCCL transport on the fake NCCL: on threads, or driven by the
// test in virtual time. The engine is compiled once, in toy.cpp.
#pragma once

#include "cuda/toy.hpp"
#include "nccl/fake_nccl.hpp"

#include "copipe/transport/exchange.hpp"
#include "copipe/transport/nccl_options.hpp"
#include "copipe/transport/transport.hpp"

#include <chrono>
#include <cstddef>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace nccl_toy {

using copipe::cuda_device;
using cuda_toy::outcome;

struct setup {
    copipe::nccl_mode mode = copipe::nccl_mode::strict;
    std::size_t lookahead = 4;
    bool by_test = true;
    std::chrono::milliseconds deadline{20'000};
    bool unfused = false;     ///< the ranks do not follow the planned orders: of two messages, one goes first
    int silent_rank = -1;     ///< does not run its steps
    int absent_from_sum = -1; ///< ends its step before gradients are summed
};

/// Ranks without a pipeline, each on one of the GPUs of a machine that the test drives, and a stream of each.
class connected {
    struct hub;

public:
    fake::machine gpus;
    fake::nccl_library nccl{};

private:
    std::unique_ptr<hub> hub_;

public:
    /// `places`: the GPU of each rank.
    connected(copipe::traffic expected, std::vector<int> const& places);
    connected(connected const&) = delete;
    auto operator=(connected const&) -> connected& = delete;
    ~connected();

    /// See summing_endpoint.
    auto sum(std::size_t rank, std::span<int const> over, std::span<copipe::summand const> parts) -> bool;

    std::vector<copipe::cuda_stream*> streams{};
};

class pipeline {
    struct engine;
    copipe::step_plan plan_;

public:
    template <copipe::schedule_policy Policy>
    pipeline(fake::machine& gpus, Policy const& policy, copipe::shape size, copipe::model<cuda_device> const& layers,
             copipe::partition const& division, setup const& options = {})
        : pipeline(gpus, copipe::plan_step(policy, size), layers, division, options) {}
    pipeline(fake::machine& gpus, copipe::step_plan planned, copipe::model<cuda_device> const& layers,
             copipe::partition const& division, setup const& options);
    pipeline(pipeline const&) = delete;
    auto operator=(pipeline const&) -> pipeline& = delete;
    ~pipeline();

    /// A step in virtual time, on the calling thread.
    void step_by_test(bool training = true);
    /// A step with a thread for each rank; what each threw.
    auto step_by_threads() -> std::vector<std::string>;
    void recover();
    [[nodiscard]] auto result() -> outcome;

    setup how;

private:
    std::unique_ptr<engine> engine_;

public:
    copipe::step_plan const& plan = plan_;
    std::deque<cuda_device>& devices;
};

} // namespace nccl_toy
