// SPDX-License-Identifier: Apache-2.0
// A trainer with a balancer: what it measures, when it asks, what it reports of a move; and that moving does not show
// in what is learned.
#include "catch.hpp"
#include "pipeline/toy.hpp"
#include "temporary_folder.hpp"

#include "copipe/balance/balanced.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/sequential.hpp"
#include "copipe/train/simulated_update.hpp"
#include "copipe/train/trainer.hpp"

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

using namespace copipe;

namespace {

/// Says what it was told to say, one answer after the other, and keeps what it was shown.
struct scripted {
    std::deque<std::optional<partition>> answers{};
    int every = 10;
    std::vector<measurements> seen{};
    std::vector<partition> present{};

    auto propose(measurements const& shown, partition const& now) -> std::optional<partition> {
        seen.push_back(shown);
        present.push_back(now);
        if (answers.empty()) return {};
        auto const answer = answers.front();
        answers.pop_front();
        return answer;
    }
    [[nodiscard]] auto check_every() const -> int { return every; }
};
static_assert(balancer<scripted>);

/// A layer in virtual time: 1 ms forward, 2 ms backward_input, 3 ms backward_weight, times `cost`.
struct timed {
    double cost = 1;
    parameter w{.name = "w", .sizes = {100, 10}};
    struct saved {};
    auto parameters() { return std::array{&w}; }
    auto forward(context<simulated_device>& c, tensor, saved&) -> tensor { return work(c, 1e-3); }
    auto backward_input(context<simulated_device>& c, tensor, saved&) -> tensor { return work(c, 2e-3); }
    void backward_weight(context<simulated_device>& c, saved&) { c.stream.launch(3e-3 * cost); }
    auto work(context<simulated_device>& c, double seconds) const -> tensor {
        c.stream.launch(seconds * cost);
        return c.make({1});
    }
};

struct nothing {
    static auto size() -> std::uint64_t { return 1; }
    static void load(std::uint64_t, host_array& input, host_array& target) {
        input.resize<float>({1}, dtype::f32);
        target.resize<float>({1}, dtype::f32);
    }
};

/// A trainer in virtual time, whose ranks may be slow from some moment on.
template <class Policy, class Balancer>
struct virtual_training {
    struct slow_rank {
        int rank = -1;
        double factor = 1, from = 0;
    };
    simulation clock{};
    trainer<Policy, simulated_device, Balancer> train;

    virtual_training(shape size, std::vector<double> const& costs, Balancer decides, slow_rank slow = {},
                     double seconds_per_byte = 1e-10)
        : train(layers(costs),
                {.ranks = size.ranks,
                 .micro_batches = size.micro_batches,
                 .exec = &clock,
                 .make_device =
                     [this, slow, seconds_per_byte](int rank) {
                         simulated_behaviour how{.seconds_per_byte = seconds_per_byte};
                         if (rank == slow.rank)
                             how.stretch = [slow](double start, double seconds) {
                                 return seconds * (start >= slow.from ? slow.factor : 1);
                             };
                         return std::make_unique<simulated_device>(clock, how);
                     }},
                {}, std::move(decides)) {}

    static auto layers(std::vector<double> const& costs) -> model<simulated_device> {
        model<simulated_device> made;
        for (double const each : costs) made.add(timed{each});
        return made;
    }
    /// Seconds and moves of so many steps.
    auto steps(int count) -> std::vector<step_report> {
        std::vector<step_report> reports;
        for (int i = 0; i < count; ++i) reports.push_back(train.step(nothing{}));
        return reports;
    }
};

auto moves_in(std::vector<step_report> const& reports) -> int {
    int moves = 0;
    for (auto const& each : reports) moves += each.moved ? 1 : 0;
    return moves;
}

} // namespace

