// SPDX-License-Identifier: Apache-2.0
// Whole training steps over the NCCL transport on the fake NCCL: their numbers, their deadlocks, their failures.
#include "catch.hpp"
#include "nccl/toy.hpp"
#include "says.hpp"

#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/interleaved.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/sequential.hpp"
#include "copipe/schedule/zb_h1.hpp"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <random>
#include <set>
#include <string>
#include <vector>

using namespace copipe;
using namespace std::chrono_literals;
using fake::drive;

namespace {

/// Waves of random times, so that ranks run ahead of each other in any way.
auto waves(int count, unsigned seed) -> std::vector<cuda_toy::wave> {
    std::mt19937 random{seed};
    auto const draw = [&] { return seed == 0 ? 1.0 : static_cast<double>(random() % 64) / 8; };
    std::vector<cuda_toy::wave> all(static_cast<std::size_t>(count));
    for (auto& each : all) {
        each.forward_seconds = draw();
        each.input_seconds = draw();
        each.weight_seconds = draw();
    }
    return all;
}

/// One wave per stage, the last one with the distance.
auto one_each(int stages) -> partition {
    std::vector<int> bounds;
    for (int s = 0; s < stages; ++s) bounds.push_back(s);
    bounds.push_back(stages + 1);
    return partition::given(bounds, stages + 1);
}

/// A step without a pipeline.
auto reference(int count, int micro_batches) -> cuda_toy::outcome {
    fake::machine gpus{drive::by_test};
    fake::nccl_library nccl;
    nccl_toy::pipeline plain{gpus, sequential{}, {1, micro_batches}, cuda_toy::network(waves(count, 0)),
                             partition::even(count + 1, 1)};
    plain.step_by_test();
    return plain.result();
}

template <class Policy>
auto make(fake::machine& gpus, Policy const& policy, shape size, unsigned seed, nccl_toy::setup const& how = {}) {
    int const stages = policy.placed(size).model_stages();
    return nccl_toy::pipeline{gpus, policy, size, cuda_toy::network(waves(stages, seed)), one_each(stages), how};
}

template <class Policy>
void check_steps(Policy const& policy, shape size) {
    int const stages = policy.placed(size).model_stages();
    cuda_toy::outcome const expected = reference(stages, size.micro_batches);
    for (nccl_mode const mode : {nccl_mode::strict, nccl_mode::relaxed}) {
        for (unsigned seed = 0; seed < 6; ++seed) {
            std::size_t const lookahead = seed % 3 == 0 ? 1 : seed % 3 == 1 ? 4 : 1000;
            CAPTURE(policy.name, size.ranks, static_cast<bool>(mode), seed, lookahead);
            fake::machine gpus{drive::by_test, size.ranks};
            fake::nccl_library nccl;
            {
                auto piped = make(gpus, policy, size, seed, {.mode = mode, .lookahead = lookahead});
                for (int step = 0; step < 3; ++step) {
                    piped.step_by_test(step != 1); // an evaluation between two training steps
                    auto const found = piped.result();
                    bool const mirrored = piped.plan.where.stages() != stages; // sums in another order
                    if (step == 1) REQUIRE(found.losses == expected.losses);
                    else REQUIRE((mirrored ? found.close_to(expected) : found.same_bits(expected)));
                }
            }
            REQUIRE(gpus.leaks() == "");
            REQUIRE(nccl.leaks() == "");
        }
    }
}

} // namespace

TEST_CASE("steps over NCCL come to the numbers of the step without a pipeline, strict and relaxed") {
    check_steps(one_f_one_b{}, {2, 6});
    check_steps(one_f_one_b{}, {5, 8});
    check_steps(zb_h1{}, {4, 8});
    check_steps(dualpipe{}, {4, 12});
    check_steps(dualpipe{}, {8, 20});
    check_steps(dualpipe_v{}, {3, 8});
    check_steps(interleaved<2>{}, {4, 8});
}
