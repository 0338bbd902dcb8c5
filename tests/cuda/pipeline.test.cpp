// SPDX-License-Identifier: Apache-2.0
// Whole training steps of the engine on CUDA devices, on the fake CUDA runtime: their numbers, their time, their
// suspensions, and what happens when a call fails.
#include "catch.hpp"
#include "cuda/toy.hpp"
#include "says.hpp"

#include "copipe/schedule/data_parallel.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/evaluate.hpp"
#include "copipe/schedule/interleaved.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/sequential.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <random>
#include <set>
#include <string>
#include <vector>

using namespace copipe;
using fake::drive;

namespace {

/// Calls `visit(policy, shape)` for each schedule and 2 to 8 ranks.
template <class Visit>
void for_all_schedules(Visit visit) {
    for (int ranks : {2, 3, 5, 8}) visit(one_f_one_b{}, shape{ranks, 8});
    for (int ranks : {2, 4, 8}) visit(dualpipe{}, shape{ranks, 2 * ranks + 4});
    for (int ranks : {2, 3, 8}) visit(dualpipe_v{}, shape{ranks, 2 * ranks + 2});
    for (int ranks : {2, 4, 8}) visit(interleaved<2>{}, shape{ranks, 2 * ranks});
    visit(data_parallel<dualpipe_v>{}, shape{4, 12});
}

/// Random times, in multiples of 1/1024, so that their sums are exact.
auto random_waves(int count, unsigned seed) -> std::vector<cuda_toy::wave> {
    std::mt19937 random{seed};
    auto const draw = [&] { return static_cast<double>(random() % 4096) / 1024; };
    std::vector<cuda_toy::wave> waves(static_cast<std::size_t>(count));
    for (auto& each : waves) {
        each.forward_seconds = draw();
        each.input_seconds = draw();
        each.weight_seconds = draw();
    }
    return waves;
}

/// What the stages cost; stage s of the model holds wave s.
struct wave_costs {
    std::vector<cuda_toy::wave> waves;
    [[nodiscard]] auto seconds(action const& work) const -> double {
        double sum = 0;
        for (chunk const& c : work.chunks()) {
            auto const& w = waves[c.stage % waves.size()];
            if (c.what == op::forward) sum += w.forward_seconds;
            if (c.what == op::backward || c.what == op::backward_input) sum += w.input_seconds;
            if (c.what == op::backward || c.what == op::backward_weight) sum += w.weight_seconds;
        }
        return sum;
    }
    [[nodiscard]] static auto occupancy(message const&) -> double { return 0; }
    [[nodiscard]] static auto latency(message const&) -> double { return 0; }
};

/// One wave per stage, the last one with the distance.
auto one_each(int stages) -> partition {
    std::vector<int> bounds;
    for (int s = 0; s < stages; ++s) bounds.push_back(s);
    bounds.push_back(stages + 1);
    return partition::given(bounds, stages + 1);
}

constexpr std::size_t everything = 1000;

/// A step on the fake in virtual time, on one rank without a pipeline.
auto reference(int waves, int micro_batches) -> cuda_toy::outcome {
    fake::machine gpus{drive::by_test};
    cuda_toy::pipeline plain{gpus, sequential{}, {1, micro_batches},
                             cuda_toy::network(std::vector<cuda_toy::wave>(static_cast<std::size_t>(waves)))};
    plain.step_by_test();
    return plain.result();
}

} // namespace

TEST_CASE("losses and gradients on CUDA devices are those of the step without a pipeline, on one GPU and on several",
          "[one_thread]") {
    for_all_schedules([](auto const& policy, shape size) {
        int const stages = policy.placed(size).model_stages();
        cuda_toy::outcome const expected = reference(stages, size.micro_batches);
        for (int gpus_used : {1, 3}) {
            CAPTURE(policy.name, size.ranks, gpus_used);
            fake::machine gpus{drive::by_test, 3};
            {
                cuda_toy::pipeline piped{gpus, policy, size,
                                         cuda_toy::network(random_waves(stages, 7)),
                                         {.gpus = gpus_used, .cut = one_each(stages)}};
                for (int step = 0; step < 2; ++step) {
                    piped.step_by_test();
                    bool const mirrored = piped.plan.where.stages() != stages; // sums in another order
                    auto const found = piped.result();
                    REQUIRE((mirrored ? found.close_to(expected) : found.same_bits(expected)));
                }
            }
            REQUIRE(gpus.leaks() == "");
        }
    });
}