TEST_CASE("a balancer is asked every so many steps, and sees what layers cost and how slow each rank is") {
    virtual_training<one_f_one_b, scripted> run{{2, 4}, {1, 2, 3, 4}, scripted{}, {.rank = 1, .factor = 2}};
    auto const reports = run.steps(31);
    auto const& seen = run.train.balancer().seen;
    REQUIRE(seen.size() == 3);
    CHECK(moves_in(reports) == 0);
    for (std::size_t i = 0; i < 3; ++i) {
        CHECK(seen[i].step == 10 * (i + 1));
        CHECK(seen[i].micro_batches == 4);
        CHECK(seen[i].step_seconds == Approx(reports[5].seconds));
        REQUIRE(seen[i].slowness.size() == 2);
        CHECK(seen[i].slowness[0] == Approx(1));
        CHECK(seen[i].slowness[1] == Approx(2));
        REQUIRE(seen[i].layers.size() == 4);
        for (int layer = 0; layer < 4; ++layer) {
            CHECK(seen[i].layers[layer].forward == Approx(1e-3 * (layer + 1)));
            CHECK(seen[i].layers[layer].backward_input == Approx(2e-3 * (layer + 1)));
            CHECK(seen[i].held_out[layer].backward_weight == Approx(3e-3 * (layer + 1)));
            CHECK(seen[i].bytes[layer] == 3 * 1000 * sizeof(float)); // the parameter and two states
        }
        CHECK(seen[i].bytes_per_second == Approx(1e10));
    }
    CHECK(run.train.fingerprints()[1].small_product == Approx(run.train.fingerprints()[0].small_product / 2));
}

TEST_CASE("when the balancer says so layers move, and the step that follows reports it") {
    scripted decides{.answers = {partition::given({0, 1, 4}, 4), std::nullopt, partition::given({0, 3, 4}, 4)}};
    virtual_training<one_f_one_b, scripted> run{{2, 4}, {1, 1, 1, 1}, decides};
    auto const reports = run.steps(41);
    REQUIRE(moves_in(reports) == 2);
    REQUIRE(reports[10].moved);
    CHECK(reports[10].moved->from == partition::even(4, 2));
    CHECK(reports[10].moved->to == partition::given({0, 1, 4}, 4));
    CHECK(reports[10].moved->bytes == 3 * 1000 * sizeof(float));
    CHECK(reports[10].moved->seconds == Approx(3 * 1000 * sizeof(float) * 1e-10));
    CHECK(reports[10].step == 10);
    REQUIRE(reports[30].moved);
    CHECK(reports[30].moved->from == partition::given({0, 1, 4}, 4));
    CHECK(run.train.layers() == partition::given({0, 3, 4}, 4));
    std::size_t told = 0;
    CHECK(run.train.balancer().present.back() == partition::given({0, 3, 4}, 4));
    run.train.balancer().answers = {partition::even(4, 2)};
    CHECK(moves_in(run.steps(9)) == 0);
    auto const last = run.steps(1);
    for (int rank = 0; rank < 2; ++rank)
        for (span const& each : run.train.spans().of(rank)) told += each.kind == span_kind::move;
    CHECK(told == 2);
    CHECK(last.front().moved.has_value());
}

TEST_CASE("a rank that becomes slow loses layers to the other, and steps become shorter") {
    double const step = 10 * 4 * 6e-3; // roughly
    virtual_training<one_f_one_b, balanced> run{
        {2, 8},
        std::vector<double>(10, 1.0),
        balanced{{.check_every = 10}},
        {.rank = 1, .factor = 2, .from = 20 * step}};
    auto const reports = run.steps(120);
    CHECK(run.train.layers().last(0) == 7); // 7 layers at speed 1, 3 at half of it
    CHECK(moves_in(reports) >= 1);
    CHECK(moves_in(reports) <= 2);
    double slowest = 0;
    for (auto const& each : reports) slowest = std::max(slowest, each.seconds);
    CHECK(reports.back().seconds < 0.75 * slowest);
    for (auto const& each : reports) {
        if (!each.moved) continue;
        CHECK(each.moved->gain > 0.1);
        CHECK(each.moved->why.find("layers move") != std::string::npos);
    }
}

