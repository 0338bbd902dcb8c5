// SPDX-License-Identifier: Apache-2.0
// Proof before launch: programs are complete, free of deadlock and in order, or the first wrong action and why.
#pragma once

#include "copipe/schedule/policy.hpp"
#include "copipe/schedule/replay.hpp"

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace copipe {

/// A rank that cannot go on: its program stands at `position`, for want of `needed`.
struct blocked_rank {
    int rank, position;
    message needed;
};

/// The outcome of a verification; true if the programs are sound.
struct verdict {
    std::string_view rule;           ///< the rule that is broken; empty for sound programs
    int expected = -1;               ///< the number that the rule speaks of, where it does
    int rank = -1;                   ///< where the first wrong action is, as far as one action is wrong
    int position = -1;               ///< its place in the rank's program; -1 if it is missing there
    action what{chunk{}};            ///< the action itself
    std::vector<blocked_rank> cycle; ///< a deadlock: each waits for the next one, the last for the first
    std::vector<int> peak;           ///< chunks whose activations are live at once, at most, per rank

    constexpr explicit operator bool() const { return rule.empty(); }

    /// All of it in one sentence; empty for sound programs.
    template <class = void> [[nodiscard]] std::string why() const {
        if (rule.empty()) return {};
        std::string sentence = rank < 0 ? "" : "Rank " + std::to_string(rank);
        if (rank >= 0)
            sentence += (position < 0 ? " lacks " : ", action " + std::to_string(position) + ", ") + text(what) + ": ";
        sentence += rule;
        if (expected >= 0) sentence += " " + std::to_string(expected);
        for (blocked_rank const& each : cycle)
            sentence += (&each == cycle.data() ? ": rank " : ", rank ") + std::to_string(each.rank) + " (action " +
                        std::to_string(each.position) + ") waits for " + text(each.needed);
        return sentence + ".";
    }
};

/// What a chunk of a stage keeps in memory from the start of its forward, in any unit: some of it to the end of the
/// input gradient, the rest to the end of the weight gradient.
struct chunk_memory {
    std::int64_t until_input = 0;
    std::int64_t until_weight = 0;
};

/// The most that one rank's activations take at once, where `size_of(stage)` is the `chunk_memory` of a stage's chunk.
[[nodiscard]] constexpr std::int64_t peak_memory(program const& own, auto const& size_of) {
    std::int64_t live = 0, peak = 0;
    for (action const& each : own) {
        for (chunk const& one : each.chunks())
            if (one.what == op::forward) live += size_of(one.stage).until_input + size_of(one.stage).until_weight;
        peak = live > peak ? live : peak;
        for (chunk const& one : each.chunks()) {
            if (one.what == op::backward || one.what == op::backward_input) live -= size_of(one.stage).until_input;
            if (one.what == op::backward || one.what == op::backward_weight) live -= size_of(one.stage).until_weight;
        }
    }
    return peak;
}

/// The most activations live at once on one rank, in chunks: from the start of a forward to the end of its (weight)
/// backward.
template <class = void> [[nodiscard]] constexpr int peak_activations(program const& own) {
    return static_cast<int>(peak_memory(own, [](int) { return chunk_memory{.until_input = 0, .until_weight = 1}; }));
}

/// One verification; `verify` below is the way in.
template <class = void> class verification {
public:
    constexpr verification(std::vector<program> const& all, placement const& where, int micro_batches)
        : all_(all), where_(where), micro_batches_(micro_batches),
          per_stage_(where.micro_batches_per_stage(micro_batches)) {}

    constexpr verdict run() {
        if (sizes_agree() && every_action_is_right() && nothing_is_missing()) nothing_deadlocks();
        for (program const& own : all_) found_.peak.push_back(peak_activations(own));
        return found_;
    }

private:
    /// What has been done for one micro-batch on one stage, as bits.
    enum : std::uint8_t { forward = 1, input_gradient = 2, weight_gradient = 4, everything = 7 };

    static constexpr std::uint8_t contribution(op what) {
        constexpr std::uint8_t of[] = {forward, input_gradient | weight_gradient, input_gradient, weight_gradient};
        return of[static_cast<std::size_t>(what)];
    }

    constexpr bool sizes_agree() {
        if (where_.ranks < 1 || where_.per_rank < 1 || micro_batches_ < 1)
            return breaks("a schedule has at least one rank, one stage and one micro-batch");
        if (all_.size() != static_cast<std::size_t>(where_.ranks))
            return breaks("there must be one program for each rank, as many as", where_.ranks);
        if (where_.kind == layout::bidirectional && (micro_batches_ % 2 != 0 || where_.per_rank != 2))
            return breaks("two directions need two stages on each rank and an even number of micro-batches");
        done_.assign(index(where_.stages()) * index(per_stage_), 0);
        next_gradient_.assign(index(where_.stages()), 0);
        for (int stage = 0; stage < where_.stages(); ++stage) home_.push_back(where_.rank_of(stage));
        return true;
    }

    constexpr bool every_action_is_right() {
        for (int rank = 0; rank < where_.ranks; ++rank)
            for (action const& each : all_[index(rank)])
                if (!is_right(each, rank)) return point_at(rank, static_cast<int>(&each - all_[index(rank)].data()));
        return true;
    }

    constexpr bool is_right(action const& each, int rank) {
        auto const halves = each.chunks();
        for (chunk const& one : halves)
            if (!is_at_home(one, rank)) return false;
        if (!each.overlapped()) return is_due(halves[0]);
        if (halves[0].what != op::forward || halves[1].what != op::backward)
            return breaks("an overlapped pair is a forward and then a full backward");
        return is_due(halves[1]) && is_due(halves[0]);
    }

    constexpr bool is_at_home(chunk const& one, int rank) {
        if (one.stage >= where_.stages()) return breaks("there is no such stage, the last is", where_.stages() - 1);
        if (one.micro_batch < 0 || one.micro_batch >= per_stage_)
            return breaks("there is no such micro-batch, the last is", per_stage_ - 1);
        int const home = home_[one.stage];
        return home == rank || breaks("the stage belongs to rank", home);
    }

    /// Notes the chunk as done if its own rank's order allows it.
    constexpr bool is_due(chunk const& one) {
        std::uint8_t& before = done(one);
        std::uint8_t const adds = contribution(one.what);
        if (before & adds) return breaks("this was done before");
        if (one.what != op::forward && !(before & forward)) return breaks("the forward has not been run before");
        if (one.what == op::backward_weight && !(before & input_gradient))
            return breaks("the input gradient has not been computed before");
        if (adds & weight_gradient) {
            int& next = next_gradient_[one.stage];
            if (one.micro_batch != next)
                return breaks("weight gradients accumulate in the order of micro-batches, next on this stage is", next);
            ++next;
        }
        before |= adds;
        return true;
    }

    constexpr bool nothing_is_missing() {
        for (std::size_t i = 0; i < done_.size(); ++i) {
            if (done_[i] == everything) continue;
            op const lacking = !(done_[i] & forward)          ? op::forward
                               : !(done_[i] & input_gradient) ? op::backward_input
                                                              : op::backward_weight;
            int const stage = static_cast<int>(i / index(per_stage_));
            found_.rank = home_[index(stage)];
            found_.what = action(lacking, stage, static_cast<int>(i % index(per_stage_)));
            return breaks("every micro-batch needs all of its work on every stage");
        }
        return true;
    }

    constexpr void nothing_deadlocks() {
        replay<signed char> walk(all_, where_, micro_batches_);
        constexpr auto at_once = [](auto const&...) -> signed char { return 0; };
        if (walk.run(at_once, at_once)) return;
        int rank = 0;
        while (!walk.missing_input(rank)) ++rank;
        auto const awaited = [&] { return home_[walk.missing_input(rank)->from_stage]; };
        for (int into_cycle = 0; into_cycle < where_.ranks; ++into_cycle) rank = awaited();
        breaks("deadlock");
        point_at(rank, walk.position(rank));
        do {
            found_.cycle.push_back({rank, walk.position(rank), *walk.missing_input(rank)});
            rank = awaited();
        } while (rank != found_.rank);
    }

    static constexpr std::size_t index(int number) { return static_cast<std::size_t>(number); }
    constexpr std::uint8_t& done(chunk const& one) {
        return done_[index(one.stage) * index(per_stage_) + index(one.micro_batch)];
    }
    constexpr bool point_at(int rank, int position) {
        found_.rank = rank;
        found_.position = position;
        found_.what = all_[index(rank)][index(position)];
        return false;
    }
    constexpr bool breaks(std::string_view rule, int expected = -1) {
        found_.rule = rule;
        found_.expected = expected;
        return false;
    }

    std::vector<program> const& all_;
    placement where_;
    int micro_batches_, per_stage_;
    std::vector<int> home_; ///< stage -> rank
    std::vector<std::uint8_t> done_;
    std::vector<int> next_gradient_;
    verdict found_;
};

/// Verifies the programs of all ranks: every chunk exactly once and on its rank, every input produced before it is
/// needed whatever the timing, weight gradients of a stage in the order of micro-batches. Linear time.
template <class = void>
[[nodiscard]] constexpr verdict verify(std::vector<program> const& all, placement const& where, int micro_batches) {
    return verification(all, where, micro_batches).run();
}

/// Verifies what a policy yields for a shape: `static_assert(verify(dualpipe{}, shape{4, 10}));`
/// Throws `shape_error` if the policy cannot run the shape.
template <schedule_policy Policy>
[[nodiscard]] constexpr verdict verify(Policy const& policy, shape size) {
    return verify(programs(policy, size), policy.placed(size), size.micro_batches);
}

/// Programs that cannot run as they stand; `fault` says which action is the first wrong one.
class schedule_error : public error {
public:
    explicit schedule_error(verdict broken) : error(broken.why()), fault(std::move(broken)) {}

    verdict fault;
};

/// The programs of all ranks, proved. Throws `shape_error` if the policy cannot run the shape, `schedule_error` if its
/// programs are wrong.
template <schedule_policy Policy>
[[nodiscard]] constexpr std::vector<program> verified_programs(Policy const& policy, shape size) {
    auto all = programs(policy, size);
    auto found = verify(all, policy.placed(size), size.micro_batches);
    if (!found) throw schedule_error(std::move(found));
    return all;
}

} // namespace copipe
