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

#include <algorithm>
#include <array>
#include <cstddef>
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

constexpr int blocks = 32;

/// A step over what a rank computes: the makespan of a pipeline that never waits.
template <class Make>
void print_policy(copipe::shape size, Make make) {
    using policy = decltype(make(copipe::uniform_costs{}));
    std::printf("| %s |", std::string(policy::name).c_str());
    for (double ratio : ratios) {
        auto const stage = moe::measure_stage(blocks / policy{}.placed(size).model_stages(), block(ratio));
        copipe::uniform_costs const known{.forward = stage.forward, .input = stage.input, .weight = stage.weight};
        double const computed = 6.0 * blocks / size.ranks * size.micro_batches;
        std::printf(" %.3f |", moe::makespan(make(known), size, blocks, block(ratio)) / computed);
    }
    std::printf("\n");
}
template <class Policy>
void print_policy(copipe::shape size) {
    print_policy(size, []([[maybe_unused]] copipe::uniform_costs const& known) {
        Policy policy{};
        if constexpr (requires { policy.costs = known; }) policy.costs = known;
        return policy;
    });
}

void print_steps(copipe::shape size) {
    std::printf(
        "\nSeconds of a step over those that a rank computes in it, by communication / computation of a block:\n"
        "%d ranks, %d micro-batches, %d blocks.\n\n| policy |",
        size.ranks, size.micro_batches, blocks);
    for (double ratio : ratios) std::printf(" %.2f |", ratio);
    std::printf("\n|:---|");
    for (std::size_t i = 0; i < ratios.size(); ++i) std::printf("---:|");
    std::printf("\n");
    print_policy<copipe::gpipe>(size);
    print_policy<copipe::one_f_one_b>(size);
    print_policy<copipe::interleaved<2>>(size);
    print_policy<copipe::interleaved_overlapped<2>>(size);
    print_policy<copipe::interleaved_zero_bubble<2>>(size);
    print_policy<copipe::zb_h1>(size);
    print_policy<copipe::zb_h2>(size);
    print_policy<copipe::zb_v>(size);
    print_policy<copipe::v_half>(size);
    print_policy<copipe::v_min>(size);
    print_policy<copipe::dualpipe>(size);
    print_policy<copipe::dualpipe_v>(size);
}

} // namespace

auto main() -> int {
    print_pairs();
    print_steps({8, 16});
    print_steps({8, 32});
}
