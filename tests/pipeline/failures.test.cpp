// SPDX-License-Identifier: Apache-2.0
// What a pipeline does when something fails: the step throws where and why, every rank ends, and the next step runs.
#include "catch.hpp"
#include "pipeline/brittle.hpp"
#include "pipeline/fixture.hpp"
#include "says.hpp"

#include "copipe/async/channel.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/sequential.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using namespace copipe;

namespace {

/// What the failure of `one`, in one of its functions, must say.
struct expectation {
    toy::failure order;
    int rank;
    chunk failed;
};

/// Every way in which every chunk of every action can fail; `layers_of` gives a layer of a stage.
template <class LayerOf>
auto all_failures(step_plan const& plan, toy::failure::in how, LayerOf layer_of) -> std::vector<expectation> {
    std::vector<expectation> all;
    for (int rank = 0; rank < plan.where.ranks; ++rank) {
        for (action const& each : plan.training[static_cast<std::size_t>(rank)].actions) {
            for (chunk const& c : each.chunks()) {
                std::vector<op> functions{c.what};
                if (c.what == op::backward) functions = {op::backward_input, op::backward_weight};
                for (op const function : functions) {
                    int const micro_batch = plan.where.global_micro_batch(c.stage, c.micro_batch, plan.micro_batches);
                    all.push_back({.order = {.how = how,
                                             .layer = layer_of(plan.where.model_stage(c.stage)),
                                             .function = function,
                                             .micro_batch = micro_batch},
                                   .rank = rank,
                                   .failed = c});
                }
            }
        }
    }
    return all;
}

/// Runs a step that must fail; what is wrong with how it failed, or nothing.
template <class Data>
auto complaint(toy::pipeline& piped, Data const& data, expectation const& expected) -> std::string {
    try {
        piped.run_step(data);
    } catch (chunk_error const& e) {
        if (e.rank == expected.rank && e.what_failed == expected.failed &&
            e.micro_batch == static_cast<int>(expected.order.micro_batch)) {
            return {};
        }
        return std::string("it blames another: ") + e.what();
    } catch (std::exception const& e) {
        return std::string("it is of another type: ") + e.what();
    }
    return "it did not throw";
}

constexpr int depth = 8;

} // namespace

TEST_CASE("a failure at any action of a dualpipe step names rank, stage and micro-batch, and the next step is right") {
    auto const how = GENERATE(toy::failure::in::host, toy::failure::in::launch);
    auto const threads = GENERATE(rank_threads::one_each, rank_threads::calling_thread);
    auto const execution = GENERATE(host_execution::worker_thread, host_execution::inline_);
    auto const order = std::make_shared<toy::failure>();
    toy::numbers const data;
    toy::pipeline piped{dualpipe{}, {4, 8}, toy::brittle_network(depth, order),
                        toy::setup{.threads = threads, .execution = execution}};
    toy::outcome const right = piped.train(data);
    auto const memory = piped.memory_in_use();
    auto const places = all_failures(piped.plan, how, [&](int part) { return piped.cut.first(part); });
    CHECK(places.size() > 4 * 8 * 3 - 1);
    std::size_t tried = 0;
    for (expectation const& each : places) {
        *order = each.order;
        std::string const wrong = complaint(piped, data, each);
        order->how = toy::failure::in::nothing;
        CAPTURE(text(each.failed), each.rank, each.order.function, threads, execution, how);
        REQUIRE(wrong == "");
        piped.recover();
        REQUIRE(piped.memory_in_use() == memory);
        if (++tried % 4 == 0) REQUIRE(piped.train(data).same_bits(right)); // else the next failure follows at once
    }
    CHECK(piped.train(data).same_bits(right));
}

