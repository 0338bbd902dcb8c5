// SPDX-License-Identifier: Apache-2.0
#include "copipe/observe/lowered_schedule.hpp"
#include "catch.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/one_f_one_b.hpp"

#include <algorithm>
#include <utility>

using namespace copipe;

namespace {

/// The programs with every send right after its chunk and every receive right before it.
template <class Policy>
schedule_file lowered(Policy const& policy, shape size) {
    schedule_file file{programs(policy, size), {}};
    auto const where = policy.placed(size);
    for (int rank = 0; rank < size.ranks; ++rank) {
        auto& transfers = file.transfers.emplace_back();
        auto const& own = file.programs[static_cast<std::size_t>(rank)];
        for (int const peer : peers(where, rank))
            for (message const& each : sent(file.programs[static_cast<std::size_t>(peer)], where, peer, rank))
                transfers.push_back({each, false, 0});
        for (std::size_t i = 0; i < own.size(); ++i)
            for (chunk const& one : own[i].chunks())
                if (auto const out = output_of(one, where); out && crosses_ranks(*out, where))
                    transfers.push_back({*out, true, i + 1});
    }
    return file;
}

std::string fault_after(schedule_file file, auto change) {
    change(file.transfers);
    return transfer_fault(file, placement::single(2));
}

} // namespace

TEST_CASE("sends and receives that follow the programs are right") {
    CHECK(transfer_fault(lowered(one_f_one_b{}, {3, 5}), placement::single(3)) == "");
    CHECK(transfer_fault(lowered(dualpipe_v{}, {4, 9}), placement::v(4)) == "");
}

TEST_CASE("a schedule that spells out no transfers has none that are wrong") {
    CHECK(transfer_fault({programs(one_f_one_b{}, {2, 3}), {{}, {}}}, placement::single(2)) == "");
}

TEST_CASE("each wrong send or receive is named") {
    auto const file = lowered(one_f_one_b{}, {2, 3}); // rank 1: three receives, then three sends
    CHECK(fault_after(file, [](auto& t) { std::swap(t[1][0], t[1][1]); }) ==
          "rank 1 receives the output of stage 0 for micro-batch 1 where rank 0 sends the output of stage 0 for "
          "micro-batch 0: a transport without tags would swap them");
    CHECK(fault_after(file, [](auto& t) { t[1].erase(t[1].begin()); }) ==
          "rank 1 must receive the output of stage 0 for micro-batch 0 once, not 0 times");
    CHECK(fault_after(file, [](auto& t) { t[1].push_back(t[1].back()); }) ==
          "rank 1 must send the gradient of stage 1 for micro-batch 2 once, not 2 times");
    CHECK(fault_after(file, [](auto& t) { t[1].back().after = 0; }) ==
          "rank 1 sends the gradient of stage 1 for micro-batch 2 before it is made");
    CHECK(fault_after(file, [](auto& t) { t[1].front().after = 1; }) ==
          "rank 1 receives the output of stage 0 for micro-batch 0 after it is needed");
    CHECK(fault_after(file, [](auto& t) { t[0].push_back(t[1].back()); }) ==
          "rank 0 sends the gradient of stage 1 for micro-batch 2, but stage 1 is on another rank");
    CHECK(fault_after(file, [](auto& t) { t[1].front().what.micro_batch = 9; }) ==
          "rank 1 receives the output of stage 0 for micro-batch 9, which no chunk of the schedule needs");
    CHECK(fault_after(file, [](auto& t) { t[1].front().what.to_stage = 7; }) ==
          "rank 1 receives the output of stage 0 for micro-batch 0, but there is no such stage");
}

TEST_CASE("a transfer between two stages of one rank is wrong") {
    schedule_file file{programs(dualpipe_v{}, {1, 2}), {{{{0, 1, 0, flow::forward}, true, 1}}}};
    CHECK(transfer_fault(file, placement::v(1)) ==
          "rank 0 sends the output of stage 0 for micro-batch 0, but both stages are on that rank");
}
