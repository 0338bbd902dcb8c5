// SPDX-License-Identifier: Apache-2.0
// The planner of the zero-bubble family: from the pattern that micro-batches repeat, the costs and a bound on memory to
// the programs of all ranks (Qi et al., Zero Bubble Pipeline Parallelism, 2023, and with Controllable Memory, 2024).
#pragma once

#include "copipe/schedule/evaluate.hpp"

#include <array>
#include <limits>
#include <utility>

namespace copipe {

/// Where the chunks of one micro-batch stand, in units of a chunk's F = I = W; each micro-batch repeats them a period
/// later. It travels in legs: forward down the ranks (in a V, and back up), and its input gradients the same way back.
struct stable_pattern {
    std::array<double, 4> hop{};  ///< on each leg, the time from one rank to the next
    std::array<double, 3> turn{}; ///< an extra delay between one leg and the next
};

/// Plans one step. Every rank follows the pattern's order; while the next chunk's input is under way it runs a later
/// one that is ready and that memory allows, or a weight gradient.
template <class = void> class stable_pattern_planner {
public:
    struct habits {
        bool strict;  ///< never run a later chunk first
        bool eager;   ///< weight gradients at once, as long as forwards are left
        bool patient; ///< rather idle than let a weight gradient delay the next chunk
    };

    /// `memory` bounds the live activations of a rank, in chunks.
    constexpr stable_pattern_planner(placement const& where, int micro_batches, int memory, uniform_costs const& costs,
                                     stable_pattern const& pattern, habits how)
        : where_(where), micro_batches_(micro_batches), memory_(memory), legs_(2 * where.per_rank), costs_(costs),
          pattern_(pattern), how_(how), at_(index(where.ranks)),
          arrivals_(index(legs_) * index(where.ranks) * index(micro_batches), never) {
        for (int leg = 1; leg < legs_; ++leg)
            start_[index(leg)] = start_[index(leg - 1)] + where.ranks * pattern.hop[index(leg - 1)] +
                                 pattern.turn[index(leg - 1)];
        for (int m = 0; m < micro_batches; ++m) arrival(0, 0, m) = 0;
    }

    /// The programs of all ranks; none if the pattern does not fit into memory.
    constexpr std::vector<program> run() {
        std::vector<program> all(at_.size());
        for (auto left = index(3 * where_.stages()) * index(micro_batches_); left > 0;) {
            int rank = 0;
            for (int other = 1; other < where_.ranks; ++other)
                if (at_[index(other)].wake < at_[index(rank)].wake) rank = other;
            if (at_[index(rank)].wake == never) return {};
            int const leg = choice(rank);
            if (leg == idle) continue;
            if (leg == weight)
                settle(at_[index(rank)], all[index(rank)]);
            else
                all[index(rank)].push_back(advance(rank, leg));
            --left;
        }
        return all;
    }

private:
    static constexpr double never = std::numeric_limits<double>::infinity();
    static constexpr int weight = -1, idle = -2; ///< choices other than a leg

    struct state {
        double wake = 0, free = 0;  ///< when the rank decides next; when its last chunk ends
        std::array<int, 4> next{};  ///< per leg, the micro-batch that is due
        int settled = 0;            ///< weight gradients done
        std::size_t oldest_owed = 0; ///< where in the program the next weight gradient's input gradient is, or after
    };

    /// The leg whose chunk the rank runs now, or `weight`, or `idle`, and then its wake-up is set.
    constexpr int choice(int rank) {
        state& me = at_[index(rank)];
        int forwards = 0, backwards = 0, heads = 0;
        for (int leg = 0; leg < legs_; ++leg) {
            (is_forward(leg) ? forwards : backwards) += me.next[index(leg)];
            heads += me.next[index(leg)] < micro_batches_;
        }
        bool const owes = backwards > me.settled;
        if (owes && how_.eager && forwards < where_.per_rank * micro_batches_) return weight;

        int open = forwards - backwards, peak = open; // live but for the weight gradients that could free memory now
        double due = never, later = never;
        for (auto cursor = me.next; heads > 0;) {
            int const leg = earliest(rank, cursor);
            int const m = cursor[index(leg)]++;
            if (m == me.next[index(leg)]) {
                double const ready = arrival(leg, position(leg, rank), m);
                if (ready <= me.wake && (!is_forward(leg) || peak < memory_))
                    return is_forward(leg) && forwards - me.settled >= memory_ ? weight : leg;
                if (ready > me.wake && ready < later) later = ready;
                if (due == never && ready > me.wake) due = ready;
                heads = how_.strict ? 0 : heads - 1;
            }
            open += is_forward(leg) ? 1 : -1;
            if (open > peak) peak = open;
        }
        if (owes && (!how_.patient || due - me.wake >= costs_.weight)) return weight;
        me.wake = later;
        return idle;
    }

    /// Runs the chunk that is due on the leg and hands its output on.
    constexpr chunk advance(int rank, int leg) {
        state& me = at_[index(rank)];
        int const m = me.next[index(leg)]++;
        me.free = me.wake += is_forward(leg) ? costs_.forward : costs_.input;
        int const at = position(leg, rank);
        bool const turns = at + 1 == where_.ranks;
        if (!turns || leg + 1 < legs_) {
            int const next_leg = turns ? leg + 1 : leg, next_at = turns ? 0 : at + 1;
            double& there = arrival(next_leg, next_at, m);
            there = me.free + (turns ? 0 : costs_.communication);
            state& receiver = at_[index(next_leg % 2 == 0 ? next_at : where_.ranks - 1 - next_at)];
            double const time = there > receiver.free ? there : receiver.free;
            if (time < receiver.wake) receiver.wake = time;
        }
        int const stage = where_.stage_of(rank, is_forward(leg) ? leg : legs_ - 1 - leg);
        return {is_forward(leg) ? op::forward : op::backward_input, stage, m};
    }

    /// Runs the oldest weight gradient that the rank owes.
    constexpr void settle(state& me, program& order) {
        while (order[me.oldest_owed].front().what != op::backward_input) ++me.oldest_owed;
        chunk const input = order[me.oldest_owed++].front();
        order.push_back({op::backward_weight, input.stage, input.micro_batch});
        me.free = me.wake += costs_.weight;
        ++me.settled;
    }

    /// The leg whose chunk at the cursor stands first in the pattern.
    constexpr int earliest(int rank, std::array<int, 4> const& cursor) const {
        int found = 0;
        double first = never;
        for (int leg = 0; leg < legs_; ++leg) {
            double const place = start_[index(leg)] + pattern_.hop[index(leg)] * position(leg, rank) +
                                 3.0 * where_.per_rank * cursor[index(leg)];
            if (cursor[index(leg)] < micro_batches_ && place < first) first = place, found = leg;
        }
        return found;
    }

    static constexpr std::size_t index(int number) { return static_cast<std::size_t>(number); }
    constexpr bool is_forward(int leg) const { return leg < where_.per_rank; }
    constexpr int position(int leg, int rank) const { return leg % 2 == 0 ? rank : where_.ranks - 1 - rank; }
    constexpr double& arrival(int leg, int at, int m) {
        return arrivals_[(index(leg) * index(where_.ranks) + index(at)) * index(micro_batches_) + index(m)];
    }

    placement where_;
    int micro_batches_, memory_, legs_;
    uniform_costs costs_;
    stable_pattern pattern_;
    habits how_;
    std::array<double, 4> start_{};
    std::vector<state> at_;
    std::vector<double> arrivals_; ///< of each chunk's input, by leg, place on the leg and micro-batch
};

/// The best plan for the costs: the shortest makespan, then the shortest span of the longest rank, over patterns and
/// habits, planned with the costs or with F = I = W. A long step is judged by its first 3P micro-batches, for what
/// follows repeats them. `memory` bounds the live chunks of a rank.
template <class Patterns>
constexpr std::vector<program> plan_zero_bubble(placement const& where, int micro_batches, int memory,
                                                uniform_costs const& costs, Patterns const& patterns) {
    int const trial = micro_batches < 3 * where.ranks ? micro_batches : 3 * where.ranks;
    double makespan = std::numeric_limits<double>::infinity(), longest = makespan;
    std::vector<program> chosen;
    for (stable_pattern const& pattern : patterns)
        for (int run = costs == uniform_costs{} ? 8 : 0; run < 12; ++run) {
            stable_pattern_planner<>::habits const how{(run & 1) != 0, (run & 2) != 0, (run & 4) == 0};
            auto const plan = [&](int length) {
                auto const believed = run < 8 ? costs : uniform_costs{};
                return stable_pattern_planner(where, length, memory, believed, pattern, how).run();
            };
            auto tried = plan(trial);
            if (tried.empty()) continue;
            auto const told = evaluate(tried, where, trial, costs);
            double const same = 1e-9 * told.makespan; // sums of the same times differ by the order of their terms
            if (told.makespan > makespan + same) continue;
            if (told.makespan >= makespan - same && told.longest >= longest - same) continue;
            makespan = told.makespan, longest = told.longest;
            if (trial < micro_batches) tried = plan(micro_batches);
            chosen = std::move(tried);
        }
    return chosen;
}

/// Why the family cannot plan for such costs.
constexpr std::string_view cost_refusal(uniform_costs const& costs) {
    bool const known = costs.forward >= 0 && costs.input >= 0 && costs.weight >= 0 && costs.communication >= 0;
    return known ? "" : "Costs to plan for must be numbers of at least 0.";
}

} // namespace copipe
