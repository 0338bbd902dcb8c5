// SPDX-License-Identifier: Apache-2.0
// What overlapping a mixture's all-to-all is worth: prints, in virtual time, what an overlapped pair costs against the
// sum of its halves, and how long a step takes under every policy. Every figure is a run of the engine.
#include "moe/simulated.hpp"

#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/gpipe.hpp"
#include "copipe/schedule/interleaved.hpp"
#include "copipe/schedule/interleaved_zero_bubble.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/v_half.hpp"
#include "copipe/schedule/v_min.hpp"
#include "copipe/schedule/zb_h1.hpp"
#include "copipe/schedule/zb_h2.hpp"
#include "copipe/schedule/zb_v.hpp"

#include <array>
#include <cstdio>
#include <string>

namespace {

/// All communication of a block's forward over all its computation.
constexpr std::array ratios{0.0, 0.25, 0.5, 0.75, 1.0, 1.5};

auto block(double ratio) -> moe::block_seconds { return {.attention = 1, .experts = 1, .exchange = ratio}; }

void print_pairs() {
    std::printf("Seconds of an overlapped pair over those of its halves one after the other, by blocks per stage, and\n"
                "the least there can be: computation or communication alone, whichever is longer.\n\n"
                "| communication / computation | 1 block | 2 blocks | 4 blocks | 8 blocks | least |\n"
                "|---:|---:|---:|---:|---:|---:|\n");
    for (double ratio : ratios) {
        std::printf("| %.2f |", ratio);
        double least = 0;
        for (int blocks : {1, 2, 4, 8}) {
            auto const cost = moe::measure_stage(blocks, block(ratio));
            double const halves = cost.forward + cost.backward;
            std::printf(" %.3f |", cost.pair / halves);
            double const computation = 6.0 * blocks, communication = halves - computation;
            least = std::max(computation, communication) / halves;
        }
        std::printf(" %.3f |\n", least);
    }
}

constexpr copipe::shape size{8, 16};
constexpr int blocks = 32;
/// What a rank computes in a step: the makespan of a pipeline that never waits.
constexpr double computation = 6.0 * blocks / size.ranks * size.micro_batches;

template <class Make>
void print_policy(Make make) {
    using policy = decltype(make(copipe::uniform_costs{}));
    std::printf("| %s |", std::string(policy::name).c_str());
    for (double ratio : ratios) {
        int const stages = policy{}.placed(size).model_stages();
        auto const stage = moe::measure_stage(blocks / stages, block(ratio));
        copipe::uniform_costs const known{.forward = stage.forward, .input = stage.input, .weight = stage.weight};
        std::printf(" %.3f |", moe::makespan(make(known), size, blocks, block(ratio)) / computation);
    }
    std::printf("\n");
}
template <class Policy>
void print_policy() {
    print_policy([]([[maybe_unused]] copipe::uniform_costs const& known) {
        if constexpr (requires(Policy p) { p.costs = known; }) {
            Policy planned{};
            planned.costs = known;
            return planned;
        } else {
            return Policy{};
        }
    });
}

void print_steps() {
    std::printf("\nSeconds of a step over those that a rank computes: %d ranks, %d micro-batches, %d blocks, by\n"
                "communication / computation of a block.\n\n| policy |",
                size.ranks, size.micro_batches, blocks);
    for (double ratio : ratios) std::printf(" %.2f |", ratio);
    std::printf("\n|:---|");
    for (std::size_t i = 0; i < ratios.size(); ++i) std::printf("---:|");
    std::printf("\n");
    print_policy<copipe::gpipe>();
    print_policy<copipe::one_f_one_b>();
    print_policy<copipe::interleaved<2>>();
    print_policy<copipe::interleaved_overlapped<2>>();
    print_policy<copipe::interleaved_zero_bubble<2>>();
    print_policy<copipe::zb_h1>();
    print_policy<copipe::zb_h2>();
    print_policy<copipe::zb_v>();
    print_policy<copipe::v_half>();
    print_policy<copipe::v_min>();
    print_policy<copipe::dualpipe>();
    print_policy<copipe::dualpipe_v>();
}

} // namespace

auto main() -> int {
    print_pairs();
    print_steps();
}
