// SPDX-License-Identifier: Apache-2.0
// Overlapped pairs: a layer that awaits its own communication gives the compute stream to its partner at that line.
#include "catch.hpp"
#include "pipeline/fixture.hpp"
#include "says.hpp"

#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/sequential.hpp"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

using namespace copipe;
using toy::host_device;

namespace {

/// What all copies of a layer share: a communication stream per rank, and the order in which their work was enqueued.
class exchange {
public:
    auto stream_beside(host_stream& compute) -> host_stream& {
        std::scoped_lock const lock{mutex_};
        auto& mine = streams_[&compute];
        if (!mine) mine = &device_.open_stream("exchange");
        return *mine;
    }
    void note(host_stream const& compute, std::string step) {
        std::scoped_lock const lock{mutex_};
        log_[&compute].push_back(std::move(step));
    }
    /// The steps of one rank, in the order the host took them.
    auto log_of(host_stream const& compute) -> std::vector<std::string> {
        std::scoped_lock const lock{mutex_};
        return log_[&compute];
    }
    void forget() {
        std::scoped_lock const lock{mutex_};
        log_.clear();
    }

private:
    std::mutex mutex_{};
    std::map<host_stream const*, host_stream*> streams_{};
    std::map<host_stream const*, std::vector<std::string>> log_{};
    host_device device_{};
};

/// A dense layer whose input and gradient first go round over another stream, twice, as in an all-to-all.
struct exchanging {
    using saved = toy::dense::saved;
    toy::dense inner{};
    std::shared_ptr<exchange> shared;
    std::int64_t kernel_fails_at = -1; ///< micro-batch whose backward launches something that throws

    explicit exchanging(std::shared_ptr<exchange> with) : shared(std::move(with)) {}
    auto parameters() { return inner.parameters(); }

    /// The tensor as it comes back from the other stream.
    auto sent_round(context<host_device>& c, tensor x, std::string name) -> task<tensor> {
        host_stream& beside = shared->stream_beside(c.stream);
        tensor y = c.make(x.sizes());
        shared->note(c.stream, name + "1");
        auto const ready = c.stream.record();
        beside.wait(ready);
        beside.launch([from = x.data(), to = y.data(), n = x.count()] {
            std::this_thread::sleep_for(std::chrono::microseconds(50));
            for (std::size_t i = 0; i < n; ++i) to[i] = from[i];
        });
        auto const there = beside.record();
        co_await c.follow(there);
        shared->note(c.stream, name + "2");
        auto const back = beside.record();
        co_await c.follow(back);
        shared->note(c.stream, name + "3");
        co_return y;
    }
    auto forward(context<host_device>& c, tensor x, saved& s) -> task<tensor> {
        tensor const here = co_await sent_round(c, x, "F" + std::to_string(c.micro_batch) + ".");
        co_return inner.forward(c, here, s);
    }
    auto backward_input(context<host_device>& c, tensor dy, saved& s) -> task<tensor> {
        if (c.micro_batch == kernel_fails_at) c.stream.launch([] { throw std::runtime_error("broken kernel"); });
        tensor const here = co_await sent_round(c, dy, "B" + std::to_string(c.micro_batch) + ".");
        co_return inner.backward_input(c, here, s);
    }
    void backward_weight(context<host_device>& c, saved& s) {
        shared->note(c.stream, "W" + std::to_string(c.micro_batch));
        inner.backward_weight(c, s);
    }
};

auto exchanging_network(int depth, std::shared_ptr<exchange> const& shared) -> model<host_device> {
    model<host_device> layers;
    for (int i = 0; i < depth; ++i) layers.add(exchanging{shared});
    layers.add(toy::distance{});
    return layers;
}

/// The order of one rank's steps when each stage has one exchanging layer: partners alternate at every await.
auto expected_log(step_plan const& plan, int rank, partition const& cut) -> std::vector<std::string> {
    std::vector<std::string> log;
    for (action const& each : plan.training[static_cast<std::size_t>(rank)].actions) {
        std::vector<std::vector<std::string>> sides;
        for (chunk const& c : each.chunks()) {
            auto const m = std::to_string(plan.where.global_micro_batch(c.stage, c.micro_batch, plan.micro_batches));
            std::vector<std::string> steps;
            int const part = plan.where.model_stage(c.stage);
            if (cut.first(part) < cut.layers() - 1) { // else it has only the loss
                std::string const name = (c.what == op::forward ? "F" : "B") + m + ".";
                if (c.what != op::backward_weight) steps = {name + "1", name + "2", name + "3"};
                // the last part of a side runs on without a turn: what follows the last await belongs to it
                if (c.what == op::backward_weight) steps = {"W" + m};
                if (c.what == op::backward) steps.back() += " W" + m;
            }
            sides.push_back(steps);
        }
        if (sides.size() == 1) sides.emplace_back();
        for (std::size_t i = 0; i < 3; ++i) {
            for (auto const& side : sides) {
                if (i < side.size()) log.push_back(side[i]);
            }
        }
    }
    std::vector<std::string> flat;
    for (std::string const& each : log) {
        std::size_t const space = each.find(' ');
        flat.push_back(each.substr(0, space));
        if (space != std::string::npos) flat.push_back(each.substr(space + 1));
    }
    return flat;
}

} // namespace

