// SPDX-License-Identifier: Apache-2.0
// What the engine tells of single layers, in virtual time, where every pass takes exactly what it was given.
#include "catch.hpp"

#include "copipe/async/scope.hpp"
#include "copipe/device/simulated.hpp"
#include "copipe/pipeline/rank_pipeline.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/zb_h1.hpp"
#include "copipe/transport/in_process.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <tuple>
#include <vector>

namespace {

using copipe::op;
using copipe::simulated_device;
using copipe::tensor;
using endpoint = copipe::in_process<simulated_device>::endpoint;

/// Layer `number` takes number + 1, twice that, and three times that many seconds; with `asks` it lets a partner run
/// halfway through.
struct numbered {
    int number;
    bool asks = false;
    struct saved {};
    static auto parameters() -> std::array<copipe::parameter*, 0> { return {}; }

    [[nodiscard]] static auto seconds(int layer, op pass) -> double {
        return (layer + 1) * (pass == op::forward ? 1.0 : pass == op::backward_input ? 2.0 : 3.0);
    }
    auto forward(copipe::context<simulated_device>& c, tensor, saved&) -> copipe::task<tensor> {
        return work(c, seconds(number, op::forward));
    }
    auto backward_input(copipe::context<simulated_device>& c, tensor, saved&) -> copipe::task<tensor> {
        return work(c, seconds(number, op::backward_input));
    }
    void backward_weight(copipe::context<simulated_device>& c, saved&) {
        c.stream.launch(seconds(number, op::backward_weight));
    }
    auto work(copipe::context<simulated_device>& c, double all) const -> copipe::task<tensor> {
        c.stream.launch(all / 2);
        copipe::simulated_event const half = c.stream.record();
        if (asks) co_await c.follow(half);
        c.stream.launch(all / 2);
        co_return c.make({1});
    }
};

struct nothing {
    static auto size() -> std::uint64_t { return 1; }
    static void load(std::uint64_t, copipe::host_array& input, copipe::host_array& target) {
        input.resize<float>({1}, copipe::dtype::f32);
        target.resize<float>({1}, copipe::dtype::f32);
    }
};

using key = std::tuple<int, int, int, int>; // stage, micro-batch, layer, pass

struct notebook {
    std::map<key, std::vector<double>> seconds{};
    std::map<std::tuple<int, int, int>, double> chunks{}; // stage, micro-batch, op
    bool right_rank = true;
    copipe::placement where;

    explicit notebook(copipe::placement placed) : where(placed) {}
    void record(copipe::span const& one) noexcept {
        if (one.kind <= copipe::span_kind::overlapped_backward)
            chunks[{one.what.stage, one.what.micro_batch, static_cast<int>(one.what.what)}] = one.seconds();
    }
    void record(copipe::layer_span const& one) noexcept {
        seconds[{one.what.stage, one.what.micro_batch, one.layer, static_cast<int>(one.what.what)}].push_back(
            one.seconds());
        right_rank = right_rank && one.rank == where.rank_of(one.what.stage);
    }
};

template <class Policy>
struct simulated_run {
    copipe::simulation clock{};
    copipe::step_plan plan;
    copipe::partition cut;
    notebook heard;
    copipe::in_process<simulated_device> net;
    std::deque<simulated_device> devices{};
    std::deque<copipe::rank_pipeline<simulated_device, endpoint>> ranks{};
    nothing data{};

