// SPDX-License-Identifier: Apache-2.0
// Limits of memory: kept in real training, on every rank, down to the least that is enough.
#include "copipe/train/memory_plan.hpp"

#include "catch.hpp"
#include "copipe/schedule/data_parallel.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/gpipe.hpp"
#include "copipe/schedule/interleaved.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/zb_h1.hpp"
#include "copipe/train/profile.hpp"
#include "copipe/train/trainer.hpp"
#include "says.hpp"
#include "train/compiled.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

using namespace copipe;

namespace {

constexpr int size = 1024;

/// A rank that takes long, so that the other has to keep what it sent it.
int slow_rank = -1;

struct failing {
    struct saved {};
    auto parameters() { return std::array<parameter*, 0>{}; }
    auto forward(context<host_device>&, tensor, saved&) -> tensor { throw std::runtime_error("not today"); }
    auto backward_input(context<host_device>&, tensor dy, saved&) -> tensor { return dy; }
    void backward_weight(context<host_device>&, saved&) {}
};

/// y = 0.9 x + w; keeps eight times as much as its input, and a large copy of its parameter.
struct heavy {
    struct saved {
        tensor all, dy;
    };
    parameter w{.name = "w", .sizes = {size}, .first = normal(0.3)};
    tensor copy{};
    std::uint64_t copied_in = 0; ///< of the engine's runs
    auto parameters() { return std::array{&w}; }
    auto forward(context<host_device>& c, tensor x, saved& s) -> tensor {
        if (c.run != copied_in) {
            if (!copy) copy = c.make({4, size});
            c.stream.copy(copy.data(), w.value.data(), 4 * size);
            copied_in = c.run;
        }
        s.all = c.make({8, size});
        tensor y = c.make({size});
        c.stream.launch([in = x.data(), bias = copy.data(), kept = s.all.data(), out = y.data(),
                         slow = c.rank == slow_rank] {
            if (slow) std::this_thread::sleep_for(std::chrono::microseconds{100});
            for (int i = 0; i < size; ++i) kept[i] = out[i] = 0.9F * in[i] + bias[i];
        });
        return y;
    }
    static auto backward_input(context<host_device>& c, tensor dy, saved& s) -> tensor {
        tensor dx = c.make({size});
        c.stream.launch([d = dy.data(), out = dx.data()] {
            for (int i = 0; i < size; ++i) out[i] = 0.9F * d[i];
        });
        s.dy = dy;
        return dx;
    }
    void backward_weight(context<host_device>& c, saved& s) const {
        c.stream.launch([d = s.dy.data(), kept = s.all.data(), sum = w.gradient.data()] {
            for (int i = 0; i < size; ++i) sum[i] += d[i] * (1 + kept[i] * kept[i]);
        });
    }
};

/// The loss: half the sum of squares.
struct squares {
    struct saved {
        tensor x;
        float scale = 0;
    };
    static auto forward(context<host_device>& c, tensor x, saved& s) -> tensor {
        tensor y = c.make({1});
        s = {x, c.scale};
        c.stream.launch([in = x.data(), out = y.data()] {
            *out = 0;
            for (int i = 0; i < size; ++i) *out += 0.5F * in[i] * in[i] / size;
        });
        return y;
    }
    static auto backward_input(context<host_device>& c, tensor, saved& s) -> tensor {
        tensor dx = c.make({size});
        c.stream.launch([in = s.x.data(), out = dx.data(), scale = s.scale] {
            for (int i = 0; i < size; ++i) out[i] = scale * in[i] / size;
        });
        return dx;
    }
};

struct numbers {
    static auto size() -> std::uint64_t { return 8; }
    static void load(std::uint64_t index, host_array& input, host_array&) {
        float* const into = input.resize<float>({::size}, dtype::f32);
        for (int i = 0; i < ::size; ++i) into[i] = static_cast<float>((static_cast<int>(index) * 7 + i) % 11);
    }
};

auto network() -> model<host_device> {
    model<host_device> layers;
    for (int i = 0; i < 8; ++i) layers.add(heavy{});
    return std::move(layers.add(squares{}));
}

struct outcome {
    std::vector<double> losses{};
    std::vector<std::size_t> peak{}, expected{}; ///< bytes by rank
    row<int> recomputed{};
};

template <class Policy>
auto train(Policy policy, memory_limit const& memory) -> outcome {
    shape const of{.ranks = std::is_same_v<Policy, data_parallel<one_f_one_b>> ? 4 : 2, .micro_batches = 8};
    trainer<Policy> with{network(), {.ranks = of.ranks, .micro_batches = 8, .memory = memory}};
    outcome came{.recomputed = with.recomputed()};
    for (int i = 0; i < 2; ++i) {
        step_report const report = with.step(numbers{});
        came.losses.push_back(report.loss);
        came.losses.push_back(report.gradient_norm);
    }
    auto const problem = memory_problem(memory, copipe::programs(policy, of), policy.placed(of), 2, 4);
    auto const expected = bytes_of(problem, row<int>(with.layers().bounds()), with.recomputed());
    for (int rank = 0; rank < of.ranks; ++rank) {
        came.peak.push_back(with.peak_memory(rank));
        came.expected.push_back(static_cast<std::size_t>(expected[rank % expected.count()]));
        CHECK(came.peak.back() <= came.expected.back());
    }
    return came;
}

} // namespace

