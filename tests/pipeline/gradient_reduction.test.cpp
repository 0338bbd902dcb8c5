// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "pipeline/fixture.hpp"
#include "says.hpp"

#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/one_f_one_b.hpp"

#include <array>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using namespace copipe;

namespace {

struct two_parameters {
    struct saved {};
    parameter a, b;
    auto parameters() { return std::array{&a, &b}; }
    static auto forward(toy::context<toy::host_device>&, tensor x, saved&) -> tensor { return x; }
    static auto backward_input(toy::context<toy::host_device>&, tensor dy, saved&) -> tensor { return dy; }
    static void backward_weight(toy::context<toy::host_device>&, saved&) {}
};
auto named(std::string first, std::string second) -> two_parameters {
    two_parameters layer;
    layer.a.name = std::move(first);
    layer.b.name = std::move(second);
    layer.a.sizes = layer.b.sizes = {3};
    return layer;
}
auto groups_of(model<toy::host_device> const& layers, placement const& where) {
    return parameter_groups(layers, partition::even(static_cast<int>(layers.size()), where.model_stages()), where);
}
/// A number whose sums depend on the order of addition.
auto value_of(std::size_t group, std::size_t use, std::size_t element, int round) -> float {
    counter_random const random{group * 100 + use, static_cast<std::uint64_t>(round)};
    return static_cast<float>(random.normal(element)) * (use % 2 ? 1e4F : 1e-3F);
}

} // namespace

TEST_CASE("parameters are named by layer, in layer order, each with its copies in both directions") {
    model<toy::host_device> const layers = toy::network(3, true); // layers 0 and 2 tied
    auto const groups = groups_of(layers, placement::bidirectional(2));
    REQUIRE(groups.size() == 2);
    CHECK(groups[0].name == "layers.0.w");
    CHECK(groups[1].name == "layers.1.w");
    std::vector<std::pair<int, int>> uses; // stage and layer
    for (auto const& use : groups[0].uses) uses.emplace_back(use.stage, use.layer);
    CHECK(uses == std::vector<std::pair<int, int>>{{0, 0}, {1, 2}, {2, 0}, {3, 2}});
    CHECK(groups[0].uses[0].rank == 0);
    CHECK(groups[0].uses[1].rank == 1);
    CHECK(groups[0].uses[2].rank == 1);
    CHECK(groups[0].uses[3].rank == 0);
    CHECK(groups[1].uses.size() == 2);
}

TEST_CASE("two parameters of a layer with one name, and tied ones of different sizes, are refused") {
    model<toy::host_device> twice;
    twice.add(named("w", "w"));
    CHECK_THROWS_WITH(groups_of(twice, placement::single(1)), says("layers.0.w") && says("declared twice"));
    model<toy::host_device> fine;
    fine.add(named("a", "b")).add(named("a", "b"));
    CHECK(groups_of(fine, placement::single(2)).size() == 4);
    two_parameters small = named("a", "b"), large = named("a", "b");
    small.a.tie = large.a.tie = "table";
    large.a.sizes = {4};
    model<toy::host_device> unequal;
    unequal.add(small).add(large);
    CHECK_THROWS_WITH(groups_of(unequal, placement::single(2)),
                      says("layers.1.a") && says("[4]") && says("layers.0.a") && says("[3]") && says("table"));
    two_parameters both = named("a", "b");
    both.a.tie = both.b.tie = "one";
    model<toy::host_device> within;
    within.add(both);
    CHECK(groups_of(within, placement::single(1)).front().uses.size() == 2);
}

TEST_CASE("every copy of a gradient becomes the sum of all, added in one order, whatever the timing") {
    for (auto const execution : {host_execution::worker_thread, host_execution::inline_}) {
        toy::setup const how{.execution = execution};
        toy::pipeline piped{dualpipe{}, {4, 8}, toy::network(7, true), how};
        for (int round = 0; round < 30; ++round) {
            for (std::size_t g = 0; g < piped.groups.size(); ++g) {
                for (std::size_t u = 0; u < piped.groups[g].uses.size(); ++u) {
                    auto const& use = piped.groups[g].uses[u];
                    parameter& p = piped.reductions[static_cast<std::size_t>(use.rank)].local(use);
                    for (std::size_t i = 0; i < p.count(); ++i) p.gradient.data()[i] = value_of(g, u, i, round);
                }
            }
            auto const body = [&](int rank) -> task<> {
                auto const r = static_cast<std::size_t>(rank);
                if (rank == round % 4) {
                    auto const late = [] { std::this_thread::sleep_for(std::chrono::milliseconds(1)); };
                    piped.ranks[r].compute_stream().launch(late);
                }
                co_await piped.reductions[r].sum();
                piped.ranks[r].compute_stream().synchronize();
            };
            piped.team.run(body);
            std::size_t wrong = 0;
            for (std::size_t g = 0; g < piped.groups.size(); ++g) {
                auto const& uses = piped.groups[g].uses;
                for (auto const& use : uses) {
                    parameter const& p = piped.reductions[static_cast<std::size_t>(use.rank)].local(use);
                    for (std::size_t i = 0; i < p.count(); ++i) {
                        float sum = value_of(g, 0, i, round);
                        for (std::size_t u = 1; u < uses.size(); ++u) sum += value_of(g, u, i, round);
                        wrong += std::memcmp(&sum, p.gradient.data() + i, sizeof sum) != 0;
                    }
                }
            }
            REQUIRE(wrong == 0);
        }
    }
}

TEST_CASE("parameters that exist once are left alone, and need no messages") {
    toy::pipeline piped{one_f_one_b{}, {4, 8}, toy::network(7)};
    toy::outcome const before = piped.train(toy::numbers{});
    auto const body = [&](int rank) -> task<> {
        if (rank != 2) co_await piped.reductions[static_cast<std::size_t>(rank)].sum(); // nobody waits for rank 2
    };
    piped.team.run(body);
    for (std::size_t g = 0; g < piped.groups.size(); ++g) {
        auto const& use = piped.groups[g].uses.front();
        parameter const& p = piped.reductions[static_cast<std::size_t>(use.rank)].local(use);
        CHECK(std::vector<float>(p.gradient.data(), p.gradient.data() + p.count()) == before.gradients[g]);
    }
}

TEST_CASE("when a rank fails, those that wait for its gradients end, and the next sum is right") {
    toy::pipeline piped{dualpipe_v{}, {4, 8}, toy::network(8, true)};
    toy::outcome const right = piped.train(toy::numbers{});
    for (int culprit = 0; culprit < 4; ++culprit) {
        auto const body = [&](int rank) -> task<> {
            if (rank == culprit) {
                piped.ranks[static_cast<std::size_t>(rank)].endpoint().abort();
                throw std::runtime_error("cause");
            }
            co_await piped.reductions[static_cast<std::size_t>(rank)].sum();
        };
        CHECK_THROWS_WITH(piped.team.run(body), "cause");
        piped.recover();
        REQUIRE(piped.train(toy::numbers{}).same_bits(right));
    }
}