TEST_CASE("a failure in the last layer of a stage, at any lookahead and under other schedules, is found as well") {
    auto const order = std::make_shared<toy::failure>();
    toy::numbers const data;
    auto const check = [&](auto const& policy, int ranks, std::size_t lookahead) {
        toy::setup how;
        how.options.lookahead = lookahead;
        order->how = toy::failure::in::nothing;
        toy::pipeline piped{policy, {ranks, 8}, toy::brittle_network(depth, order), how};
        toy::outcome const right = piped.train(data);
        auto const last = [&](int part) { return std::min(piped.cut.last(part) - 1, depth - 1); };
        for (auto const in : {toy::failure::in::host, toy::failure::in::launch}) {
            auto const places = all_failures(piped.plan, in, last);
            for (std::size_t i = lookahead % 3; i < places.size(); i += 7) {
                *order = places[i].order;
                std::string const wrong = complaint(piped, data, places[i]);
                order->how = toy::failure::in::nothing;
                CAPTURE(policy.name, ranks, lookahead, text(places[i].failed));
                REQUIRE(wrong == "");
                piped.recover();
                REQUIRE(piped.train(data).same_bits(right));
            }
        }
    };
    for (std::size_t const lookahead : {1U, 2U, 1000U}) {
        check(one_f_one_b{}, 4, lookahead);
        check(dualpipe_v{}, 2, lookahead);
        check(dualpipe{}, 2, lookahead);
        check(sequential{}, 1, lookahead);
    }
}

TEST_CASE("an unreadable micro-batch is an error that names a rank that wanted it, and the next step is right") {
    toy::brittle_numbers data;
    auto const order = std::make_shared<toy::failure const>();
    toy::pipeline piped{dualpipe{}, {4, 8}, toy::brittle_network(depth, order)};
    toy::outcome const right = piped.train(data);
    for (std::uint64_t m = 0; m < 8; ++m) {
        data.fails_at = m;
        std::optional<chunk_error> thrown;
        try {
            piped.run_step(data);
        } catch (chunk_error const& e) {
            thrown = e;
        }
        data.fails_at = 99;
        REQUIRE(thrown);
        CHECK(thrown->micro_batch == static_cast<int>(m));
        CHECK(thrown->what_failed.what == op::forward);
        int const stage = thrown->what_failed.stage;
        CHECK((piped.plan.where.is_first(stage) || piped.plan.where.is_last(stage)));
        CHECK(piped.plan.where.rank_of(stage) == thrown->rank);
        CHECK_THAT(thrown->what(), says("unreadable") && says("micro-batch " + std::to_string(m)));
        CHECK_THROWS_WITH(std::rethrow_exception(thrown->cause), "unreadable");
        piped.recover();
        REQUIRE(piped.train(data).same_bits(right));
    }
}

TEST_CASE("an evaluation that fails names its chunk, too, and the next training step is right") {
    auto const order = std::make_shared<toy::failure>();
    toy::numbers const data;
    toy::pipeline piped{dualpipe_v{}, {2, 4}, toy::brittle_network(depth, order)};
    toy::outcome const right = piped.train(data);
    for (auto const in : {toy::failure::in::host, toy::failure::in::launch}) {
        for (int layer = 0; layer < depth; ++layer) {
            *order = {.how = in, .layer = layer, .function = op::forward, .micro_batch = layer % 4};
            int micro_batch = -1;
            try {
                static_cast<void>(piped.evaluate(data));
            } catch (chunk_error const& e) {
                micro_batch = e.micro_batch;
            }
            order->how = toy::failure::in::nothing;
            CHECK(micro_batch == layer % 4);
            piped.recover();
            REQUIRE(piped.train(data).same_bits(right));
        }
    }
}

TEST_CASE("when only one rank cannot begin its step, all ranks end") {
    toy::brittle_numbers data;
    auto const order = std::make_shared<toy::failure const>();
    toy::pipeline piped{one_f_one_b{}, {4, 8}, toy::brittle_network(depth, order)};
    toy::outcome const right = piped.train(data);
    for (int call : {1, 9, 20, 32}) {
        data.weights_left = call;
        CHECK_THROWS_WITH(piped.run_step(data), says("weightless"));
        piped.recover();
        REQUIRE(piped.train(data).same_bits(right));
    }
}