TEST_CASE("a layer that fails while it is profiled is what is thrown, and nothing is read that is gone") {
    constexpr int many = 1 << 24;
    struct large {
        [[nodiscard]] std::uint64_t size() const { return 1; }
        void load(std::uint64_t, host_array& input, host_array&) const { input.resize<float>({many}, dtype::f32); }
    };
    model<host_device> layers;
    layers.add(failing{});
    for (int i = 0; i < 10; ++i) CHECK_THROWS_WITH(profile_layers(layers, large{}), "not today");
}

TEMPLATE_TEST_CASE("under a memory limit every rank stays within it by recomputing layers, and no bit changes", "",
                   gpipe, one_f_one_b, dualpipe, dualpipe_v, zb_h1, interleaved<2>, data_parallel<one_f_one_b>) {
    auto const profile = profile_layers(network(), numbers{});
    CHECK(profile[3].parameter_bytes == 4 * size);
    CHECK(profile[3].derived_bytes == 4 * 4 * size); // the copy
    CHECK(profile[3].saved_bytes == 8 * 4 * size);  // its output takes the place of its input
    CHECK(profile[3].checkpoint_bytes == 4 * size); // its output; its input is the output of the layer before
    slow_rank = GENERATE(-1, 0, 1);
    outcome const free = train(TestType{}, memory_limit{.bytes = {1 << 30}, .layers = profile});
    CHECK(free.recomputed.empty());
    int limited = 0;
    for (std::size_t limit = *std::ranges::max_element(free.expected);; limit -= limit / 16) {
        INFO("limit " << limit << ", slow rank " << slow_rank);
        REQUIRE(limit > free.peak[0] / 10);
        try {
            outcome const came = train(TestType{}, memory_limit{.bytes = {limit}, .layers = profile});
            CHECK(came.losses == free.losses);
            CHECK(*std::ranges::max_element(came.expected) <= limit);
            limited += !came.recomputed.empty();
        } catch (memory_error const& refused) {
            CHECK(refused.has == limit);
            CHECK(refused.needs > limit);
            CHECK_THAT(refused.what(), says("even if all of them are recomputed"));
            break;
        }
    }
    CHECK(limited > 0);
}

TEST_CASE("where the even cut does not fit into memory a trainer starts with one that does, unless it was told a cut") {
    auto const profile = profile_layers(network(), numbers{});
    memory_limit memory{.bytes = {300'000, 800'000}, .layers = profile};
    trainer<gpipe> const with{network(), {.ranks = 2, .micro_batches = 8, .memory = memory}};
    CHECK(with.layers().last(0) < 5);
    trainer_options<> told{.ranks = 2, .micro_batches = 8, .layers = partition::given({0, 7, 9}, 9), .memory = memory};
    CHECK_THROWS_WITH((trainer<gpipe>{network(), told}), says("rank 0 needs"));
    told.memory->bytes = {1, 2, 3};
    CHECK_THROWS_WITH((trainer<gpipe>{network(), told}), says("3 of 2 ranks"));
}

TEMPLATE_TEST_CASE("of a limit under which no partition fits it is said how much more would be just enough", "",
                   one_f_one_b, dualpipe_v, interleaved<2>, data_parallel<one_f_one_b>) {
    slow_rank = -1;
    memory_limit memory{.bytes = {100'000}, .layers = profile_layers(network(), numbers{})};
    std::size_t needs = 0;
    try {
        train(TestType{}, memory);
    } catch (memory_error const& refused) {
        CHECK(refused.has == 100'000);
        CHECK_THAT(refused.what(), says("under the best partition"));
        CHECK_THAT(refused.what(), says("allow all ranks " + std::to_string(refused.needs - 100'000) + " bytes more"));
        needs = refused.needs;
    }
    REQUIRE(needs > 100'000);
    memory.bytes = {needs};
    outcome const just = train(TestType{}, memory);
    CHECK(*std::ranges::max_element(just.expected) == needs);
    memory.bytes = {needs - 1};
    CHECK_THROWS_AS(train(TestType{}, memory), memory_error);
}

TEST_CASE("of replicas the one that may hold least counts") {
    memory_limit memory{.bytes = {1 << 30, 1 << 30, 300'000, 1 << 30}, .layers = profile_layers(network(), numbers{})};
    trainer<data_parallel<one_f_one_b>> const with{network(), {.ranks = 4, .micro_batches = 8, .memory = memory}};
    memory.bytes = {300'000, 1 << 30};
    trainer<one_f_one_b> const alone{network(), {.ranks = 2, .micro_batches = 4, .memory = memory}};
    CHECK_FALSE(with.recomputed().empty());
    CHECK(with.recomputed() == alone.recomputed());
    CHECK(with.layers() == alone.layers());
}

TEST_CASE("micro-batches in flight are counted stage by stage, those that wait for their weight gradient apart") {
    auto const programs = copipe::programs(dualpipe{}, {.ranks = 4, .micro_batches = 16});
    placement const where = placement::bidirectional(4);
    for (int rank = 0; rank < 4; ++rank) {
        program const& own = programs[static_cast<std::size_t>(rank)];
        CHECK(most_in_flight(own, where.stage_of(rank, 0)).micro_batches == 4 - rank);
        CHECK(most_in_flight(own, where.stage_of(rank, 1)).micro_batches == rank + 1);
        CHECK(most_in_flight(own, where.stage_of(rank, 0)).restored == 1);
    }
    CHECK(most_in_flight(copipe::programs(one_f_one_b{}, {4, 8})[1], 1).restored == 0);
}
