// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "says.hpp"

#include "copipe/pipeline/step_plan.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/gpipe.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/sequential.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

using namespace copipe;

namespace {

/// How much is wrong with the ranks' needs: each message from another rank must be posted by the action that consumes
/// it, in the order in which it is sent.
auto complaints(step_plan const& plan, std::vector<rank_program> const& programs) -> int {
    int wrong = 0;
    for (int rank = 0; rank < plan.where.ranks; ++rank) {
        rank_program const& own = programs[static_cast<std::size_t>(rank)];
        wrong += own.needs.size() != own.actions.size();
        std::vector<std::uint64_t> needed(own.incoming.size(), 0);
        std::size_t consumed = 0;
        for (std::size_t i = 0; i < own.actions.size(); ++i) {
            auto const pieces = own.actions[i].chunks();
            for (std::size_t half = 0; half < 2; ++half) {
                posted_receives const need = own.needs[i][half];
                auto const input = half < pieces.size() ? input_of(pieces[half], plan.where) : std::nullopt;
                bool const comes = input && crosses_ranks(*input, plan.where);
                wrong += comes != (need.count != 0);
                if (!comes || need.count == 0) continue;
                lane const& from = own.incoming[need.lane];
                wrong += !(from.messages[need.count - 1] == *input);
                wrong += from.peer != plan.where.rank_of(input->from_stage);
                needed[need.lane] = std::max(needed[need.lane], need.count);
                ++consumed;
            }
        }
        std::size_t all = 0;
        for (std::size_t l = 0; l < own.incoming.size(); ++l) {
            wrong += needed[l] != own.incoming[l].messages.size();
            all += own.incoming[l].messages.size();
        }
        wrong += consumed != all;
    }
    return wrong;
}

/// Sends the last micro-batch's gradient first.
struct upside_down {
    static constexpr std::string_view name = "upside_down";
    static constexpr auto refusal(shape) -> std::string_view { return {}; }
    static constexpr auto placed(shape size) -> placement { return placement::single(size.ranks); }
    static constexpr auto program(shape size, int rank) -> copipe::program {
        copipe::program order;
        for (int m = 0; m < size.micro_batches; ++m) order.emplace_back(op::forward, rank, m);
        for (int m = 0; m < size.micro_batches; ++m) {
            order.emplace_back(op::backward, rank, rank == 0 ? m : size.micro_batches - 1 - m);
        }
        if (size.micro_batches == 3) order.pop_back();
        return order;
    }
};

} // namespace

TEST_CASE("a plan says for each action which receives must have been posted, in training and in evaluation") {
    auto const check = [](auto const& policy, shape size) {
        step_plan const plan = plan_step(policy, size);
        CHECK(plan.micro_batches == size.micro_batches);
        CHECK(complaints(plan, plan.training) == 0);
        CHECK(complaints(plan, plan.evaluation) == 0);
        for (rank_program const& each : plan.evaluation) {
            for (action const& one : each.actions) REQUIRE(one.front().what == op::forward);
        }
    };
    for (int const ranks : {1, 2, 4, 8}) {
        check(gpipe{}, {ranks, 16});
        check(one_f_one_b{}, {ranks, 16});
        check(dualpipe_v{}, {ranks, 16});
        if (ranks > 1) check(dualpipe{}, {ranks, 16});
    }
}

TEST_CASE("a shape that a policy cannot run, and a program that would never end, are refused before anything runs") {
    CHECK_THROWS_AS(plan_step(dualpipe{}, {3, 16}), shape_error);
    CHECK_THROWS_AS(plan_step(dualpipe{}, {4, 6}), shape_error);
    CHECK_THROWS_AS(plan_step(upside_down{}, {2, 3}), schedule_error);
}

TEST_CASE("micro-batches that are under way at once never share a slot, and few slots are needed") {
    struct interval {
        std::size_t first, last;
    };
    auto const slots = [](auto const& policy, shape size, int rank, std::size_t ahead) {
        step_plan const plan = plan_step(policy, size);
        int const per_stage = plan.where.micro_batches_per_stage(size.micro_batches);
        auto const& own = plan.training[static_cast<std::size_t>(rank)];
        std::size_t const count = slots_needed(own, plan.where, rank, per_stage, ahead);
        for (int const stage : plan.where.stages_of(rank)) { // from what is done with them, every pair looked at
            std::vector<interval> uses(static_cast<std::size_t>(per_stage), interval{own.actions.size(), 0});
            for (std::size_t i = 0; i < own.actions.size(); ++i) {
                for (chunk const& each : own.actions[i].chunks()) {
                    if (each.stage != stage) continue;
                    auto& [first, last] = uses[static_cast<std::size_t>(each.micro_batch)];
                    first = std::min(first, i);
                    last = i;
                }
            }
            for (std::size_t a = 0; a < uses.size(); ++a) {
                for (std::size_t b = a + count; b < uses.size(); b += count) {
                    bool const apart = uses[a].last + ahead <= uses[b].first || uses[b].last + ahead <= uses[a].first;
                    CAPTURE(policy.name, size.ranks, size.micro_batches, rank, stage, a, b, count);
                    REQUIRE(apart);
                }
            }
        }
        return count;
    };
    for (std::size_t const ahead : {std::size_t{1}, std::size_t{4}, std::size_t{7}}) {
        for (int rank = 0; rank < 4; ++rank) {
            auto const room = static_cast<std::size_t>(4 - rank) + ahead;
            CHECK(slots(one_f_one_b{}, {4, 64}, rank, ahead) <= room);
            CHECK(slots(gpipe{}, {4, 64}, rank, ahead) == 64);
            CHECK(slots(dualpipe{}, {4, 64}, rank, ahead) <= 8 + ahead);
            CHECK(slots(dualpipe_v{}, {4, 64}, rank, ahead) <= 12 + ahead);
        }
        CHECK(slots(sequential{}, {1, 9}, 0, ahead) <= 1 + (ahead + 1) / 2);
    }
}
