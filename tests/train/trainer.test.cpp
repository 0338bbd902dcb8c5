// SPDX-License-Identifier: Apache-2.0
#include "copipe/train/trainer.hpp"
#include "catch.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/gpipe.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/sequential.hpp"
#include "pipeline/toy.hpp"
#include "says.hpp"
#include "temporary_folder.hpp"
#include "train/compiled.hpp"

#include <cmath>
#include <fstream>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

using namespace copipe;

namespace {

auto options(int ranks, int micro_batches = 8) -> trainer_options<> {
    return {.ranks = ranks,
            .micro_batches = micro_batches,
            .learning_rate = [](std::uint64_t step) { return 0.02 / (1 + 0.1 * static_cast<double>(step)); },
            .clip_norm = 0.5,
            .seed = 5};
}

/// Everything that a run of some steps comes to.
struct outcome {
    std::vector<double> losses{};
    std::vector<double> norms{};
    std::vector<std::vector<float>> parameters{};
    auto operator==(outcome const&) const -> bool = default;
};

template <class Trainer>
auto train(Trainer& trainer, int steps) -> outcome {
    outcome came;
    toy::numbers const data{[](std::uint64_t index) { return static_cast<std::int64_t>(1 + index % 4); }};
    for (int i = 0; i < steps; ++i) {
        auto const report = trainer.step(data);
        came.losses.push_back(report.loss);
        came.norms.push_back(report.gradient_norm);
    }
    for (auto const& group : trainer.parameters()) came.parameters.push_back(trainer.values(group.name));
    return came;
}

template <class Policy>
auto train_under(int ranks, bool tied, int steps = 6) -> outcome {
    trainer<Policy> with{toy::network(8, tied), options(ranks)};
    return train(with, steps);
}

/// Reads +-infinity from micro-batch 2 of the batch that follows `good` micro-batches.
struct poisoned : toy::numbers {
    std::uint64_t good = 8;
    void load(std::uint64_t index, host_array& input, host_array& target) const {
        numbers::load(index, input, target);
        if (index == good + 2) *target.data<float>() = std::numeric_limits<float>::infinity();
    }
};

struct broken_at : toy::numbers {
    std::uint64_t index = 0;
    void load(std::uint64_t i, host_array& input, host_array& target) const {
        if (i == index) throw std::runtime_error("the disk is gone");
        numbers::load(i, input, target);
    }
};

} // namespace

TEST_CASE("losses, norms and parameters are those of plain training to the bit, under every one-copy policy and number "
          "of ranks") {
    for (bool tied : {false, true}) {
        outcome const plain = train_under<sequential>(1, tied);
        REQUIRE(plain.losses.back() < plain.losses.front());
        for (int ranks : {1, 2, 4}) {
            INFO("ranks " << ranks << " tied " << tied);
            CHECK(train_under<gpipe>(ranks, tied) == plain);
            CHECK(train_under<one_f_one_b>(ranks, tied) == plain);
            CHECK(train_under<dualpipe_v>(ranks, tied) == plain);
        }
    }
}

TEST_CASE("recomputing layers changes no bit and saves memory, under every policy") {
    auto const train_with = [](auto policy, bool recompute, std::size_t& peak) {
        auto layers = toy::network(8);
        for (std::size_t i = 0; i < layers.size(); ++i) layers.recompute(i, recompute);
        trainer<decltype(policy)> with{layers, options(2, 8)};
        outcome const came = train(with, 3);
        peak = with.peak_memory(0);
        return came;
    };
    auto const same_with_less = [&](auto policy) {
        std::size_t kept = 0, recomputed = 0;
        CHECK(train_with(policy, false, kept) == train_with(policy, true, recomputed));
        CHECK(recomputed < kept);
    };
    same_with_less(gpipe{});
    same_with_less(dualpipe{});
    same_with_less(dualpipe_v{});
}

TEST_CASE("DualPipe stays within 1e-5 of plain training over 20 steps, and gives the same bits from run to run") {
    for (bool tied : {false, true}) {
        outcome const plain = train_under<sequential>(1, tied, 20);
        for (int ranks : {2, 4}) {
            outcome const dual = train_under<dualpipe>(ranks, tied, 20);
            CHECK(dual == train_under<dualpipe>(ranks, tied, 20));
            for (std::size_t i = 0; i < plain.losses.size(); ++i)
                CHECK(dual.losses[i] == Approx(plain.losses[i]).epsilon(1e-5));
        }
    }
}

TEST_CASE("the norm is clipped over all stages together, and zero leaves gradients as they are") {
    auto unclipped = options(2);
    unclipped.clip_norm = 0;
    trainer<gpipe> free{toy::network(8), unclipped};
    trainer<gpipe> clipped{toy::network(8), options(2)};
    auto const a = train(free, 1);
    auto const b = train(clipped, 1);
    CHECK(a.losses == b.losses);
    CHECK(a.norms == b.norms); // reported before clipping
    REQUIRE(a.norms.front() > 0.5);
    // Adam's first update is the sign of the gradient, whatever its scale; its state is not.
    trainer<gpipe> plain{toy::network(8), options(1)};
    CHECK(train(plain, 1) == b);
}

