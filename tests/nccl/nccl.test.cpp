// SPDX-License-Identifier: Apache-2.0
// Whole training steps over the NCCL transport on the fake NCCL: their numbers, their deadlocks, their failures.
#include "catch.hpp"
#include "nccl/toy.hpp"
#include "says.hpp"

#include "copipe/schedule/data_parallel.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/evaluate.hpp"
#include "copipe/schedule/interleaved.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/sequential.hpp"
#include "copipe/schedule/zb_h1.hpp"
#include "copipe/transport/nccl_communicator.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
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

TEST_CASE("steps over NCCL come to the numbers of the step without a pipeline, strict and relaxed", "[one_thread]") {
    check_steps(one_f_one_b{}, {2, 6});
    check_steps(one_f_one_b{}, {5, 8});
    check_steps(zb_h1{}, {4, 8});
    check_steps(dualpipe{}, {4, 12});
    check_steps(dualpipe{}, {8, 20});
    check_steps(dualpipe_v{}, {3, 8});
    check_steps(interleaved<2>{}, {4, 8});
    check_steps(data_parallel<one_f_one_b>{}, {4, 8});
    check_steps(data_parallel<dualpipe>{3}, {6, 24});
}

TEST_CASE("in run-ahead mode a step over NCCL makes the host wait no more often with ten times the micro-batches",
          "[one_thread]") {
    auto const waits_of = [](auto const& policy, int micro_batches, nccl_mode mode) {
        fake::machine gpus{drive::by_test, 2};
        fake::nccl_library nccl;
        auto piped = make(gpus, policy, {2, micro_batches}, 1, {.mode = mode, .lookahead = 1000});
        piped.step_by_test();
        std::uint64_t most = 0;
        for (auto& each : piped.devices) most = std::max(most, each.poller().waits());
        return most;
    };
    for (nccl_mode const mode : {nccl_mode::strict, nccl_mode::relaxed}) {
        for (int const micro_batches : {4, 40}) {
            CAPTURE(static_cast<bool>(mode), micro_batches);
            CHECK(waits_of(one_f_one_b{}, micro_batches, mode) <= 5); // at the end of a step
            CHECK(waits_of(dualpipe{}, micro_batches, mode) <= 5);
        }
    }
}

TEST_CASE("in strict mode, what two ranks send each other at one tick moves in one group") {
    fake::machine gpus{drive::by_test, 4};
    fake::nccl_library nccl;
    auto piped = make(gpus, one_f_one_b{}, {4, 8}, 0);
    auto const before = nccl.fused();
    piped.step_by_test();
    CHECK(nccl.fused() - before >= 2 * 3 * 4); // three edges, at both ends, in every second tick of the steady state
}

TEST_CASE("a step in relaxed mode takes as long as if messages needed no order", "[one_thread]") {
    for (unsigned seed = 1; seed < 6; ++seed) {
        shape const size{4, 12};
        fake::machine gpus{drive::by_test, 4};
        fake::nccl_library nccl;
        auto piped = make(gpus, dualpipe{}, size, seed, {.mode = nccl_mode::relaxed, .lookahead = 1000});
        double const begin = gpus.now();
        piped.step_by_test();
        struct {
            std::vector<cuda_toy::wave> waves;
            [[nodiscard]] auto seconds(action const& work) const -> double {
                double sum = 0;
                for (chunk const& c : work.chunks()) {
                    auto const& w = waves[c.stage % waves.size()];
                    sum += c.what == op::forward ? w.forward_seconds : 0;
                    sum += c.what == op::backward || c.what == op::backward_input ? w.input_seconds : 0;
                    sum += c.what == op::backward || c.what == op::backward_weight ? w.weight_seconds : 0;
                }
                return sum;
            }
            [[nodiscard]] static auto occupancy(message const&) -> double { return 0; }
            [[nodiscard]] static auto latency(message const&) -> double { return 0; }
        } const costs{waves(4, seed)};
        CHECK(gpus.now() - begin ==
              evaluate(programs(dualpipe{}, size), piped.plan.where, size.micro_batches, costs).makespan);
    }
}

