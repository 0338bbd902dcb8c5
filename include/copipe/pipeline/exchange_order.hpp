// SPDX-License-Identifier: Apache-2.0
// The order in which neighbours exchange the messages of a step when one channel carries both directions: taken from
// the verified programs, the same on both sides, and free of deadlock at any speed of the ranks.
#pragma once

#include "copipe/pipeline/gradient_reduction.hpp"
#include "copipe/pipeline/step_plan.hpp"
#include "copipe/schedule/replay.hpp"
#include "copipe/transport/exchange.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace copipe {

/// What a message of that number is, in words.
[[nodiscard]] inline auto name_of_message(std::uint64_t identity) -> std::string {
    auto const from = static_cast<std::uint16_t>(identity >> 48U);
    auto const to = static_cast<std::uint16_t>(identity >> 32U);
    if (from == 0xffff) return "a gradient that ranks share";
    if (from == 0xfffe) return "a layer that moves";
    return text(message{from, to, static_cast<std::int32_t>(identity & 0xffffffffU),
                        from < to ? flow::forward : flow::backward});
}

/// Finds when each message could move if every action took a fixed time: not before its sender has ended the chunk that
/// makes it, nor before its receiver, or one behind it in its lane, is next to run what needs it. Whatever moves in the
/// order of these moments cannot wait for itself: every chunk and message waits only for earlier ones.
template <class = void> class exchange_planner {
public:
    exchange_planner(std::vector<program> const& all, placement const& where, int micro_batches)
        : all_(&all), where_(where), ends_(all.size()) {
        std::vector<double> free(all.size(), 0);
        auto const run = [&](int rank, action const& work, double ready) {
            auto const r = static_cast<std::size_t>(rank);
            double seconds = 0;
            for (chunk const& each : work.chunks()) seconds += each.what == op::backward ? 2 : 1;
            ends_[r].push_back(free[r] = std::max(free[r], ready) + seconds);
            return free[r];
        };
        auto const deliver = [](message const&, int, int, double produced) { return produced; };
        replay<>(all, where, micro_batches).run(run, deliver);
    }

    /// What `rank` exchanges with each of its neighbours.
    [[nodiscard]] auto orders(int rank) const -> std::vector<exchange_order> {
        std::vector<exchange_order> found;
        for (int const peer : peers(where_, rank)) found.push_back({peer, ticks(rank, peer)});
        return found;
    }

private:
    struct dated {
        double when;
        std::uint64_t identity;
    };

    /// The messages from one rank to another, each with the moment at which it can move.
    [[nodiscard]] auto lane_of(int from, int to) const -> std::vector<dated> {
        std::vector<dated> lane;
        std::vector<std::pair<std::uint64_t, double>> wanted; // since when the receiver is free for the message
        auto const& receiver = (*all_)[static_cast<std::size_t>(to)];
        for (std::size_t i = 0; i < receiver.size(); ++i)
            for (chunk const& each : receiver[i].chunks())
                if (auto const in = input_of(each, where_); in && where_.rank_of(in->from_stage) == from)
                    wanted.emplace_back(identity_of(*in), i == 0 ? 0 : ends_[static_cast<std::size_t>(to)][i - 1]);
        std::sort(wanted.begin(), wanted.end());
        auto const& sender = (*all_)[static_cast<std::size_t>(from)];
        for (std::size_t i = 0; i < sender.size(); ++i) {
            for (chunk const& each : sender[i].chunks()) {
                auto const out = output_of(each, where_);
                if (!out || where_.rank_of(out->to_stage) != to) continue;
                lane.push_back({ends_[static_cast<std::size_t>(from)][i], identity_of(*out)});
            }
        }
        double posted = std::numeric_limits<double>::infinity(); // a receive is posted with those behind it
        for (auto each = lane.rbegin(); each != lane.rend(); ++each) {
            posted = std::min(posted, std::lower_bound(wanted.begin(), wanted.end(),
                                                       std::pair{each->identity, -1.0})->second);
            each->when = std::max(each->when, posted);
        }
        return lane;
    }

    [[nodiscard]] auto ticks(int rank, int peer) const -> std::vector<exchange> {
        std::vector<dated> const out = lane_of(rank, peer);
        std::vector<dated> const in = lane_of(peer, rank);
        std::vector<exchange> merged;
        for (std::size_t o = 0, i = 0; o < out.size() || i < in.size();) {
            bool const sends = o < out.size() && (i == in.size() || out[o].when <= in[i].when);
            bool const receives = i < in.size() && (o == out.size() || in[i].when <= out[o].when);
            merged.push_back({sends ? out[o].identity : exchange::none, receives ? in[i].identity : exchange::none});
            o += sends;
            i += receives;
        }
        return merged;
    }

    std::vector<program> const* all_;
    placement where_;
    std::vector<std::vector<double>> ends_; ///< by rank and action
};

/// One rank's orders, for a training step and for an evaluation.
struct step_orders {
    std::vector<exchange_order> training;
    std::vector<exchange_order> evaluation;
};

/// Of all ranks.
template <class = void> [[nodiscard]] auto orders_of(step_plan const& plan) -> std::vector<step_orders> {
    std::vector<program> trained, evaluated;
    for (rank_program const& each : plan.training) trained.push_back(each.actions);
    for (rank_program const& each : plan.evaluation) evaluated.push_back(each.actions);
    exchange_planner const training{trained, plan.where, plan.micro_batches};
    exchange_planner const evaluation{evaluated, plan.where, plan.micro_batches};
    std::vector<step_orders> all;
    for (int rank = 0; rank < plan.where.ranks; ++rank)
        all.push_back({training.orders(rank), evaluation.orders(rank)});
    return all;
}

/// Neighbours talk, and ranks of which one holds a parameter twice; the other holders of a parameter sum.
template <class = void>
[[nodiscard]] auto traffic_of(placement const& where, std::vector<parameter_group> const& groups) -> traffic {
    traffic found;
    for (int rank = 0; rank < where.ranks; ++rank)
        for (int const peer : peers(where, rank))
            if (rank < peer) found.talking.emplace_back(rank, peer);
    for (parameter_group const& group : groups) {
        std::vector<int> ranks = group.ranks();
        std::sort(ranks.begin(), ranks.end());
        bool const once = std::adjacent_find(ranks.begin(), ranks.end()) == ranks.end();
        for (int const one : ranks)
            for (int const other : ranks)
                if (!once && one < other) found.talking.emplace_back(one, other);
        auto& sums = found.summing;
        if (once && ranks.size() > 1 && std::find(sums.begin(), sums.end(), ranks) == sums.end()) sums.push_back(ranks);
    }
    std::sort(found.talking.begin(), found.talking.end());
    found.talking.erase(std::unique(found.talking.begin(), found.talking.end()), found.talking.end());
    return found;
}

} // namespace copipe
