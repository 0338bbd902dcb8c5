// SPDX-License-Identifier: Apache-2.0
// The example of docs/balance.md: a trainer whose balancer moves layers, tried out in virtual time with a slow rank.
#include "copipe/balance/balanced.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/train/simulated_update.hpp"
#include "copipe/train/trainer.hpp"

#include <cstdio>
#include <exception>
#include <memory>
#include <stdexcept>

namespace {

using copipe::simulated_device;
using copipe::tensor;

/// Takes 1 ms forward and 2 ms back, of virtual time.
struct simulated_layer {
    struct saved {};
    static auto forward(copipe::context<simulated_device>& c, tensor, saved&) -> tensor {
        c.stream.launch(1e-3);
        return c.make({1});
    }
    static auto backward_input(copipe::context<simulated_device>& c, tensor, saved&) -> tensor {
        c.stream.launch(2e-3);
        return c.make({1});
    }
};

struct no_data {
    static auto size() -> std::uint64_t { return 1; }
    static void load(std::uint64_t, copipe::host_array& input, copipe::host_array& target) {
        input.resize<float>({1}, copipe::dtype::f32);
        target.resize<float>({1}, copipe::dtype::f32);
    }
};

auto try_a_slow_rank() -> copipe::partition {
    copipe::model<simulated_device> layers;
    for (int i = 0; i < 9; ++i) layers.add(simulated_layer{});

    copipe::simulation clock;
    auto const make_device = [&clock](int rank) {
        copipe::simulated_behaviour how{.seconds_per_byte = 1e-10};
        if (rank == 1) how.stretch = [](double start, double seconds) { return start < 5 ? seconds : 2 * seconds; };
        return std::make_unique<simulated_device>(clock, how);
    };
    copipe::trainer<copipe::one_f_one_b, simulated_device, copipe::balanced> trainer{
        layers,
        {.ranks = 2, .micro_batches = 8, .exec = &clock, .make_device = make_device},
        {},
        copipe::balanced{{.check_every = 20}}};
    for (int step = 0; step < 200; ++step) {
        copipe::step_report const report = trainer.step(no_data{});
        if (report.moved) std::printf("%s\n", report.moved->why.c_str());
    }
    return trainer.layers();
}

} // namespace

auto main() -> int {
    try {
        if (try_a_slow_rank().bounds() != std::vector{0, 6, 9}) throw std::logic_error("the slow rank keeps 3");
    } catch (std::exception const& failure) {
        std::fprintf(stderr, "%s\n", failure.what());
        return 1;
    }
}