TEST_CASE("a change between two looks is noticed: layers move long before the next look") {
    virtual_training<one_f_one_b, balanced> run{
        {2, 8}, std::vector<double>(10, 1.0), balanced{}, {.rank = 1, .factor = 2, .from = 10.0}};
    std::uint64_t slow = 0, moved = 0;
    for (auto const& each : run.steps(140)) {
        if (slow == 0 && each.seconds > 0.5) slow = each.step;
        if (moved == 0 && each.moved) moved = each.step;
    }
    REQUIRE(slow > 30);
    CHECK(slow < 60);
    CHECK(moved > slow);
    CHECK(moved < slow + 20); // where the next look would have been after step 100
    CHECK(run.train.layers().last(0) == 7);
}

TEST_CASE("what a message took and what ranks waited for is measured, too") {
    virtual_training<one_f_one_b, scripted> run{{2, 4}, {1, 2, 3, 4}, scripted{}, {}, 1e-4};
    run.steps(11);
    auto const& seen = run.train.balancer().seen;
    REQUIRE(seen.size() == 1);
    REQUIRE(seen[0].messages.size() == 1);
    CHECK(seen[0].messages[0] == Approx(4e-4)); // one float
    REQUIRE(seen[0].waits.size() == 2);
    CHECK(seen[0].waits[1][static_cast<std::size_t>(wait_reason::input)] > 0);
}

TEST_CASE("layers that must be recomputed for want of memory change with the partition, and its costs stay true") {
    simulation clock;
    std::vector<layer_profile> profile(6, {.forward = 1e-3, .backward_input = 2e-3, .backward_weight = 3e-3,
                                           .saved_bytes = 1000, .parameter_bytes = 4000, .checkpoint_bytes = 4});
    model<simulated_device> layers;
    for (int i = 0; i < 6; ++i) layers.add(timed{});
    scripted decides{.answers = {partition::given({0, 4, 6}, 6), partition::given({0, 1, 6}, 6)}};
    trainer<one_f_one_b, simulated_device, scripted> train{
        layers,
        {.ranks = 2,
         .micro_batches = 4,
         .exec = &clock,
         .memory = memory_limit{.bytes = {4 * 16000 + 4 * 1000 + 1200}, .layers = profile},
         .make_device = [&clock](int) { return std::make_unique<simulated_device>(clock); }},
        {},
        decides};
    CHECK(train.recomputed().empty());
    step_report last;
    for (int i = 0; i < 11; ++i) last = train.step(nothing{});
    REQUIRE(last.moved);
    CHECK(train.recomputed().size() == 2); // of the four on rank 0, with two micro-batches in flight
    CHECK(last.moved->recomputed == train.recomputed());
    for (int i = 0; i < 9; ++i) train.step(nothing{});
    CHECK_THROWS_AS(train.step(nothing{}), memory_error); // five layers are too many
    CHECK(train.layers() == partition::given({0, 4, 6}, 6));
    auto const& seen = train.balancer().seen;
    REQUIRE(seen.size() == 2);
    for (pass_times const& each : seen[1].layers) {
        CHECK(each.forward == Approx(1e-3));
        CHECK(each.backward_input == Approx(2e-3)); // the second forward is not the layer's
    }
}

TEST_CASE("what is uneven from the start is evened out after some 20 steps, long before the first regular look") {
    virtual_training<one_f_one_b, balanced> run{{2, 8}, {4, 1, 1, 1, 1, 1, 1}, balanced{}};
    auto const reports = run.steps(40);
    CHECK(moves_in(reports) == 1);
    CHECK(run.train.layers() == partition::given({0, 2, 7}, 7));
    virtual_training<one_f_one_b, balanced> even{{2, 8}, {1, 1, 1, 1, 1, 1}, balanced{}};
    CHECK(moves_in(even.steps(250)) == 0);
    CHECK(even.train.balancer().last_decision().step >= 100); // the regular looks come, too
}

TEST_CASE("a rank that becomes slow during or soon after the first look is noticed long before the next") {
    for (int const step : {12, 18, 21, 24}) {
        virtual_training<one_f_one_b, balanced> even{{2, 8}, {1, 1, 1, 1, 1, 1}, balanced{}};
        double from = 0;
        for (auto const& each : even.steps(step)) from += each.seconds;
        virtual_training<one_f_one_b, balanced> run{{2, 8}, {1, 1, 1, 1, 1, 1}, balanced{}, {1, 2, from}};
        INFO("slow from step " << step << " on");
        CHECK(moves_in(run.steps(step + 40)) == 1);
        CHECK(run.train.layers() == partition::given({0, 4, 6}, 6));
    }
}