TEST_CASE("a checkpoint loads at any number of ranks and under any policy, and training goes on exactly") {
    temporary_folder const folder;
    trainer<sequential> whole{toy::network(8, true), options(1)};
    outcome const all = train(whole, 6);
    trainer<dualpipe_v> first{toy::network(8, true), options(2)};
    train(first, 3);
    first.save(folder / "half");
    auto const goes_on = [&](auto&& second) {
        second.load(folder / "half");
        CHECK(second.steps_done() == 3);
        CHECK(second.position() == 24);
        outcome const rest = train(second, 3);
        CHECK(rest.losses == std::vector<double>(all.losses.begin() + 3, all.losses.end()));
        CHECK(rest.parameters == all.parameters);
    };
    goes_on(trainer<sequential>{toy::network(8, true), options(1)});
    goes_on(trainer<gpipe>{toy::network(8, true), options(4)});
    goes_on(trainer<dualpipe_v>{toy::network(8, true), options(4)});
    trainer<dualpipe> dual{toy::network(8, true), options(4)};
    dual.load(folder / "half");
    outcome const rest = train(dual, 3);
    for (std::size_t i = 0; i < 3; ++i) CHECK(rest.losses[i] == Approx(all.losses[3 + i]).epsilon(1e-5));
}

TEST_CASE("layers move between ranks in mid-training, and training goes on as if they never had") {
    auto const moves = [](auto policy, int ranks, std::vector<std::vector<int>> const& partitions) {
        trainer<decltype(policy)> still{toy::network(8, true), options(ranks)};
        trainer<decltype(policy)> moving{toy::network(8, true), options(ranks)};
        for (auto const& bounds : partitions) {
            CHECK(train(still, 2) == train(moving, 2));
            std::size_t const bytes = moving.repartition(partition::given(bounds, 9));
            CHECK(bytes > 0);
            CHECK(moving.layers().bounds() == bounds);
        }
        CHECK(train(still, 2) == train(moving, 2));
        CHECK(moving.repartition(moving.layers()) == 0);
        CHECK_THROWS_AS(moving.repartition(partition::even(9, 3)), partition_error);
    };
    moves(gpipe{}, 2, {{0, 1, 9}, {0, 8, 9}});
    moves(one_f_one_b{}, 4, {{0, 1, 2, 3, 9}, {0, 6, 7, 8, 9}});
    moves(dualpipe{}, 4, {{0, 1, 2, 3, 9}, {0, 6, 7, 8, 9}});
    moves(dualpipe_v{}, 2, {{0, 1, 2, 3, 9}, {0, 6, 7, 8, 9}});
}

TEST_CASE("a checkpoint of another model is refused, naming the tensor, and nothing is changed") {
    temporary_folder const folder;
    trainer<sequential> small{toy::network(4), options(1)};
    small.save(folder / "small");
    trainer<gpipe> large{toy::network(8), options(2)};
    outcome const before = train(large, 0);
    CHECK_THROWS_AS(large.load(folder / "small"), checkpoint_error);
    CHECK_THROWS_WITH(large.load(folder / "small"), says("layers.4.w") && says("another model"));
    trainer<gpipe> smaller{toy::network(3), options(2)};
    CHECK_THROWS_WITH(smaller.load(folder / "small"), says("another model"));
    CHECK_THROWS_AS(large.load(folder / "absent"), error);
    put_contents(folder / "junk", "not a checkpoint at all");
    CHECK_THROWS_AS(large.load(folder / "junk"), error);
    CHECK(train(large, 0) == before);
}

TEST_CASE("parameters that are not finite are not saved over those that are") {
    temporary_folder const folder;
    trainer_options<> reckless = options(2);
    reckless.learning_rate = [](std::uint64_t step) { return step < 1 ? 0.02 : 1e39; };
    trainer<gpipe> with{toy::network(4), reckless};
    train(with, 1);
    with.save(folder / "good");
    std::string const good = contents(folder / "good");
    train(with, 1);
    CHECK_THROWS_AS(with.save(folder / "good"), checkpoint_error);
    CHECK_THROWS_WITH(with.save(folder / "good"), says("layers.0.w is not finite") && says("after step 2"));
    CHECK(contents(folder / "good") == good);
}

TEST_CASE("what on_step throws ends fit, and the step is saved") {
    temporary_folder const folder;
    trainer<gpipe> with{toy::network(4), options(2)};
    fit_options const fit{.on_step = [](step_report const& each) {
                              if (each.step == 2) throw std::runtime_error("the log is full");
                          },
                          .checkpoint = folder / "kept"};
    CHECK_THROWS_WITH(with.fit(toy::numbers{}, steps{9}, fit), says("the log is full"));
    trainer<gpipe> resumed{toy::network(4), options(2)};
    resumed.load(folder / "kept");
    CHECK(resumed.steps_done() == 3);
    CHECK(train(resumed, 2) == train(with, 2));
}