namespace {

/// Two GPUs with a communicator between them, and a stream and a buffer on each.
struct two_gpus {
    fake::machine gpus{drive::by_test, 2};
    fake::nccl_library nccl{};
    std::deque<cuda_device> devices{};
    std::deque<nccl_communicator> ends{};
    std::vector<cuda_stream*> streams{};
    std::vector<void*> buffers{};

    two_gpus() {
        ncclUniqueId id;
        ncclGetUniqueId(&id);
        nccl_group group;
        for (int r : {0, 1}) {
            devices.emplace_back(cuda_options{.gpu = r, .polling = cuda_polling::by_program, .make_stream = {}});
            streams.push_back(&devices.back().open_stream("s"));
            buffers.push_back(streams.back()->memory()->allocate(256));
            ends.emplace_back(group, id, 2, r, 0, "rank " + std::to_string(r));
        }
        group.end("opening");
    }
    two_gpus(two_gpus const&) = delete;
    auto operator=(two_gpus const&) -> two_gpus& = delete;
    ~two_gpus() {
        for (auto& each : ends) each.abort();
        for (std::size_t r : {0U, 1U}) streams[r]->memory()->deallocate(buffers[r], 256);
    }
    void run() {
        while (gpus.advance()) {}
    }
    void send(std::size_t r, cuda_stream& on) {
        nccl_group group;
        ends[r].send(group, r == 0 ? 1 : 0, buffers[r], 16, on.handle());
        group.end("");
    }
    void receive(std::size_t r, cuda_stream& on) {
        nccl_group group;
        ends[r].receive(group, r == 0 ? 1 : 0, buffers[r], 16, on.handle());
        group.end("");
    }
};

} // namespace

TEST_CASE("NCCL's first classic deadlock, both directions in turn on one communicator, is found with its cycle") {
    two_gpus pair;
    for (std::size_t r : {0U, 1U}) {
        cuda_stream& other = pair.devices[r].open_stream("other"); // streams of their own do not help
        pair.send(r, *pair.streams[r]);
        pair.receive(r, other);
    }
    pair.run();
    CHECK_THAT(pair.gpus.stuck(), says("cannot do 'NCCL: send to 1'") && says("cannot do 'NCCL: send to 0'"));
    CHECK_THAT(pair.gpus.stuck(), says("the cycle: "));
}

TEST_CASE("the same two messages in one group on each side move") {
    two_gpus pair;
    std::vector<void*> more;
    for (std::size_t r : {0U, 1U}) {
        more.push_back(pair.streams[r]->memory()->allocate(256));
        nccl_group group;
        pair.ends[r].send(group, r == 0 ? 1 : 0, pair.buffers[r], 16, pair.streams[r]->handle());
        pair.ends[r].receive(group, r == 0 ? 1 : 0, more[r], 16, pair.streams[r]->handle());
        group.end("");
    }
    pair.run();
    CHECK(pair.gpus.stuck() == "");
    for (std::size_t r : {0U, 1U}) pair.streams[r]->memory()->deallocate(more[r], 256);
}

TEST_CASE("NCCL's second classic deadlock, compute that waits for its own send, is found with its cycle") {
    two_gpus pair;
    for (std::size_t r : {0U, 1U}) {
        cuda_stream& compute = pair.devices[r].open_stream("compute");
        pair.send(r, *pair.streams[r]); // taken up by the other rank only after its next chunk
        compute.wait(pair.streams[r]->record());
        fake::launch(compute.handle(), "next chunk", 1, [] {});
        cuda_stream& link = pair.devices[r].open_stream("link");
        link.wait(compute.record());
        pair.receive(r, link);
    }
    pair.run();
    CHECK_THAT(pair.gpus.stuck(), says("NCCL: send to") && says("the cycle: "));
}

TEST_CASE("an order that nobody has proved is a deadlock that is found, and the planned one is not") {
    fake::machine gpus{drive::by_test, 4};
    fake::nccl_library nccl;
    auto piped = make(gpus, one_f_one_b{}, {4, 8}, 0, {.unfused = true});
    CHECK_THROWS_WITH(piped.step_by_test(), says("every coroutine waits") && says("NCCL: send to"));
}