TEST_CASE("on a stable run nothing moves, and a static partition measures nothing") {
    virtual_training<dualpipe, balanced> run{{4, 8}, std::vector<double>(8, 1.0), balanced{{.check_every = 10}}};
    CHECK(moves_in(run.steps(100)) == 0);
    CHECK(run.train.fingerprints().size() == 4);
    virtual_training<dualpipe, static_partition> fixed{{4, 8}, std::vector<double>(8, 1.0), static_partition{}};
    CHECK(moves_in(fixed.steps(100)) == 0);
    CHECK(fixed.train.fingerprints().empty());
}

TEST_CASE("a trainer starts with the partition of its balancer, unless its options name one") {
    auto const given = partition::given({0, 5, 8}, 8);
    trainer<one_f_one_b> const one{toy::network(7), {.ranks = 2, .micro_batches = 2}, {}, static_partition{given}};
    CHECK(one.layers() == given);
    trainer<one_f_one_b> const other{toy::network(7),
                                     {.ranks = 2, .micro_batches = 2, .layers = partition::even(8, 2)},
                                     {},
                                     static_partition{given}};
    CHECK(other.layers() == partition::even(8, 2));
    trainer<one_f_one_b> const text{
        toy::network(7), {.ranks = 2, .micro_batches = 2}, {}, static_partition{"Et|t*5L"}};
    CHECK(text.layers() == partition::given({0, 2, 8}, 8));
    CHECK_THROWS_AS((trainer<one_f_one_b>{
                        toy::network(7), {.ranks = 4, .micro_batches = 2}, {}, static_partition{given}}),
                    partition_error);
}

TEST_CASE("training in which layers move at every check is bit for bit training in which none does") {
    temporary_folder const folder;
    auto const train = [&folder](auto policy, int ranks, bool move) {
        using policy_type = decltype(policy);
        scripted decides{.every = 10};
        trainer_options<host_device> const options{
            .ranks = ranks, .micro_batches = 8, .measure_every = 1, .fingerprints = folder / "devices"};
        trainer<policy_type, host_device, scripted> with{toy::network(11, true), options, {}, decides};
        int const stages = with.layers().stages();
        for (int i = 0; move && i < 4 && stages > 1; ++i) { // layers go to and fro
            std::vector<int> bounds;
            for (int s = 0; s < stages; ++s) bounds.push_back(s);
            bounds.push_back(12);
            for (int s = 1; s < stages; ++s)
                if (i % 2 == 1) bounds[static_cast<std::size_t>(s)] = 12 - stages + s;
            with.balancer().answers.push_back(partition::given(bounds, 12));
        }
        std::vector<double> losses;
        int moves = 0;
        for (int i = 0; i < 45; ++i) {
            step_report const report = with.step(toy::numbers{});
            losses.push_back(report.loss);
            losses.push_back(report.gradient_norm);
            moves += report.moved ? 1 : 0;
        }
        CHECK(moves == (move && stages > 1 ? 4 : 0));
        return losses;
    };
    auto const reference = train(sequential{}, 1, false);
    CHECK(train(one_f_one_b{}, 4, true) == reference);
    CHECK(train(dualpipe_v{}, 2, true) == reference);
    CHECK(train(dualpipe{}, 2, true) == train(dualpipe{}, 2, false));
}

TEST_CASE("a balancer that throws ends the step that was to come, and the next one runs") {
    struct sour {
        int asked = 0;
        auto propose(measurements const&, partition const&) -> std::optional<partition> {
            ++asked;
            throw error("no opinion");
        }
        [[nodiscard]] static auto check_every() -> int { return 10; }
    };
    virtual_training<one_f_one_b, sour> run{{2, 4}, {1, 1, 1, 1}, sour{}};
    run.steps(10);
    CHECK_THROWS_WITH(run.train.step(nothing{}), "no opinion");
    CHECK(run.train.steps_done() == 10);
    run.steps(5);
    CHECK(run.train.steps_done() == 15);
    CHECK(run.train.balancer().asked == 1);
}