TEST_CASE("a pipeline whose step failed can be destroyed at once, though its devices are still at work") {
    struct slow : toy::brittle {
        using toy::brittle::brittle;
        auto forward(copipe::context<host_device>& c, tensor x, saved& s) -> tensor {
            c.stream.launch([] { std::this_thread::sleep_for(std::chrono::microseconds(300)); });
            return toy::brittle::forward(c, x, s);
        }
    };
    toy::numbers const data;
    for (std::int64_t m = 0; m < 8; ++m) {
        auto const order = std::make_shared<toy::failure const>(toy::failure{
            .how = toy::failure::in::host, .layer = static_cast<int>(m), .function = op::forward, .micro_batch = m});
        model<host_device> layers;
        for (int i = 0; i < depth; ++i) layers.add(slow{i, order});
        layers.add(toy::distance{});
        toy::setup how;
        how.options.lookahead = 8;
        toy::pipeline piped{one_f_one_b{}, {2, 8}, layers, how};
        REQUIRE_THROWS_AS(piped.run_step(data), chunk_error);
    }
}

TEST_CASE("stopping a step ends it with cancelled, and the next one is right") {
    struct stopping : toy::dense {
        std::stop_source* stop = nullptr;
        auto forward(copipe::context<host_device>& c, tensor x, saved& s) -> tensor {
            if (stop && c.micro_batch == 3) stop->request_stop();
            return toy::dense::forward(c, x, s);
        }
    };
    std::stop_source stop;
    stopping layer;
    layer.stop = &stop;
    model<host_device> layers;
    layers.add(layer).add(toy::distance{});
    step_plan const plan = plan_step(sequential{}, {1, 8});
    auto const cut = partition::even(2, 1);
    host_device dev;
    in_process<host_device> net{1};
    toy::numbers const data;
    batch const from{dataset_ref{data}};
    rank_pipeline<host_device, toy::endpoint> one{plan, cut, layers, 0, dev, net.connect(0), {}};
    executor exec;
    CHECK_THROWS_AS(run(exec, one.run(from, true), stop.get_token()), cancelled);
    one.recover();
    run(exec, one.run(from, true));
    CHECK(std::count(one.losses().begin(), one.losses().end(), 0.0) == 0);
}

TEST_CASE("a layer that returns nothing where its neighbour needs something is an error that says so") {
    struct forgetful {
        struct saved {};
        bool forward_too;
        auto forward(copipe::context<host_device>&, tensor x, saved&) const -> tensor {
            return forward_too ? tensor{} : x;
        }
        static auto backward_input(copipe::context<host_device>&, tensor, saved&) -> tensor { return {}; }
    };
    for (bool const forward_too : {true, false}) {
        model<host_device> layers;
        layers.add(toy::dense{}).add(forgetful{forward_too}).add(toy::dense{}).add(toy::distance{});
        toy::setup const how{.cut = partition::given({0, 1, 2, 3, 4}, 4)};
        toy::pipeline piped{one_f_one_b{}, {4, 4}, layers, how};
        CHECK_THROWS_WITH(piped.run_step(toy::numbers{}), says("rank 1, stage 1") && says("empty tensor"));
        piped.recover();
    }
}

TEST_CASE("a last layer that returns no loss is an error that says so") {
    struct lossless {
        struct saved {};
        static auto forward(copipe::context<host_device>&, tensor, saved&) -> tensor { return {}; }
        static auto backward_input(copipe::context<host_device>& c, tensor, saved&) -> tensor { return c.make({3, 5}); }
    };
    model<host_device> layers;
    layers.add(toy::dense{}).add(lossless{});
    toy::pipeline piped{one_f_one_b{}, {2, 4}, layers};
    CHECK_THROWS_WITH(piped.run_step(toy::numbers{}), says("rank 1, stage 1") && says("loss"));
    piped.recover();
}