TEST_CASE("a message to oneself must be received in the same group") {
    fake::machine gpus{drive::by_test, 1};
    fake::nccl_library nccl;
    cuda_device dev{cuda_options{.gpu = 0, .polling = cuda_polling::by_program, .make_stream = {}}};
    cuda_stream& stream = dev.open_stream("s");
    void* const data = stream.memory()->allocate(512);
    ncclUniqueId id;
    ncclGetUniqueId(&id);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 1;
    ncclComm_t self = nullptr;
    REQUIRE(ncclCommInitRankConfig(&self, 1, id, 0, &config) == ncclSuccess);
    CHECK(ncclSend(data, 16, ncclInt8, 0, self, stream.handle()) == ncclInvalidUsage);
    ncclGroupStart();
    ncclSend(data, 16, ncclInt8, 0, self, stream.handle());
    ncclRecv(static_cast<std::byte*>(data) + 256, 16, ncclInt8, 0, self, stream.handle());
    CHECK(ncclGroupEnd() == ncclSuccess);
    stream.synchronize();
    ncclCommDestroy(self);
    stream.memory()->deallocate(data, 512);
}

TEST_CASE("ranks that share a GPU are refused before NCCL hangs on them") {
    CHECK_THROWS_WITH((nccl_toy::connected{{.talking = {{0, 1}, {1, 2}}}, {0, 1, 1}}),
                      says("ranks 1 and 2 share the GPU 0000:1:00.0 of ") && says("give each rank a GPU of its own"));
}

namespace {

/// Makes each call in turn fail; returns those that did.
template <class Policy>
auto fail_each_call(Policy const& policy, shape size, nccl_mode mode) -> std::set<std::string> {
    cuda_toy::outcome const expected = reference(policy.placed(size).model_stages(), size.micro_batches);
    std::set<std::string> seen;
    for (std::uint64_t number = 1; true; ++number) {
        fake::machine gpus{drive::by_test, size.ranks};
        fake::nccl_library nccl;
        nccl.fail_call(number);
        std::string why;
        try {
            auto piped = make(gpus, policy, size, 1, {.mode = mode, .lookahead = 2});
            try {
                piped.step_by_test();
            } catch (cuda_toy::deadlock const& hang) {
                FAIL("call " << number << ", " << nccl.failed_call() << ": " << hang.what());
            } catch (copipe::error const& e) {
                why = e.what();
                piped.recover();
                piped.step_by_test();
            }
            REQUIRE(piped.result().close_to(expected));
        } catch (nccl_error const& e) { // at the opening
            why = e.what();
        }
        CAPTURE(number, nccl.failed_call());
        REQUIRE(gpus.leaks() == "");
        REQUIRE(nccl.leaks() == "");
        if (nccl.failed_call().empty()) break;
        seen.insert(nccl.failed_call());
        bool const frees = nccl.failed_call() == "ncclCommDestroy";
        if (!frees) REQUIRE_THAT(why, says(nccl.failed_call()) && says("unhandled system error"));
    }
    return seen;
}

} // namespace

TEST_CASE("whichever call of NCCL fails, every rank ends with an error, nothing leaks, and the next step is right",
          "[one_thread]") {
    nccl_mode const mode = GENERATE(nccl_mode::strict, nccl_mode::relaxed);
    std::set<std::string> every{"ncclCommDestroy", "ncclCommInitRankConfig", "ncclGetUniqueId", "ncclGetVersion",
                                "ncclGroupEnd",    "ncclGroupStart",         "ncclRecv",        "ncclSend"};
    if (mode == nccl_mode::strict) CHECK(fail_each_call(data_parallel<one_f_one_b>{3}, {3, 3}, mode) == every);
    every.insert("ncclAllReduce");
    CHECK(fail_each_call(dualpipe{}, {2, 4}, mode) == every);
}

