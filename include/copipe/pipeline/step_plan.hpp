// SPDX-License-Identifier: Apache-2.0
// A policy's programs, verified and made ready to run: for every rank its actions, the messages to expect, and when
// each receive must have been posted.
#pragma once

#include "copipe/schedule/messages.hpp"
#include "copipe/schedule/policy.hpp"
#include "copipe/schedule/verify.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <string_view>
#include <utility>
#include <vector>

namespace copipe {

/// A message's number on the way between two ranks.
[[nodiscard]] constexpr auto identity_of(message const& m) noexcept -> std::uint64_t {
    return (std::uint64_t{m.from_stage} << 48U) | (std::uint64_t{m.to_stage} << 32U) |
           static_cast<std::uint32_t>(m.micro_batch);
}

/// "The first `count` messages of `lane` have been posted."
struct posted_receives {
    std::size_t lane = 0;
    std::uint64_t count = 0;
};

/// What one rank runs: `needs[i]` are the receives that action i's chunks cannot do without.
struct rank_program {
    program actions;
    std::vector<lane> incoming;
    std::vector<std::array<posted_receives, 2>> needs;
};

/// How many slots each stage of a rank needs so that its micro-batches can use them in turn, micro-batch m the slot m
/// modulo that many, when an action starts at the latest as the one `ahead` actions before it has ended.
template <class = void>
[[nodiscard]] auto slots_needed(rank_program const& steps, placement const& where, int rank, int per_stage,
                                       std::size_t ahead) -> std::size_t {
    struct use {
        std::size_t first = static_cast<std::size_t>(-1); ///< action at which the micro-batch begins to be expected
        std::size_t last = 0;                             ///< action of its last chunk
    };
    std::size_t most = 1;
    std::vector<use> uses(static_cast<std::size_t>(per_stage));
    for (int const stage : where.stages_of(rank)) {
        std::fill(uses.begin(), uses.end(), use{});
        std::vector<std::uint64_t> posted(steps.incoming.size());
        for (std::size_t i = 0; i < steps.actions.size(); ++i) {
            auto const begin = [&](int micro_batch) {
                use& of = uses[static_cast<std::size_t>(micro_batch)];
                of.first = std::min(of.first, i);
            };
            for (posted_receives const& need : steps.needs[i]) {
                if (need.count == 0) continue;
                for (std::uint64_t& n = posted[need.lane]; n < need.count; ++n) {
                    message const& expected = steps.incoming[need.lane].messages[n];
                    if (expected.to_stage == stage) begin(expected.micro_batch);
                }
            }
            for (chunk const& each : steps.actions[i].chunks()) {
                if (each.stage != stage) continue;
                begin(each.micro_batch);
                uses[static_cast<std::size_t>(each.micro_batch)].last = i;
            }
        }
        std::vector<std::size_t> order(uses.size());
        std::iota(order.begin(), order.end(), std::size_t{0});
        std::sort(order.begin(), order.end(), [&](auto a, auto b) { return uses[a].first < uses[b].first; });
        std::size_t oldest = 0; // of the micro-batches that have not ended
        for (std::size_t const m : order) {
            while (oldest < m && uses[oldest].last + ahead <= uses[m].first) ++oldest;
            if (m >= oldest) most = std::max(most, m - oldest + 1);
        }
    }
    return most;
}

/// The programs of all ranks for a training step, and for an evaluation (the same walk, forwards only).
struct step_plan {
    std::string_view policy; ///< its name
    placement where;
    int micro_batches;
    std::vector<rank_program> training;
    std::vector<rank_program> evaluation;
};

/// Makes one rank's program ready from the programs of all.
template <class = void>
[[nodiscard]] auto rank_program_of(std::vector<program> const& all, placement const& where, int rank,
                                          int per_stage) -> rank_program {
    rank_program own{
        .actions = all[static_cast<std::size_t>(rank)], .incoming = incoming(all, where, rank), .needs = {}};
    auto const place = [&](message const& m) { // by the receiving stage among this rank's, direction and micro-batch
        int k = 0;
        while (where.stage_of(rank, k) != m.to_stage) ++k;
        return static_cast<std::size_t>((2 * k + static_cast<int>(m.direction)) * per_stage + m.micro_batch);
    };
    std::vector<posted_receives> known(static_cast<std::size_t>(where.per_rank * 2 * per_stage));
    for (std::size_t lane = 0; lane < own.incoming.size(); ++lane) {
        std::uint64_t count = 0;
        for (message const& each : own.incoming[lane].messages) known[place(each)] = {lane, ++count};
    }
    for (action const& each : own.actions) {
        auto& needed = own.needs.emplace_back();
        std::size_t half = 0;
        for (chunk const& one : each.chunks()) {
            if (auto const input = input_of(one, where)) needed[half] = known[place(*input)];
            ++half;
        }
    }
    return own;
}

/// Plans and verifies a step. Throws shape_error if the policy cannot run the shape, schedule_error if its programs are
/// wrong.
template <schedule_policy Policy>
[[nodiscard]] auto plan_step(Policy const& policy, shape size) -> step_plan {
    std::vector<program> trained = programs(policy, size);
    placement const where = policy.placed(size);
    if (verdict proof = verify(trained, where, size.micro_batches); !proof) throw schedule_error(std::move(proof));
    step_plan plan{
        .policy = Policy::name, .where = where, .micro_batches = size.micro_batches, .training = {}, .evaluation = {}};
    std::vector<program> evaluated;
    for (program const& each : trained) evaluated.push_back(forward_only(each));
    int const per_stage = where.micro_batches_per_stage(size.micro_batches);
    for (int rank = 0; rank < size.ranks; ++rank) {
        plan.training.push_back(rank_program_of(trained, where, rank, per_stage));
        plan.evaluation.push_back(rank_program_of(evaluated, where, rank, per_stage));
    }
    return plan;
}

} // namespace copipe