TEST_CASE("a step on CUDA devices takes exactly as long as predicted, for random times of kernels", "[one_thread]") {
    for_all_schedules([](auto const& policy, shape size) {
        int const stages = policy.placed(size).model_stages();
        for (unsigned seed = 1; seed <= 5; ++seed) {
            auto const waves = random_waves(stages, seed);
            fake::machine gpus{drive::by_test};
            cuda_toy::pipeline piped{gpus, policy, size, cuda_toy::network(waves),
                                     {.lookahead = everything, .cut = one_each(stages)}};
            double const begin = gpus.now();
            piped.step_by_test();
            auto const all = programs(policy, size);
            auto const predicted = evaluate(all, piped.plan.where, size.micro_batches, wave_costs{waves});
            CAPTURE(policy.name, size.ranks, seed);
            REQUIRE(gpus.now() - begin == predicted.makespan);
        }
    });
}

TEST_CASE("no CUDA call of a step makes the host wait, and a rank waits once per window and at the end",
          "[one_thread]") {
    for_all_schedules([](auto const& policy, shape size) {
        int const stages = policy.placed(size).model_stages();
        for (std::size_t const lookahead : {std::size_t{4}, std::size_t{8}, everything}) {
            fake::machine gpus{drive::by_test};
            cuda_toy::pipeline piped{gpus, policy, size, cuda_toy::network(random_waves(stages, 1)),
                                     {.lookahead = lookahead, .cut = one_each(stages)}};
            piped.step_by_test();
            auto const blocked = gpus.host_waits();
            std::vector<std::uint64_t> before;
            for (auto& each : piped.devices) before.push_back(each.poller().waits());
            piped.step_by_test();
            CHECK(gpus.host_waits() == blocked);
            for (std::size_t r = 0; r < before.size(); ++r) {
                std::size_t const actions = piped.plan.training[r].actions.size();
                std::size_t const windows = actions <= lookahead ? 1 : 2 + (actions - lookahead) / (lookahead / 2);
                std::size_t const neighbours = peers(piped.plan.where, static_cast<int>(r)).size();
                std::size_t const waits = piped.devices[r].poller().waits() - before[r];
                CAPTURE(policy.name, size.ranks, lookahead, r, actions);
                // For both halves of a pair; at the end for what neighbours still read, and the sums of gradients.
                CHECK(waits <= 2 * windows + neighbours + 1);
            }
        }
    });
}

TEST_CASE("in run-ahead mode a step of ten times as many micro-batches makes the host wait no more often",
          "[one_thread]") {
    auto const waits_of = [](auto const& policy, shape size) {
        int const stages = policy.placed(size).model_stages();
        fake::machine gpus{drive::by_test};
        cuda_toy::pipeline piped{gpus, policy, size, cuda_toy::network(random_waves(stages, 1)),
                                 {.lookahead = everything, .cut = one_each(stages)}};
        piped.step_by_test();
        std::uint64_t most = 0;
        for (auto& each : piped.devices) most = std::max(most, each.poller().waits());
        return most;
    };
    auto const check = [&](auto const& policy) {
        CAPTURE(policy.name);
        CHECK(waits_of(policy, {2, 40}) <= 5);
        CHECK(waits_of(policy, {2, 4}) <= 5);
    };
    check(one_f_one_b{});
    check(dualpipe{});
    check(dualpipe_v{});
    check(interleaved<2>{});
}

