// SPDX-License-Identifier: Apache-2.0
// An independent, slow and obvious replay of programs, from the rules in words: schedules are checked against it.
#pragma once

#include "copipe/schedule/action.hpp"
#include "copipe/schedule/placement.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

namespace brute_force {

using programs = std::vector<std::vector<copipe::action>>;

/// The rows of a schedule as text, one rank per line, actions separated by commas.
inline std::string rows(programs const& all) {
    std::string lines;
    for (auto const& own : all) {
        for (auto const& each : own) lines += (&each == own.data() ? "" : ",") + copipe::text(each);
        lines += "\n";
    }
    return lines;
}

struct result {
    bool sound = false;
    std::vector<int> peak;
    std::vector<double> end; ///< per rank
    double makespan = 0;
};

struct costs {
    double forward = 1, input = 1, weight = 1, pair = 3, communication = 0;
};

/// Replays by sweeping over all ranks again and again, until nothing moves.
inline result replay(programs const& all, copipe::placement const& where, int micro_batches, costs const& c = {}) {
    using copipe::op;
    // (stage, 'F' output | 'I' input gradient | 'W' weight gradient, micro-batch) -> end
    std::map<std::tuple<int, char, int>, double> made;
    std::map<int, std::vector<int>> gradients;
    std::vector<std::size_t> at(all.size(), 0);
    std::vector<int> live(all.size(), 0);
    result r;
    r.peak.assign(all.size(), 0);
    r.end.assign(all.size(), 0);
    if (all.size() != static_cast<std::size_t>(where.ranks)) return r;
    int const last = where.kind == copipe::layout::bidirectional ? micro_batches / 2 : micro_batches;
    for (bool moved = true; moved;) {
        moved = false;
        for (int rank = 0; rank < where.ranks; ++rank) {
            auto const& own = all[static_cast<std::size_t>(rank)];
            auto const k = static_cast<std::size_t>(rank);
            if (at[k] == own.size()) continue;
            auto const halves = own[at[k]].chunks();
            if (halves.size() == 2 && !(halves[0].what == op::forward && halves[1].what == op::backward)) return r;
            double ready = r.end[k];
            bool waits = false;
            auto const need = [&](int stage, char made_by, int m, bool remote) {
                auto const found = made.find({stage, made_by, m});
                if (found == made.end())
                    waits = true;
                else
                    ready = std::max(ready, found->second +
                                                (remote && where.rank_of(stage) != rank ? c.communication : 0));
            };
            for (auto const& one : halves) {
                int const s = one.stage, m = one.micro_batch;
                if (s >= where.stages() || where.rank_of(s) != rank || m < 0 || m >= last) return r;
                char const output = one.what == op::forward ? 'F' : one.what == op::backward_weight ? 'W' : 'I';
                if (made.count({s, output, m})) return r;
                if (one.what == op::forward && !where.is_first(s)) need(s - 1, 'F', m, true);
                if (one.what == op::backward || one.what == op::backward_input) {
                    need(s, 'F', m, false);
                    if (!where.is_last(s)) need(s + 1, 'I', m, true);
                }
                if (one.what == op::backward_weight) need(s, 'I', m, false);
            }
            if (waits) continue;
            double seconds = halves.size() == 2 ? c.pair : 0;
            for (auto const& one : halves)
                if (halves.size() == 1)
                    seconds = one.what == op::forward           ? c.forward
                              : one.what == op::backward        ? c.input + c.weight
                              : one.what == op::backward_input  ? c.input
                                                                : c.weight;
            for (auto const& one : halves)
                if (one.what == op::forward) r.peak[k] = std::max(r.peak[k], ++live[k]);
            for (auto const& one : halves) {
                if (one.what == op::forward) made[{one.stage, 'F', one.micro_batch}] = ready + seconds;
                if (one.what == op::backward || one.what == op::backward_input)
                    made[{one.stage, 'I', one.micro_batch}] = ready + seconds;
                if (one.what == op::backward || one.what == op::backward_weight) {
                    if (!made.insert({{one.stage, 'W', one.micro_batch}, ready + seconds}).second) return r;
                    gradients[one.stage].push_back(one.micro_batch);
                    --live[k];
                }
            }
            r.end[k] = ready + seconds;
            ++at[k];
            moved = true;
        }
    }
    r.makespan = *std::max_element(r.end.begin(), r.end.end());
    for (std::size_t k = 0; k < all.size(); ++k)
        if (at[k] < all[k].size()) return r;
    if (made.size() != static_cast<std::size_t>(3 * where.stages() * last)) return r;
    for (auto const& [stage, order] : gradients)
        if (!std::is_sorted(order.begin(), order.end())) return r;
    r.sound = true;
    return r;
}

} // namespace brute_force
