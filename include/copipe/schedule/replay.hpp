// SPDX-License-Identifier: Apache-2.0
// Runs the programs of all ranks against each other: every action as soon as its rank is free and its inputs are there.
// The verifier and the evaluator are both this walk.
#pragma once

#include "copipe/schedule/messages.hpp"

#include <cstddef>
#include <vector>

namespace copipe {

/// Visits every action that can run, in an order that respects every rank's program and every dependency between
/// stages. Linear in the number of actions. `Time` is any signed number: a small one where only the order matters.
template <class Time = double>
class replay {
public:
    using program_list = std::vector<std::vector<action>>;

    /// Programs whose chunks all lie on their rank and within the step.
    constexpr replay(program_list const& all, placement const& where, int micro_batches)
        : all_(all), where_(where), per_stage_(where.micro_batches_per_stage(micro_batches)),
          arrivals_(index(2 * where.stages()) * index(per_stage_), missing), at_(all.size(), 0),
          waits_for_(all.size(), nowhere) {
        for (int stage = 0; stage < where.stages(); ++stage) home_.push_back(where.rank_of(stage));
    }

    /// `run(rank, action, ready)` gives the action's end, where `ready` is when its last input arrived;
    /// `deliver(message, from, to, end)` gives the time of arrival on rank `to`. True if every program came to its end.
    template <class Run, class Deliver>
    constexpr bool run(Run&& run, Deliver&& deliver) {
        std::vector<int> runnable;
        for (int rank = where_.ranks; rank-- > 0;) runnable.push_back(rank);
        while (!runnable.empty()) {
            int const rank = runnable.back();
            runnable.pop_back();
            auto const& own = all_[index(rank)];
            for (std::size_t& at = at_[index(rank)]; at < own.size(); ++at) {
                Time const ready = inputs_of(rank, own[at]);
                if (ready == missing) break;
                Time const end = run(rank, own[at], ready);
                for (chunk const& one : own[at].chunks()) hand_on(one, rank, end, deliver, runnable);
            }
        }
        for (std::size_t rank = 0; rank < all_.size(); ++rank)
            if (at_[rank] < all_[rank].size()) return false;
        return true;
    }

    /// How far the rank came: the position of the action that it could not run, or the length of its program.
    [[nodiscard]] constexpr int position(int rank) const { return static_cast<int>(at_[index(rank)]); }

    /// The first input of the rank's next action that never came.
    [[nodiscard]] constexpr std::optional<message> missing_input(int rank) const {
        auto const& own = all_[index(rank)];
        if (at_[index(rank)] == own.size()) return {};
        for (chunk const& one : own[at_[index(rank)]].chunks())
            if (auto const in = input_of(one, where_); in && arrivals_[slot(*in)] == missing) return in;
        return {};
    }

private:
    static constexpr Time missing = -1;
    static constexpr std::size_t nowhere = static_cast<std::size_t>(-1);

    static constexpr std::size_t index(int number) { return static_cast<std::size_t>(number); }

    constexpr std::size_t slot(message const& sent) const {
        return (2 * index(sent.from_stage) + index(static_cast<int>(sent.direction))) * index(per_stage_) +
               index(sent.micro_batch);
    }

    constexpr Time inputs_of(int rank, action const& next) {
        Time ready = 0;
        for (chunk const& one : next.chunks()) {
            auto const in = input_of(one, where_);
            if (!in) continue;
            Time const arrival = arrivals_[slot(*in)];
            if (arrival == missing) {
                waits_for_[index(rank)] = slot(*in);
                return missing;
            }
            if (arrival > ready) ready = arrival;
        }
        return ready;
    }

    template <class Deliver>
    constexpr void hand_on(chunk const& done, int rank, Time end, Deliver& deliver, std::vector<int>& runnable) {
        auto const out = output_of(done, where_);
        if (!out) return;
        int const receiver = home_[out->to_stage];
        std::size_t const to = slot(*out);
        arrivals_[to] = receiver == rank ? end : deliver(*out, rank, receiver, end);
        if (waits_for_[index(receiver)] == to) {
            waits_for_[index(receiver)] = nowhere;
            if (receiver != rank) runnable.push_back(receiver);
        }
    }

    program_list const& all_;
    placement where_;
    int per_stage_;
    std::vector<int> home_; ///< stage -> rank
    std::vector<Time> arrivals_;
    std::vector<std::size_t> at_;
    std::vector<std::size_t> waits_for_;
};

} // namespace copipe