namespace {

/// Fails each call in turn; `run(gpus, ended)` builds a pipeline, runs a step, and notes how many calls that took.
template <class Run>
void fail_every_call(bool sticky, Run run) {
    std::set<std::string> seen;
    for (std::uint64_t number = 1; true; ++number) {
        fake::machine gpus{drive::by_test, 2};
        gpus.fail_call(number, cudaErrorIllegalAddress, sticky);
        bool threw = false;
        std::uint64_t ended = number;
        try {
            run(gpus, ended);
        } catch (cuda_toy::deadlock const& hang) {
            FAIL("call " << number << ", " << gpus.failed_call() << ": " << hang.what());
        } catch (copipe::error const&) { // and no other exception
            threw = true;
        }
        std::string const failed = gpus.failed_call();
        if (failed.empty()) break;
        seen.insert(failed);
        CAPTURE(number, failed, sticky);
        REQUIRE(gpus.leaks() == "");
        REQUIRE((threw || number > ended || cuda_toy::is_harmless(failed)));
    }
    CHECK(seen.size() >= 18);
}

} // namespace

TEST_CASE("whichever CUDA call fails, once or for good, every rank's step ends with an error and nothing leaks",
          "[one_thread]") {
    bool const sticky = GENERATE(false, true);
    fail_every_call(sticky, [](fake::machine& gpus, std::uint64_t& ended) {
        cuda_toy::pipeline piped{gpus, dualpipe{}, {2, 4}, cuda_toy::network(std::vector<cuda_toy::wave>(2)),
                                 {.lookahead = 2, .gpus = 2, .cut = one_each(2)}};
        piped.step_by_test();
        ended = gpus.calls();
    });
}

TEST_CASE("after a CUDA call that failed once, the next step on the same devices is right", "[one_thread]") {
    cuda_toy::outcome const expected = reference(2, 6);
    std::size_t failures = 0;
    for (std::uint64_t number = 1; true; number += 2) {
        fake::machine gpus{drive::by_test};
        cuda_toy::pipeline piped{gpus, one_f_one_b{}, {2, 6}, cuda_toy::network(std::vector<cuda_toy::wave>(2)),
                                 {.lookahead = 3, .cut = one_each(2)}};
        gpus.fail_call(number, cudaErrorMemoryAllocation, false);
        bool threw = false;
        try {
            piped.step_by_test();
        } catch (copipe::error const& e) {
            threw = true;
            ++failures;
            CHECK_THAT(e.what(), says("cuda") || says("kernel") || says("wave") || says("distance"));
        }
        CAPTURE(number, gpus.failed_call());
        if (gpus.failed_call().empty()) break;
        if (threw) {
            piped.recover();
            piped.step_by_test();
        }
        REQUIRE(piped.result().same_bits(expected));
    }
    CHECK(failures > 50);
}

TEST_CASE("steps on CUDA devices with a thread for each rank and for each poller come to the same numbers") {
    auto const check = [](auto const& policy, shape size) {
        int const stages = policy.placed(size).model_stages();
        cuda_toy::outcome const expected = reference(stages, size.micro_batches);
        fake::machine gpus{drive::by_thread, 2, 5};
        {
            cuda_toy::pipeline piped{gpus, policy, size, cuda_toy::network(random_waves(stages, 7)),
                                     {.gpus = 2, .polling = cuda_polling::own_thread, .cut = one_each(stages)}};
            for (int step = 0; step < 10; ++step) {
                piped.step_by_threads();
                REQUIRE(piped.result().close_to(expected));
            }
        }
        REQUIRE(gpus.leaks() == "");
    };
    check(dualpipe{}, {4, 8});
    check(one_f_one_b{}, {4, 8});
}

TEST_CASE("whenever the GPU is lost, the step of all threads ends with an error and nothing leaks") {
    for (std::uint64_t number = 1; number < 60; number += 3) {
        bool const by_kernel = number % 2 == 0;
        fake::machine gpus{drive::by_thread, 1, static_cast<unsigned>(number)};
        {
            cuda_toy::pipeline piped{gpus, dualpipe_v{}, {4, 8}, cuda_toy::network(random_waves(8, 7)),
                                     {.polling = cuda_polling::own_thread, .cut = one_each(8)}};
            if (by_kernel)
                gpus.fail_kernel(number);
            else
                gpus.fail_call(7 * number, cudaErrorIllegalAddress, true);
            REQUIRE_THROWS_AS(piped.step_by_threads(), copipe::error);
        }
        CAPTURE(number);
        REQUIRE(gpus.leaks() == "");
    }
}