    simulated_run(copipe::shape size, int layers, bool ask = false)
        : plan(copipe::plan_step(Policy{}, size)),
          cut(copipe::partition::even(layers, plan.where.model_stages())),
          heard(plan.where),
          net(size.ranks) {
        copipe::model<simulated_device> model;
        for (int i = 0; i < layers; ++i) model.add(numbered{i, ask});
        for (int r = 0; r < size.ranks; ++r) {
            devices.emplace_back(clock);
            ranks.emplace_back(plan, cut, model, r, devices.back(), net.connect(r),
                               copipe::pipeline_options{.listener = copipe::observer_ref{heard}});
        }
    }
    void step(bool training, copipe::timing layers) { copipe::run(clock, all(training, layers)); }
    auto all(bool training, copipe::timing layers) -> copipe::task<> {
        copipe::batch const from{copipe::dataset_ref{data}};
        copipe::scope together{co_await copipe::this_environment{}};
        for (auto& each : ranks) together.spawn(each.run(from, training, layers));
        co_await together.join();
    }
};

template <class Policy>
void check_every_pass(copipe::shape size, int layers) {
    simulated_run<Policy> run{size, layers};
    run.step(true, copipe::timing::on);
    INFO(Policy::name);
    CHECK(run.heard.right_rank);
    auto const& where = run.plan.where;
    std::size_t expected = 0;
    for (int stage = 0; stage < where.stages(); ++stage) {
        int const part = where.model_stage(stage);
        for (int m = 0; m < where.micro_batches_per_stage(size.micro_batches); ++m) {
            for (int layer = run.cut.first(part); layer < run.cut.last(part); ++layer) {
                for (op const pass : {op::forward, op::backward_input, op::backward_weight}) {
                    auto const found = run.heard.seconds.find({stage, m, layer, static_cast<int>(pass)});
                    REQUIRE(found != run.heard.seconds.end());
                    CHECK(found->second == std::vector<double>{numbered::seconds(layer, pass)});
                    ++expected;
                }
            }
        }
    }
    CHECK(run.heard.seconds.size() == expected);
}

} // namespace

TEST_CASE("a step with layer timing tells each pass of each layer on each micro-batch once, and what it took") {
    check_every_pass<copipe::one_f_one_b>({3, 5}, 8);
    check_every_pass<copipe::zb_h1>({2, 4}, 5);
    check_every_pass<copipe::dualpipe>({4, 10}, 9);
    check_every_pass<copipe::dualpipe_v>({2, 6}, 9);
}

TEST_CASE("layers are not told on a step without layer timing, nor the spans of chunks changed by it") {
    simulated_run<copipe::dualpipe_v> run{{2, 6}, 9};
    run.step(true, copipe::timing::off);
    CHECK(run.heard.seconds.empty());
    auto const chunks = run.heard.chunks;
    run.step(true, copipe::timing::on);
    CHECK_FALSE(run.heard.seconds.empty());
    CHECK(run.heard.chunks == chunks);
    run.heard.seconds.clear();
    run.step(true, copipe::timing::off);
    CHECK(run.heard.seconds.empty());
}

TEST_CASE("layers of a pair that took turns are not told, those of all other chunks exactly") {
    simulated_run<copipe::dualpipe> run{{4, 12}, 8, true};
    run.step(true, copipe::timing::on);
    std::size_t in_pairs = 0, alone = 0;
    for (auto const& program : run.plan.training) {
        for (copipe::action const& each : program.actions) {
            for (copipe::chunk const& c : each.chunks()) {
                op const told = c.what == op::backward ? op::backward_input : c.what;
                int const layer = run.cut.first(run.plan.where.model_stage(c.stage));
                auto const found =
                    run.heard.seconds.find({c.stage, c.micro_batch, layer, static_cast<int>(told)});
                ++(each.overlapped() ? in_pairs : alone);
                REQUIRE((found == run.heard.seconds.end()) == each.overlapped());
                if (!each.overlapped()) CHECK(found->second.front() == numbered::seconds(layer, told));
            }
        }
    }
    CHECK(in_pairs > 0);
    CHECK(alone > 0);
}

TEST_CASE("a listener that has no use for layers is told of none") {
    struct deaf {
        void record(copipe::span const&) noexcept {}
    };
    deaf one;
    notebook other{copipe::placement{}};
    CHECK_FALSE(copipe::observer_ref{one}.wants_layers());
    CHECK(copipe::observer_ref{other}.wants_layers());
    CHECK_FALSE(copipe::observer_ref{}.wants_layers());
    copipe::observer_ref{one}.record(copipe::layer_span{}); // goes nowhere
}
