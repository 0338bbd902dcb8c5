// SPDX-License-Identifier: Apache-2.0
#include "copipe/observe/critical_path.hpp"
#include "catch.hpp"
#include "copipe/observe/memory_curve.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/evaluate.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/v_half.hpp"

#include <algorithm>

using namespace copipe;

namespace {
std::string names_of(std::vector<span> const& path) {
    std::string names;
    for (span const& each : path) names += (names.empty() ? "" : " ") + text(each.what);
    return names;
}
} // namespace

TEST_CASE("the critical path of one micro-batch runs down the ranks and back") {
    auto const spans = timeline(programs(one_f_one_b{}, {3, 1}), placement::single(3), 1, uniform_costs{});
    CHECK(names_of(step_graph(spans, placement::single(3)).critical_path()) == "0F0 1F0 2F0 2B0 1B0 0B0");
}

TEST_CASE("a rank that is never idle is the critical path from its first chunk on") {
    uniform_costs const costs{.forward = 0.25, .input = 0.25, .weight = 0.25};
    auto spans = timeline(programs(one_f_one_b{}, {1, 2}), placement::single(1), 2, costs);
    CHECK(names_of(step_graph(spans, placement::single(1)).critical_path()) == "0F0 0B0 0F1 0B1");
}

TEST_CASE("no idle moment on a critical path lasts longer than a message is under way") {
    for (double const communication : {0.0, 0.25, 1.0}) {
        uniform_costs const costs{
            .forward = 1, .input = 1.5, .weight = 0.5, .overlapped = 2, .communication = communication};
        auto const check = [&](auto const& policy, shape size) {
            auto const where = policy.placed(size);
            auto const spans = timeline(programs(policy, size), where, size.micro_batches, costs);
            auto const told = evaluate(programs(policy, size), where, size.micro_batches, costs);
            auto const path = step_graph(spans, where).critical_path();
            REQUIRE(!path.empty());
            CHECK(path.front().start == 0);
            CHECK(path.back().end == told.makespan);
            for (std::size_t i = 1; i < path.size(); ++i) {
                double const gap = path[i].rank == path[i - 1].rank ? 0 : communication;
                CHECK(path[i].start == Approx(path[i - 1].end + gap));
            }
        };
        check(dualpipe{}, {4, 12});
        check(v_half{.costs = costs}, {4, 9});
        check(one_f_one_b{}, {5, 7});
    }
}

TEST_CASE("idle time is told apart by its cause and adds up to the bubble") {
    uniform_costs const costs{.communication = 0.5};
    auto const all = programs(one_f_one_b{}, {2, 1});
    auto const spans = timeline(all, placement::single(2), 1, costs);
    auto const idle = step_graph(spans, placement::single(2)).idle();
    CHECK(idle[0].fill == 0);
    CHECK(idle[0].dependency == 3.5); // from 1 to 4.5: rank 1's backward is not done
    CHECK(idle[0].communication == 0.5);
    CHECK(idle[0].drain == 0);
    CHECK(idle[1].fill == 1.5);
    CHECK(idle[1].drain == 2.5);

    auto const dual = timeline(programs(dualpipe{}, {6, 14}), placement::bidirectional(6), 14, costs);
    auto const told = evaluate(programs(dualpipe{}, {6, 14}), placement::bidirectional(6), 14, costs);
    auto const causes = step_graph(dual, placement::bidirectional(6)).idle();
    for (std::size_t rank = 0; rank < 6; ++rank)
        CHECK(causes[rank].fill + causes[rank].dependency + causes[rank].communication + causes[rank].drain ==
              Approx(told.bubble[rank]));
}

TEST_CASE("memory over time rises at forwards, falls at gradients, and peaks where the verifier says") {
    auto const spans = timeline(programs(one_f_one_b{}, {2, 2}), placement::single(2), 2, uniform_costs{});
    CHECK(memory_curve(spans[0]) == std::vector<memory_level>{{0, 1}, {1, 2}, {6, 1}, {9, 0}});
    auto const sized = memory_curve(spans[0], [](int) { return chunk_memory{.until_input = 10, .until_weight = 1}; });
    CHECK(sized == std::vector<memory_level>{{0, 11}, {1, 22}, {6, 11}, {9, 0}});

    auto const all = programs(v_half{}, {4, 9});
    auto const planned = timeline(all, placement::v(4), 9, uniform_costs{});
    for (std::size_t rank = 0; rank < 4; ++rank) {
        auto const curve = memory_curve(planned[rank]);
        auto const top = std::max_element(curve.begin(), curve.end(), [](auto a, auto b) { return a.level < b.level; });
        CHECK(top->level == peak_activations(all[rank]));
        CHECK(curve.back().level == 0);
    }
}
