// SPDX-License-Identifier: Apache-2.0
#include "brute_force.hpp"
#include "catch.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/evaluate.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/verify.hpp"

#include <random>

using namespace copipe;

TEST_CASE("a timeline places every chunk and every wait of a small step") {
    auto const spans =
        timeline(programs(one_f_one_b{}, {2, 1}), placement::single(2), 1, uniform_costs{.communication = 0.5});
    using kind = span_kind;
    REQUIRE(spans.size() == 2);
    CHECK(spans[0] == std::vector<span>{{0, 1, {op::forward, 0, 0}, 0, kind::forward, wait_reason::none},
                                        {1, 5, {op::backward, 0, 0}, 0, kind::wait, wait_reason::input},
                                        {5, 7, {op::backward, 0, 0}, 0, kind::backward, wait_reason::none}});
    CHECK(spans[1] == std::vector<span>{{0, 1.5, {op::forward, 1, 0}, 1, kind::wait, wait_reason::input},
                                        {1.5, 2.5, {op::forward, 1, 0}, 1, kind::forward, wait_reason::none},
                                        {2.5, 4.5, {op::backward, 1, 0}, 1, kind::backward, wait_reason::none}});
}

TEST_CASE("an overlapped pair shows as two spans over the same time") {
    auto const spans =
        timeline(programs(dualpipe{}, {2, 4}), placement::bidirectional(2), 4, uniform_costs{.overlapped = 2});
    std::size_t halves = 0;
    for (std::size_t i = 0; i + 1 < spans[0].size(); ++i)
        if (spans[0][i].kind == span_kind::overlapped_forward) {
            ++halves;
            CHECK(spans[0][i + 1].kind == span_kind::overlapped_backward);
            CHECK(spans[0][i].start == spans[0][i + 1].start);
            CHECK(spans[0][i].seconds() == 2);
            CHECK(spans[0][i + 1].seconds() == 2);
        }
    CHECK(halves == 1);
}

TEST_CASE("busy time and bubble of every rank add up to the makespan") {
    auto const told = evaluate(programs(dualpipe_v{}, {4, 10}), placement::v(4), 10, uniform_costs{.overlapped = 2});
    CHECK(told.makespan == 52);
    for (std::size_t rank = 0; rank < 4; ++rank) CHECK(told.busy[rank] + told.bubble[rank] == told.makespan);
    CHECK(told.longest <= told.makespan);
}

TEST_CASE("the longest rank span does not count the wait for the first input") {
    auto const told = evaluate(programs(one_f_one_b{}, {4, 1}), placement::single(4), 1, uniform_costs{});
    CHECK(told.makespan == 12);
    CHECK(told.longest == 12);
    std::vector<program> const late{{{op::forward, 0, 0}}, {{op::forward, 1, 0}}};
    CHECK(evaluate(late, placement::single(2), 1, uniform_costs{}).makespan == 2);
    CHECK(evaluate(late, placement::single(2), 1, uniform_costs{}).longest == 1);
}

namespace {
struct slow_link : uniform_costs {
    constexpr double occupancy(message const& sent) const { return sent.direction == flow::forward ? 3 : 0; }
};
} // namespace

TEST_CASE("messages of one link queue behind one another") {
    std::vector<program> const forwards{{{op::forward, 0, 0}, {op::forward, 0, 1}},
                                        {{op::forward, 1, 0}, {op::forward, 1, 1}}};
    slow_link costs;
    costs.communication = 0.25;
    auto const spans = timeline(forwards, placement::single(2), 2, costs);
    REQUIRE(spans[1].size() == 4);
    CHECK(spans[1][1].start == 1 + 3 + 0.25);
    CHECK(spans[1][3].start == 1 + 3 + 3 + 0.25);
}

TEST_CASE("predicted ends equal a brute-force replay under random costs") {
    unsigned const seed = 7;
    CAPTURE(seed);
    std::mt19937 random(seed);
    std::uniform_real_distribution<double> any(0, 3);
    for (int i = 0; i < 300; ++i) {
        brute_force::costs const c{any(random), any(random), any(random), any(random), any(random)};
        uniform_costs const costs{.forward = c.forward, .input = c.input, .weight = c.weight, .overlapped = c.pair,
                                  .communication = c.communication};
        int const ranks = 2 + 2 * (i % 3), m = 2 * ranks + 2 * (i % 4);
        auto const dual = programs(dualpipe{}, {ranks, m});
        CHECK(evaluate(dual, placement::bidirectional(ranks), m, costs).makespan ==
              brute_force::replay(dual, placement::bidirectional(ranks), m, c).makespan);
        auto const v = programs(dualpipe_v{}, {ranks, m});
        CHECK(evaluate(v, placement::v(ranks), m, costs).makespan ==
              brute_force::replay(v, placement::v(ranks), m, c).makespan);
        auto const single = programs(one_f_one_b{}, {ranks, m});
        CHECK(evaluate(single, placement::single(ranks), m, costs).makespan ==
              brute_force::replay(single, placement::single(ranks), m, c).makespan);
    }
}