TEST_CASE("whichever CUDA call of a step over NCCL fails, every rank ends with an error and nothing leaks",
          "[one_thread]") {
    bool const sticky = GENERATE(false, true);
    nccl_mode const mode = GENERATE(nccl_mode::strict, nccl_mode::relaxed);
    std::set<std::string> seen;
    for (std::uint64_t number = 1; true; ++number) {
        fake::machine gpus{drive::by_test, 2};
        fake::nccl_library nccl;
        gpus.fail_call(number, cudaErrorIllegalAddress, sticky);
        std::uint64_t ended = number;
        bool threw = false;
        try {
            auto piped = make(gpus, dualpipe{}, {2, 4}, 1, {.mode = mode, .lookahead = 2});
            piped.step_by_test();
            ended = gpus.calls();
        } catch (cuda_toy::deadlock const& hang) {
            FAIL("call " << number << ", " << gpus.failed_call() << ": " << hang.what());
        } catch (copipe::error const&) {
            threw = true;
        }
        std::string const failed = gpus.failed_call();
        if (failed.empty()) break;
        seen.insert(failed);
        CAPTURE(number, failed, sticky);
        REQUIRE(gpus.leaks() == "");
        REQUIRE(nccl.leaks() == "");
        REQUIRE((threw || number > ended || cuda_toy::is_harmless(failed)));
    }
    CHECK(seen.size() >= 18);
}

TEST_CASE("with a thread for each rank, steps over NCCL are right again and again, strict and relaxed") {
    for (nccl_mode const mode : {nccl_mode::strict, nccl_mode::relaxed}) {
        auto const expected = reference(4, 8);
        auto const four = reference(4, 12);
        fake::machine gpus{drive::by_thread, 4, 7};
        fake::nccl_library nccl;
        {
            auto piped = make(gpus, dualpipe_v{}, {2, 8}, 1, {.mode = mode, .by_test = false});
            for (int step = 0; step < 5; ++step) {
                CHECK(piped.step_by_threads() == std::vector<std::string>(2));
                CHECK(piped.result().same_bits(expected));
            }
            auto wide = make(gpus, dualpipe{}, {4, 12}, 1, {.mode = mode, .by_test = false});
            for (int step = 0; step < 5; ++step) {
                CHECK(wide.step_by_threads() == std::vector<std::string>(4));
                CHECK(wide.result().close_to(four));
            }
        }
        CHECK(gpus.leaks() == "");
        CHECK(nccl.leaks() == "");
    }
}

TEST_CASE("when a rank dies without a word, every other ends within the deadline, and one says who is missing") {
    auto const expected = reference(4, 8);
    for (nccl_mode const mode : {nccl_mode::strict, nccl_mode::relaxed}) {
        for (int const dead : {0, 3}) {
            fake::machine gpus{drive::by_thread, 4, 7};
            fake::nccl_library nccl;
            {
                auto piped = make(gpus, one_f_one_b{}, {4, 8}, 1, {.mode = mode, .by_test = false, .deadline = 1500ms});
                CHECK(piped.step_by_threads() == std::vector<std::string>(4));
                auto const begin = std::chrono::steady_clock::now();
                piped.how.silent_rank = dead;
                auto const thrown = piped.step_by_threads();
                CHECK(std::chrono::steady_clock::now() - begin < 10s);
                int named = 0;
                for (int r = 0; r < 4; ++r) {
                    CAPTURE(dead, r, thrown[static_cast<std::size_t>(r)]);
                    CHECK(thrown[static_cast<std::size_t>(r)].empty() == (r == dead));
                    auto const& why = thrown[static_cast<std::size_t>(r)];
                    named += why.find(" is missing rank " + std::to_string(dead) + ": ") != why.npos &&
                             why.find("for micro-batch ") != why.npos;
                }
                CHECK(named == 1);
                CHECK(nccl.aborted() > 0);
                piped.how.silent_rank = -1; // all come back
                piped.recover();
                CHECK(piped.step_by_threads() == std::vector<std::string>(4));
                CHECK(piped.result().same_bits(expected));
            }
            CHECK(gpus.leaks() == "");
            CHECK(nccl.leaks() == "");
        }
    }
}

TEST_CASE("an error that NCCL notices by itself ends the step of every rank") {
    fake::machine gpus{drive::by_thread, 2, 7};
    fake::nccl_library nccl;
    auto piped = make(gpus, one_f_one_b{}, {2, 4}, 1, {.by_test = false});
    nccl.set_async_error(1, ncclRemoteError);
    piped.how.silent_rank = 1;
    auto const thrown = piped.step_by_threads();
    CHECK_THAT(thrown[0], says("rank 1 failed") || says("rank 1, with rank 0: an operation under way"));
}
