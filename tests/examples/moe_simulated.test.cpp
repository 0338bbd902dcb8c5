// SPDX-License-Identifier: Apache-2.0
#include "moe/simulated.hpp"

#include "catch.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/evaluate.hpp"
#include "copipe/schedule/interleaved.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/zb_v.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <random>
#include <vector>

namespace {

using copipe::simulated_device;
using copipe::task;

/// A chunk: computes, exchanges, computes.
struct chunk {
    double before, exchange, after;
};

/// Two members that each run two such chunks, overlapped or one after the other.
struct twins {
    copipe::simulation clock{};
    moe::all_to_all<simulated_device> net{2, clock, copipe::simulated_behaviour{.seconds_per_byte = 1.0 / 1024}};
    std::deque<simulated_device> devices{};
    chunk forward, backward;
    bool overlapped;

    twins(chunk f, chunk b, bool pair) : forward(f), backward(b), overlapped(pair) {}

    auto run(copipe::context<simulated_device> c, int member, int number, chunk what) -> task<> {
        c.stream.launch(what.before);
        copipe::tensor const sent = c.make({2, static_cast<std::int64_t>(256 * what.exchange)});
        copipe::tensor const received = c.make(sent.sizes());
        co_await net.exchange(c, member, {.layer = number}, sent, received);
        c.stream.launch(what.after);
    }
    auto one(int member) -> task<> {
        copipe::context<simulated_device> c{.stream = devices.emplace_back(clock).open_stream("compute")};
        if (overlapped) {
            copipe::alternate pair{run(c, member, 0, forward), run(c, member, 1, backward)};
            static_cast<void>(co_await pair);
        } else {
            co_await run(c, member, 0, forward);
            co_await run(c, member, 1, backward);
        }
        auto const end = c.stream.record();
        co_await end.completion();
    }
    auto both() -> task<> {
        copipe::scope together{co_await copipe::this_environment{}};
        together.spawn(one(0));
        together.spawn(one(1));
        co_await together.join();
    }
    static auto seconds(chunk f, chunk b, bool pair) -> double {
        twins all{f, b, pair};
        copipe::run(all.clock, all.both());
        return all.clock.now();
    }
};

} // namespace

TEST_CASE("an overlapped pair costs what its computation and communication allow") {
    auto const pair = [](chunk f, chunk b) { return twins::seconds(f, b, true); };
    auto const sum = [](chunk f, chunk b) { return twins::seconds(f, b, false); };
    REQUIRE(pair({1, 0, 1}, {1, 0, 1}) == 4);
    REQUIRE(sum({1, 1, 1}, {1, 1, 1}) == 6);
    REQUIRE(pair({1, 1, 1}, {1, 1, 1}) == 4); // computation hides all communication
    REQUIRE(pair({2, 2, 1}, {2, 2, 1}) == 7); // 0-2, 2-4, 4-5, then the second exchange ends at 6: 6-7
    REQUIRE(sum({2, 2, 1}, {2, 2, 1}) == 10);
    REQUIRE(pair({1, 3, 1}, {1, 3, 1}) == 8); // 1 + both exchanges + 1: communication hides the rest
    REQUIRE(pair({0, 5, 0}, {3, 0, 2}) == 7); // turns alternate whatever takes long: the last 2 wait for the exchange
}

TEST_CASE("a pair's cost is that of two streams, for random chunks") {
    std::mt19937_64 random{11};
    auto const draw = [&] { return std::uniform_int_distribution<int>{0, 64}(random) / 16.0; };
    for (int round = 0; round < 300; ++round) {
        chunk const f{draw(), draw(), draw()}, b{draw(), draw(), draw()};
        double const computed = f.before + b.before;
        double const f_came = f.before + f.exchange;
        double const b_came = std::max(f_came, computed) + b.exchange;
        double const f_end = std::max(computed, f_came) + f.after;
        REQUIRE(twins::seconds(f, b, true) == std::max(f_end, b_came) + b.after);
        REQUIRE(twins::seconds(f, b, false) == f.before + f.exchange + f.after + b.before + b.exchange + b.after);
    }
}

TEST_CASE("a stage of mixtures costs its computation and its exchanges, and overlapped less") {
    auto const cost = moe::measure_stage(2, {.attention = 1, .experts = 2, .exchange = 0.5});
    double const router = 0.5 / 512;
    REQUIRE(cost.forward == 2 * (1 + 2 + 2 * 0.5));
    REQUIRE(cost.input == cost.forward);
    REQUIRE(cost.weight == 2 * (1 + 2 + router));
    REQUIRE(cost.backward == cost.input + cost.weight);
    REQUIRE(cost.pair < cost.forward + cost.backward);
    REQUIRE(cost.pair >= 2 * 3 * (1 + 2)); // all computation

    auto const silent = moe::measure_stage(3, {.attention = 1, .experts = 2, .exchange = 0});
    REQUIRE(silent.pair == silent.forward + silent.backward);
    auto const busy = moe::measure_stage(1, {.attention = 0, .experts = 0, .exchange = 1});
    REQUIRE(busy.pair == 4 + 1.0 / 512); // one link: exchanges do not overlap one another
}

TEST_CASE("the engine's step with mixtures takes what the evaluator says of the measured chunks and pairs") {
    auto const agree = [](auto policy, copipe::shape size) {
        for (double exchange : {0.0, 0.25, 1.0, 3.0}) {
            int const stages = policy.placed(size).model_stages();
            moe::block_seconds const block{.attention = 1, .experts = 1.5, .exchange = exchange};
            auto const chunk = moe::measure_stage(2, block);
            copipe::uniform_costs const costs{
                .forward = chunk.forward, .input = chunk.input, .weight = chunk.weight, .overlapped = chunk.pair};
            double const said =
                copipe::evaluate(copipe::programs(policy, size), policy.placed(size), size.micro_batches, costs)
                    .makespan;
            INFO(policy.name << " exchange " << exchange);
            REQUIRE(moe::makespan(policy, size, 2 * stages, block) == said);
        }
    };
    agree(copipe::one_f_one_b{}, {4, 8});
    agree(copipe::zb_v{}, {4, 8});
    agree(copipe::interleaved_overlapped<2>{}, {4, 8});
    agree(copipe::dualpipe{}, {4, 8});
    agree(copipe::dualpipe{}, {4, 12});
    agree(copipe::dualpipe_v{}, {4, 8});
    agree(copipe::dualpipe_v{}, {3, 11});
}
