// SPDX-License-Identifier: Apache-2.0
#include "copipe/device/simulated.hpp"
#include "cases.hpp"
#include "catch.hpp"
#include "copipe/async/scope.hpp"
#include "copipe/pipeline/rank_pipeline.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/evaluate.hpp"
#include "copipe/schedule/gpipe.hpp"
#include "copipe/schedule/interleaved.hpp"
#include "copipe/schedule/interleaved_zero_bubble.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/sequential.hpp"
#include "copipe/schedule/v_half.hpp"
#include "copipe/schedule/v_min.hpp"
#include "copipe/schedule/zb_h1.hpp"
#include "copipe/schedule/zb_h2.hpp"
#include "copipe/schedule/zb_v.hpp"
#include "copipe/transport/in_process.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace {

using copipe::simulated_device;
using copipe::tensor;
using endpoint = copipe::in_process<simulated_device>::endpoint;

/// How much longer a micro-batch takes than the shortest.
auto longer(std::int64_t micro_batch) -> double { return static_cast<double>(1 + micro_batch * micro_batch % 5); }

/// Takes the given times, longer for some micro-batches, and hands on a tensor of `floats`.
struct timed {
    double forward_seconds, input_seconds, weight_seconds;
    std::int64_t floats;
    struct saved {};
    static auto parameters() -> std::array<copipe::parameter*, 0> { return {}; }
    auto forward(copipe::context<simulated_device>& c, tensor, saved&) const -> tensor {
        c.stream.launch(forward_seconds * longer(c.micro_batch));
        return c.make({floats});
    }
    auto backward_input(copipe::context<simulated_device>& c, tensor, saved&) const -> tensor {
        c.stream.launch(input_seconds * longer(c.micro_batch));
        return c.make({floats});
    }
    void backward_weight(copipe::context<simulated_device>& c, saved&) const {
        c.stream.launch(weight_seconds * longer(c.micro_batch));
    }
};

struct nothing {
    static auto size() -> std::uint64_t { return 1; }
    static void load(std::uint64_t, copipe::host_array& input, copipe::host_array& target) {
        input.resize<float>({1}, copipe::dtype::f32);
        target.resize<float>({1}, copipe::dtype::f32);
    }
};

struct random_costs {
    std::vector<timed> parts;
    double delay = 0;
    double per_byte = 0;
    copipe::placement where{};
    int micro_batches = 1;

    [[nodiscard]] auto seconds(copipe::action const& work) const -> double {
        double sum = 0;
        for (copipe::chunk const& c : work.chunks()) {
            timed const& part = parts[c.stage % parts.size()];
            double own = 0;
            if (c.what == copipe::op::forward) own += part.forward_seconds;
            if (c.what == copipe::op::backward || c.what == copipe::op::backward_input) own += part.input_seconds;
            if (c.what == copipe::op::backward || c.what == copipe::op::backward_weight) own += part.weight_seconds;
            sum += own * longer(where.global_micro_batch(c.stage, c.micro_batch, micro_batches));
        }
        return sum;
    }
    [[nodiscard]] auto occupancy(copipe::message const& m) const -> double {
        return static_cast<double>(parts[m.from_stage % parts.size()].floats * 4) * per_byte;
    }
    [[nodiscard]] auto latency(copipe::message const&) const -> double { return delay; }
};

struct simulated_run {
    copipe::simulation clock{};
    copipe::step_plan plan;
    copipe::in_process<simulated_device> net;
    std::deque<simulated_device> devices{};
    std::deque<copipe::rank_pipeline<simulated_device, endpoint>> ranks{};
    nothing data{};

    template <class Policy>
    simulated_run(Policy policy, copipe::shape size, random_costs const& costs, copipe::simulated_behaviour how = {})
        : plan(copipe::plan_step(policy, size)), net(size.ranks) {
        copipe::model<simulated_device> layers;
        for (timed const& each : costs.parts) layers.add(each);
        auto const cut = copipe::partition::even(static_cast<int>(layers.size()), plan.where.model_stages());
        how.latency = costs.delay;
        how.seconds_per_byte = costs.per_byte;
        for (int r = 0; r < size.ranks; ++r) {
            devices.emplace_back(clock, how);
            ranks.emplace_back(
                plan, cut, layers, r, devices.back(), net.connect(r),
                copipe::pipeline_options{.lookahead = plan.training[static_cast<std::size_t>(r)].actions.size()});
        }
    }
    auto step() -> double {
        copipe::run(clock, all());
        return clock.now();
    }
    auto all() -> copipe::task<> {
        copipe::batch const from{copipe::dataset_ref{data}};
        copipe::scope together{co_await copipe::this_environment{}};
        for (auto& each : ranks) together.spawn(each.run(from, true));
        co_await together.join();
    }
};

template <class Policy>
auto programs_of(Policy policy, copipe::shape size) {
    return copipe::programs(policy, size);
}

template <class Policy>
void agree_on_random_costs(Policy policy, std::vector<copipe::shape> const& shapes, int rounds) {
    std::mt19937_64 random{20260101};
    // Multiples of 1/1024: sums are exact in any order, so the two must agree to the bit.
    auto const draw = [&](int below) { return std::uniform_int_distribution<int>{0, 1024 * below}(random) / 1024.0; };
    for (int round = 0; round < rounds; ++round) {
        copipe::shape const size = shapes[static_cast<std::size_t>(round) % shapes.size()];
        auto const where = policy.placed(size);
        random_costs costs{
            .parts = {}, .delay = round % 3 == 0 ? 0 : draw(1), .per_byte = round % 4 == 0 ? 0 : draw(1) / 64,
            .where = where, .micro_batches = size.micro_batches};
        for (int s = 0; s < where.model_stages(); ++s) {
            costs.parts.push_back(
                {draw(2), draw(2), draw(2), std::uniform_int_distribution<std::int64_t>{1, 30}(random)});
        }
        INFO(Policy::name << " round " << round << " ranks " << size.ranks << " micro-batches " << size.micro_batches);
        double const predicted = copipe::evaluate(programs_of(policy, size), where, size.micro_batches, costs).makespan;
        simulated_run simulated{policy, size, costs};
        double const measured = simulated.step();
        REQUIRE(measured == predicted);
    }
}

} // namespace

