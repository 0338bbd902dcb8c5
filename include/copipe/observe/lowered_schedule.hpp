// SPDX-License-Identifier: Apache-2.0
// Checks the sends and receives that a lowered schedule spells out against its programs and against each other.
#pragma once

#include "copipe/observe/schedule_csv.hpp"

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

namespace copipe {

/// One check of a lowered schedule; `transfer_fault` below is the way in.
template <class = void> class lowered_check {
public:
    lowered_check(schedule_file const& file, placement const& where) : file_(file), where_(where) {
        for (program const& own : file.programs)
            for (action const& each : own)
                for (chunk const& one : each.chunks()) per_stage_ = std::max(per_stage_, one.micro_batch + 1);
        uses_.resize(2 * static_cast<std::size_t>(where.stages()) * static_cast<std::size_t>(per_stage_));
        for (program const& own : file.programs)
            for (std::size_t i = 0; i < own.size(); ++i)
                for (chunk const& one : own[i].chunks()) {
                    if (auto const out = output_of(one, where)) use_of(*out).made = i;
                    if (auto const in = input_of(one, where)) use_of(*in).needed = i;
                }
    }

    std::string run() {
        for (int rank = 0; rank < where_.ranks; ++rank)
            for (lowered_transfer const& each : of(rank))
                if (std::string why = misplaced(each, rank); !why.empty()) return why;
        for (int rank = 0; rank < where_.ranks; ++rank)
            for (int const peer : peers(where_, rank)) {
                for (message const& each : sent(file_.programs[static_cast<std::size_t>(rank)], where_, rank, peer)) {
                    auto const& [made, needed, sends, receives] = use_of(each);
                    if (sends != 1) return miscounted(rank, "send", each, sends);
                    if (receives != 1) return miscounted(peer, "receive", each, receives);
                }
                if (std::string why = swapped(rank, peer); !why.empty()) return why;
            }
        return {};
    }

private:
    static constexpr std::size_t nowhere = static_cast<std::size_t>(-1);
    struct use {
        std::size_t made = nowhere, needed = nowhere; ///< positions in the programs
        int sends = 0, receives = 0;
    };

    static std::string miscounted(int rank, std::string const& what, message const& m, int times) {
        return "rank " + std::to_string(rank) + " must " + what + " " + text(m) + " once, not " +
               std::to_string(times) + " times";
    }

    std::vector<lowered_transfer> const& of(int rank) const { return file_.transfers[static_cast<std::size_t>(rank)]; }

    use& use_of(message const& m) {
        auto const flows = 2 * std::size_t{m.from_stage} + static_cast<std::size_t>(m.direction);
        return uses_[flows * static_cast<std::size_t>(per_stage_) + static_cast<std::size_t>(m.micro_batch)];
    }

    std::string misplaced(lowered_transfer const& each, int rank) {
        message const& m = each.what;
        std::string const who = "rank " + std::to_string(rank) + (each.send ? " sends " : " receives ") + text(m);
        if (std::max(m.from_stage, m.to_stage) >= where_.stages()) return who + ", but there is no such stage";
        auto const stage = each.send ? m.from_stage : m.to_stage;
        if (where_.rank_of(stage) != rank) return who + ", but stage " + std::to_string(stage) + " is on another rank";
        if (!crosses_ranks(m, where_)) return who + ", but both stages are on that rank";
        use* const found = m.micro_batch < per_stage_ ? &use_of(m) : nullptr;
        std::size_t const at = !found ? nowhere : each.send ? found->made : found->needed;
        if (at == nowhere) return who + ", which no chunk of the schedule " + (each.send ? "makes" : "needs");
        if (each.send && at >= each.after) return who + " before it is made";
        if (!each.send && at < each.after) return who + " after it is needed";
        ++(each.send ? found->sends : found->receives);
        return {};
    }

    /// Both sides list the same messages; here their orders are compared.
    std::string swapped(int from, int to) const {
        auto received = of(to).begin();
        for (lowered_transfer const& each : of(from)) {
            if (!each.send || where_.rank_of(each.what.to_stage) != to) continue;
            while (received->send || where_.rank_of(received->what.from_stage) != from) ++received;
            if (received->what != each.what)
                return "rank " + std::to_string(to) + " receives " + text(received->what) + " where rank " +
                       std::to_string(from) + " sends " + text(each.what) +
                       ": a transport without tags would swap them";
            ++received;
        }
        return {};
    }

    schedule_file const& file_;
    placement where_;
    int per_stage_ = 0;
    std::vector<use> uses_; ///< by producing stage, flow and micro-batch
};

/// Why the file's sends and receives are wrong: one that is missing, doubled, too early or too late, or a pair of ranks
/// that sends and receives in different orders. Empty if they are right, or if the file spells out none. The programs
/// must have been verified before.
template <class = void> [[nodiscard]] std::string transfer_fault(schedule_file const& file, placement const& where) {
    bool const lowered =
        std::any_of(file.transfers.begin(), file.transfers.end(), [](auto const& own) { return !own.empty(); });
    return lowered ? lowered_check(file, where).run() : std::string{};
}

} // namespace copipe
