// SPDX-License-Identifier: Apache-2.0
#include "copipe/observe/likely_placement.hpp"
#include "catch.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/interleaved.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/v_min.hpp"

#include <utility>

using namespace copipe;

namespace {
template <class Policy>
void recognizes(Policy const& policy, shape size) {
    auto const all = programs(policy, size);
    INFO(Policy::name << ", " << size.ranks << " ranks, " << size.micro_batches << " micro-batches");
    auto const found = likely_placement(all);
    CHECK(found == policy.placed(size));
    CHECK(micro_batches_in(all, found) == size.micro_batches);
}
} // namespace

TEST_CASE("the placement of every policy's programs is recognized") {
    for (int ranks = 2; ranks <= 8; ranks += 2) {
        recognizes(one_f_one_b{}, {ranks, 5});
        recognizes(interleaved<2>{}, {ranks, 2 * ranks});
        recognizes(interleaved<3>{}, {ranks, 2 * ranks});
        recognizes(dualpipe_v{}, {ranks, 2 * ranks + 1});
        recognizes(v_min{}, {ranks, 2 * ranks + 1});
        recognizes(dualpipe{}, {ranks, 2 * ranks + 2});
    }
    recognizes(one_f_one_b{}, {1, 3});
}

TEST_CASE("a few wrong chunks do not change what placement is recognized") {
    auto all = programs(dualpipe_v{}, {4, 9});
    std::swap(all[3][0], all[3][1]); // on the middle rank, a later stage before its input
    std::swap(all[0][2], all[1][0]);
    CHECK(likely_placement(all) == placement::v(4));
}

TEST_CASE("a micro-batch number out of all proportion does not make a step of that size") {
    CHECK(micro_batches_in(std::vector<program>{{{op::forward, 0, 90'000'000}, {op::backward, 0, 0}}},
                           placement::single(1)) == 2);
}