TEST_CASE("the engine in virtual time takes what the evaluator predicts, under every policy, for random costs",
          "[one_thread]") {
    int const many = cases(1000);
    std::vector<copipe::shape> const any{{1, 3}, {2, 1}, {3, 5}, {4, 8}, {7, 3}};
    std::vector<copipe::shape> const even{{2, 4}, {4, 8}, {4, 12}, {3, 6}};
    agree_on_random_costs(copipe::sequential{}, {{1, 1}, {1, 7}}, many);
    agree_on_random_costs(copipe::gpipe{}, any, many);
    agree_on_random_costs(copipe::one_f_one_b{}, any, many);
    agree_on_random_costs(copipe::interleaved<2>{}, even, many);
    agree_on_random_costs(copipe::interleaved<3>{}, even, many);
    agree_on_random_costs(copipe::interleaved_overlapped<2>{}, even, many);
    agree_on_random_costs(copipe::interleaved_zero_bubble<2>{}, even, many);
    agree_on_random_costs(copipe::zb_h1{}, any, many);
    agree_on_random_costs(copipe::zb_h2{}, any, many);
    agree_on_random_costs(copipe::zb_v{}, any, many);
    agree_on_random_costs(copipe::v_half{}, any, many);
    agree_on_random_costs(copipe::v_min{}, any, many);
    agree_on_random_costs(copipe::dualpipe{}, {{2, 4}, {4, 8}, {4, 10}, {6, 14}, {8, 20}}, many);
    agree_on_random_costs(copipe::dualpipe_v{}, {{1, 2}, {2, 4}, {3, 7}, {4, 10}, {8, 16}}, many);
}

TEST_CASE("virtual time is the same from run to run, and a slow rank makes the step longer") {
    random_costs const costs{.parts = std::vector<timed>(4, timed{1, 1, 1, 1}), .delay = 0.25};
    double const first = simulated_run{copipe::one_f_one_b{}, {4, 8}, costs}.step();
    double const again = simulated_run{copipe::one_f_one_b{}, {4, 8}, costs}.step();
    double const slow =
        simulated_run{copipe::one_f_one_b{}, {4, 8}, costs, {.stretch = [](double, double s) { return 2 * s; }}}.step();
    REQUIRE(first == again);
    REQUIRE(first > 33); // without latency
    REQUIRE(slow > first);
}

TEST_CASE("a simulated device that fails ends the step with the chunk that it hit, on all ranks") {
    random_costs const costs{.parts = std::vector<timed>(4, timed{1, 1, 1, 1})};
    simulated_run broken{copipe::one_f_one_b{}, {4, 8}, costs, {.fails_at = 10.5}};
    REQUIRE_THROWS_AS(broken.step(), copipe::chunk_error);
}

TEST_CASE("a step that can make no progress is reported at once, with who waits for whom") {
    random_costs const costs{.parts = std::vector<timed>(2, timed{1, 1, 1, 1})};
    simulated_run stuck{copipe::one_f_one_b{}, {2, 4}, costs};
    std::string said;
    stuck.clock.on_deadlock([&] {
        for (auto& each : stuck.ranks) said += each.blocked() + ".";
        stuck.net.connect(0).abort();
    });
    auto const only_rank_0 = [&]() -> copipe::task<> {
        copipe::batch const from{copipe::dataset_ref{stuck.data}};
        co_await stuck.ranks[0].run(from, true);
    };
    REQUIRE_THROWS_AS(copipe::run(stuck.clock, only_rank_0()), copipe::peer_failed);
    CHECK(said == "rank 0 waits with the backward of stage 0, micro-batch 0, for stage 1 of rank 1..");
}

TEST_CASE("a chunk whose layers wait for ever is named") {
    struct waiting : timed {
        copipe::one_shot_event* never;
        auto forward(copipe::context<simulated_device>& c, tensor x, saved& s) const -> copipe::task<tensor> {
            if (c.micro_batch == 2) co_await never->wait();
            co_return timed::forward(c, std::move(x), s);
        }
    };
    copipe::one_shot_event never;
    copipe::simulation clock;
    copipe::model<simulated_device> layers;
    layers.add(timed{1, 1, 1, 1}).add(waiting{{1, 1, 1, 1}, &never});
    auto const plan = copipe::plan_step(copipe::one_f_one_b{}, {1, 4});
    auto const cut = copipe::partition::even(2, 1);
    copipe::in_process<simulated_device> net{1};
    simulated_device dev{clock};
    copipe::rank_pipeline<simulated_device, endpoint> only{plan, cut, layers, 0, dev, net.connect(0), {}};
    nothing const data;
    copipe::batch const from{copipe::dataset_ref{data}};
    std::string said;
    clock.on_deadlock([&] {
        said = only.blocked();
        never.set();
    });
    copipe::run(clock, only.run(from, true));
    CHECK(said == "rank 0 waits with the forward of stage 0, micro-batch 2, for what its layers await");
    CHECK(only.blocked().empty());
}