TEST_CASE("a layer that waits for what never comes ends when another rank fails") {
    struct waiting {
        using saved = toy::dense::saved;
        toy::dense inner{};
        channel<int>* never = nullptr;
        auto parameters() { return inner.parameters(); }
        auto forward(copipe::context<host_device>& c, tensor x, saved& s) -> task<tensor> {
            if (never && c.micro_batch == 1) static_cast<void>(co_await never->receive());
            co_return inner.forward(c, x, s);
        }
        auto backward_input(copipe::context<host_device>& c, tensor dy, saved& s) -> tensor {
            return inner.backward_input(c, dy, s);
        }
        void backward_weight(copipe::context<host_device>& c, saved& s) { inner.backward_weight(c, s); }
    };
    channel<int> never;
    for (bool const waits : {true, false}) { // without the wait, the step would be fine but for the failure
        auto const order = std::make_shared<toy::failure const>(
            toy::failure{.how = toy::failure::in::host, .layer = 1, .function = op::backward_input, .micro_batch = 0});
        waiting layer;
        if (waits) layer.never = &never;
        model<host_device> layers;
        layers.add(layer).add(toy::brittle{1, order}).add(toy::distance{});
        toy::setup const how{.cut = partition::given({0, 1, 3}, 3)};
        toy::pipeline piped{one_f_one_b{}, {2, 4}, layers, how};
        CHECK_THROWS_WITH(piped.run_step(toy::numbers{}),
                          says("rank 1, stage 1, micro-batch 0, backward of layer 1: broken"));
        piped.recover();
    }
}

TEST_CASE("a layer that waits for what never comes ends when the chunk that overlaps its own fails") {
    struct waiting : toy::brittle {
        using saved = toy::brittle::saved;
        channel<int>* never;
        std::int64_t waits_at;
        waiting(int layer, std::shared_ptr<toy::failure const> told, channel<int>& channel, std::int64_t micro_batch)
            : brittle(layer, std::move(told)), never(&channel), waits_at(micro_batch) {}
        auto forward(copipe::context<host_device>& c, tensor x, saved& s) -> task<tensor> {
            if (c.micro_batch == waits_at) static_cast<void>(co_await never->receive());
            co_return toy::brittle::forward(c, x, s);
        }
    };
    channel<int> never;
    step_plan const plan = plan_step(dualpipe_v{}, {1, 4});
    auto const& actions = plan.training[0].actions;
    auto const pair = std::find_if(actions.begin(), actions.end(), [](action const& a) { return a.overlapped(); });
    chunk const waits = pair->chunks()[0], fails = pair->chunks()[1];
    auto const order = std::make_shared<toy::failure const>(toy::failure{.how = toy::failure::in::host,
                                                                         .layer = fails.stage,
                                                                         .function = op::backward_input,
                                                                         .micro_batch = fails.micro_batch});
    model<host_device> layers;
    for (int i = 0; i < 2; ++i) layers.add(waiting{i, order, never, i == waits.stage ? waits.micro_batch : -1});
    layers.add(toy::distance{});
    toy::pipeline piped{dualpipe_v{}, {1, 4}, layers, {.cut = partition::given({0, 1, 3}, 3)}};
    CHECK(complaint(piped, toy::numbers{}, {.order = *order, .rank = 0, .failed = fails}) == "");
    piped.recover();
}

TEST_CASE("what is thrown need not be a std::exception") {
    struct odd : toy::dense {
        using toy::dense::dense;
        auto forward(copipe::context<host_device>& c, tensor x, saved& s) -> tensor {
            if (c.micro_batch == 1) throw 42;
            return toy::dense::forward(c, x, s);
        }
    };
    model<host_device> layers;
    layers.add(odd{}).add(toy::distance{});
    toy::pipeline piped{sequential{}, {1, 4}, layers};
    CHECK_THROWS_WITH(piped.run_step(toy::numbers{}), says("rank 0, stage 0, micro-batch 1, forward"));
    piped.recover();
}

TEST_CASE("a step after a failed one that was not recovered from throws as well, and does not hang") {
    auto const order = std::make_shared<toy::failure>();
    toy::numbers const data;
    toy::pipeline piped{dualpipe{}, {4, 8}, toy::brittle_network(depth, order)};
    toy::outcome const right = piped.train(data);
    *order = {.how = toy::failure::in::host, .layer = 3, .function = op::forward, .micro_batch = 2};
    CHECK_THROWS_AS(piped.run_step(data), chunk_error);
    order->how = toy::failure::in::nothing;
    CHECK_THROWS_AS(piped.run_step(data), peer_failed);
    piped.recover();
    CHECK(piped.train(data).same_bits(right));
}