TEST_CASE("the partner chunk runs at the very line where a layer awaits its communication, the same way every time") {
    toy::numbers const data;
    for (auto const threads : {rank_threads::one_each, rank_threads::calling_thread}) {
        auto const shared = std::make_shared<exchange>();
        toy::setup const how{.threads = threads, .cut = partition::given({0, 1, 2, 3, 4}, 4)};
        toy::pipeline piped{dualpipe{}, {4, 12}, exchanging_network(3, shared), how};
        for (int step = 0; step < 5; ++step) {
            shared->forget();
            piped.run_step(data);
            for (int r = 0; r < 4; ++r) {
                auto const got = shared->log_of(piped.ranks[static_cast<std::size_t>(r)].compute_stream());
                auto const expected = expected_log(piped.plan, r, piped.cut);
                CAPTURE(r, step, threads);
                REQUIRE(got == expected);
            }
        }
    }
}

TEST_CASE("overlapped pairs of layers that communicate compute what plain training computes") {
    toy::numbers const data{.rows = [](std::uint64_t index) { return static_cast<std::int64_t>(1 + index % 4); }};
    auto const shared = std::make_shared<exchange>();
    toy::pipeline plain{sequential{}, {1, 12}, exchanging_network(7, shared)};
    toy::outcome const expected = plain.train(data);
    toy::outcome const without = toy::pipeline{sequential{}, {1, 12}, toy::network(7)}.train(data);
    CHECK(expected.same_bits(without)); // the detour over another stream changes nothing
    for (std::size_t const lookahead : {1U, 4U, 100U}) {
        toy::setup how;
        how.options.lookahead = lookahead;
        toy::pipeline v{dualpipe_v{}, {4, 12}, exchanging_network(7, shared), how};
        toy::pipeline dual{dualpipe{}, {4, 12}, exchanging_network(7, shared), how};
        toy::outcome const first = dual.train(data);
        CHECK(first.distance_to(expected) < 1e-5);
        for (int step = 0; step < 3; ++step) {
            CHECK(v.train(data).same_bits(expected));
            CHECK(dual.train(data).same_bits(first));
        }
    }
}

TEST_CASE("a layer may wait on the host inside an overlapped pair, for a size that only the device knows") {
    struct measuring {
        using saved = toy::dense::saved;
        toy::dense inner{};
        auto parameters() { return inner.parameters(); }
        static auto wait_for(context<host_device>& c, tensor const& x) -> task<> {
            tensor const size = c.make({1});
            c.stream.launch([to = size.data(), n = x.size(0)] { *to = static_cast<float>(n); });
            auto const known = c.stream.record();
            co_await known.completion();
            if (*size.data() != static_cast<float>(x.size(0))) throw std::runtime_error("the device is not done yet");
        }
        auto forward(context<host_device>& c, tensor x, saved& s) -> task<tensor> {
            co_await wait_for(c, x);
            co_return inner.forward(c, x, s);
        }
        auto backward_input(context<host_device>& c, tensor dy, saved& s) -> task<tensor> {
            co_await wait_for(c, dy);
            tensor const dx = inner.backward_input(c, dy, s);
            co_await wait_for(c, dx);
            co_return dx;
        }
        auto backward_weight(context<host_device>& c, saved& s) -> task<> {
            inner.backward_weight(c, s);
            co_await wait_for(c, s.x);
        }
    };
    toy::numbers const data{.rows = [](std::uint64_t index) { return static_cast<std::int64_t>(1 + index % 4); }};
    model<host_device> layers;
    for (int i = 0; i < 7; ++i) layers.add(measuring{});
    layers.add(toy::distance{});
    toy::outcome const expected = toy::pipeline{sequential{}, {1, 12}, toy::network(7)}.train(data);
    for (auto const threads : {rank_threads::one_each, rank_threads::calling_thread}) {
        for (auto const execution : {host_execution::worker_thread, host_execution::inline_}) {
            toy::setup const how{.threads = threads, .execution = execution};
            CHECK(toy::pipeline{dualpipe_v{}, {4, 12}, layers, how}.train(data).same_bits(expected));
            CHECK(toy::pipeline{dualpipe{}, {4, 12}, layers, how}.train(data).distance_to(expected) < 1e-5);
        }
    }
}

TEST_CASE("a kernel that fails where two chunks overlap is reported with its chunk named, not its partner alone") {
    toy::numbers const data;
    auto const shared = std::make_shared<exchange>();
    for (std::int64_t m = 0; m < 12; ++m) {
        exchanging failing{shared};
        failing.kernel_fails_at = m;
        model<host_device> layers;
        layers.add(exchanging{shared}).add(failing).add(exchanging{shared}).add(toy::distance{});
        toy::setup const how{.cut = partition::given({0, 1, 2, 3, 4}, 4)};
        toy::pipeline piped{dualpipe{}, {4, 12}, layers, how};
        CAPTURE(m);
        CHECK_THROWS_WITH(piped.run_step(data), says("micro-batch " + std::to_string(m) + ", backward"));
        piped.recover();
    }
}