TEST_CASE("a step that throws leaves parameters and position untouched, and the next one runs") {
    trainer<dualpipe> with{toy::network(8), options(4)};
    trainer<dualpipe> undisturbed{toy::network(8), options(4)};
    train(with, 1);
    train(undisturbed, 1);
    broken_at data;
    data.index = 8 + 5;
    CHECK_THROWS_AS(with.step(data), chunk_error);
    CHECK_THROWS_WITH(with.step(data), says("micro-batch 5") && says("the disk is gone"));
    CHECK(with.position() == 8);
    CHECK(train(with, 2) == train(undisturbed, 2));
}

TEST_CASE("a loss that is not finite stops the step before the update and names the micro-batch") {
    trainer<one_f_one_b> with{toy::network(8), options(2)};
    train(with, 1);
    outcome const before = train(with, 0);
    try {
        with.step(poisoned{});
        FAIL("no exception");
    } catch (not_finite const& stopped) {
        CHECK(stopped.micro_batch == 2);
        CHECK(stopped.step == 1);
    }
    CHECK(train(with, 0) == before);
}

TEST_CASE("evaluation is the loss that training would report, and changes nothing") {
    trainer<dualpipe> with{toy::network(8), options(4)};
    outcome const before = train(with, 0);
    toy::numbers const data{[](std::uint64_t index) { return static_cast<std::int64_t>(1 + index % 4); }};
    double const evaluated = with.evaluate(data, 1, 0);
    CHECK(train(with, 0) == before);
    CHECK(with.step(data).loss == evaluated);
    CHECK(with.evaluate(data, 2, 0) != with.evaluate(data, 1, 0));
}

TEST_CASE("fit counts steps and epochs, saves on the way, and stops after the step under way") {
    temporary_folder const folder;
    toy::numbers const data{};
    trainer<gpipe> with{toy::network(8), options(2)};
    CHECK(with.fit(data, epochs{0.5}) == 4); // 64 micro-batches an epoch, 8 a step
    std::stop_source stop;
    std::vector<std::uint64_t> seen;
    auto const done = with.fit(data, steps{100},
                               {.on_step =
                                    [&](step_report const& each) {
                                        seen.push_back(each.step);
                                        if (seen.size() == 3) stop.request_stop();
                                    },
                                .checkpoint = folder / "stopped",
                                .stop = stop.get_token()});
    CHECK(done == 3);
    CHECK(seen == std::vector<std::uint64_t>{4, 5, 6});
    trainer<gpipe> resumed{toy::network(8), options(4)};
    resumed.load(folder / "stopped");
    CHECK(resumed.steps_done() == 7);
    CHECK(resumed.step(data).loss == with.step(data).loss);
}

TEST_CASE("what no training can come of is refused at the start, in words") {
    struct empty : toy::numbers {
        static auto size() -> std::uint64_t { return 0; }
    };
    trainer<gpipe> with{toy::network(8), options(2)};
    CHECK_THROWS_WITH(with.fit(empty{}, epochs{1}), says("no micro-batches"));
    CHECK_THROWS_AS(with.fit(toy::numbers{}, steps{1}, {.checkpoint = "/nowhere/at/all"}), file_error);
    CHECK(with.steps_done() == 0);
    toy::numbers const weightless{[](std::uint64_t) { return std::int64_t{0}; }};
    CHECK_THROWS_WITH(with.step(weightless), says("micro-batches 0 to 7 add up to 0"));
    struct twice : toy::dense {
        twice() : dense("") {}
        parameter v{.name = "w", .sizes = {3}};
        auto parameters() { return std::array{&w, &v}; }
    };
    model<host_device> layers;
    twice both;
    layers.add(both).add(toy::distance{});
    CHECK_THROWS_WITH((trainer<gpipe>{layers}), says("layers.0.w is declared twice"));
}

TEST_CASE("what a step measured accounts for all ranks' time") {
    trainer<one_f_one_b> with{toy::network(8), options(4)};
    auto const report = with.step(toy::numbers{});
    REQUIRE(report.measured.ranks.size() == 4);
    for (auto const& rank : report.measured.ranks) {
        CHECK(rank.busy > 0);
        CHECK(rank.busy + rank.bubble == Approx(report.measured.makespan));
        CHECK(rank.update > 0);
    }
    CHECK(report.measured.makespan < report.seconds);
}

TEST_CASE("a model that does not fit its pipeline is refused before anything runs") {
    CHECK_THROWS_AS((trainer<gpipe>{toy::network(2), options(4)}), partition_error);
    CHECK_THROWS_AS((trainer<dualpipe>{toy::network(8), options(3)}), shape_error);
    CHECK_THROWS_AS((trainer<dualpipe>{toy::network(8), options(4, 6)}), shape_error);
    auto wrong = options(4);
    wrong.layers = partition::given({0, 3, 9}, 9);
    CHECK_THROWS_AS((trainer<gpipe>{toy::network(8), wrong}), partition_error);
}
