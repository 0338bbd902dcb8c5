// SPDX-License-Identifier: Apache-2.0
// The program train_gpt on GPUs, all of its own code, linked with the fakes of CUDA and NCCL.
#include "catch.hpp"

#include "transport/processes.hpp"
#include "workplace.hpp"

#include <cmath>
#include <cstddef>
#include <string>

namespace {

words const no_driver{TRAIN_GPT_ON_FAKES}, none{"FAKE_GPUS=0", TRAIN_GPT_ON_FAKES},
    one{"FAKE_GPUS=1", TRAIN_GPT_ON_FAKES}, two{"FAKE_GPUS=2", TRAIN_GPT_ON_FAKES};
words const insisting{"--device", "cuda"};

} // namespace

TEST_CASE("train_gpt takes the GPUs that it finds, says so, and learns what it does on the CPU") {
    workplace const gpus{two}, cpu;
    words const plan = under("dualpipe_v", 2), step = plan + words{"--steps", "1"};
    words const steps = plan + words{"--steps", "4"};
    auto const expected = cpu.losses(steps + words{"--device", "cpu"}), found = gpus.losses(steps);
    REQUIRE(found.size() == expected.size());
    for (std::size_t i = 0; i < found.size(); ++i) CHECK(std::abs(found[i] - expected[i]) < 1e-5);
    CHECK(gpus.run(step).out.find("device  2 ranks on 2 GPUs, products in f32") != std::string::npos);
    CHECK(workplace{one}.run(step).out.find("device  2 ranks on 1 GPU, ") != std::string::npos);
    CHECK(workplace{no_driver}.run(step).out.find("device  CPU; no GPU, as this machine has none") !=
          std::string::npos);
}

TEST_CASE("in bf16 train_gpt learns nearly what it does in 32 bits, and says that it is in bf16") {
    workplace const gpus{two};
    words const plan = under("dualpipe_v", 2), steps = plan + words{"--steps", "6"}, bf16{"--precision", "bf16"};
    auto const expected = gpus.losses(steps), found = gpus.losses(steps + bf16);
    REQUIRE(found.size() == expected.size());
    CHECK(found != expected);
    CHECK(found.back() < found.front() - 0.1);
    for (std::size_t i = 0; i < found.size(); ++i) CHECK(std::abs(found[i] - expected[i]) < 1e-2);
    CHECK(gpus.run(plan + bf16 + words{"--steps", "1"}).out.find("products in bf16") != std::string::npos);
}

TEST_CASE("told to use GPUs where there is none, train_gpt says why and ends with exit code 2") {
    std::string const needs = "--device cuda needs a GPU: this machine has none";
    require_refused(workplace{no_driver}.run(insisting), needs + " that CUDA can use (CUDA driver version is insuff");
    require_refused(workplace{none}.run(insisting), needs + "; use --device cpu");
    // The real runtime, whether or not this machine has a GPU.
    require_refused(workplace{{"CUDA_VISIBLE_DEVICES=", TRAIN_GPT}}.run(insisting), needs + " that CUDA can use (");
}

TEST_CASE("fewer GPUs than the ranks need are refused with exit code 2, in one process and in several") {
    workplace const here{two};
    require_refused(here.run(insisting + under("gpipe", 3)),
                    "--ranks 3 is too many at 1 to a GPU: this machine has 2, numbered 0 to 1");
    require_refused(here.run(insisting + under("gpipe", 5) + words{"--ranks-per-gpu", "2"}),
                    "--ranks 5 is too many at 2 to a GPU");
    int const port = free_port();
    program second = here.start_rank(1, 3, port, insisting);
    for (outcome const& each : {here.start_rank(0, 3, port, insisting).end(), second.end()})
        require_refused(each, "3 processes run here, and each needs one of its own: this machine has 2");
}

TEST_CASE("processes of which only some have a GPU are refused with exit code 2, every one of them") {
    workplace const here{two};
    int const port = free_port();
    program second = here.start_rank(1, 2, port, {"--device", "cpu"});
    outcome const first = here.start_rank(0, 2, port, {}).end();
    require_refused(first, "rank 0 computes on a GPU, rank 1 on the CPU");
    CHECK(second.end().err == first.err);
}

TEST_CASE("two processes on one GPU are refused with exit code 2 by an NCCL that would hang on them") {
    workplace const here{two};
    int const port = free_port();
    words const first_gpu{"LOCAL_RANK=0", "LOCAL_WORLD_SIZE=1"};
    program second = here.start_rank(1, 2, port, insisting, first_gpu);
    outcome const first = here.start_rank(0, 2, port, insisting, first_gpu).end();
    require_refused(first, "ranks 0 and 1 share the GPU 0000:0:00.0 of ");
    require_refused(first, "which NCCL before 2.30 refuses: give each rank a GPU of its own");
    CHECK(second.end().err == first.err);
}
