// SPDX-License-Identifier: Apache-2.0
#include "copipe/schedule/data_parallel.hpp"
#include "catch.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/evaluate.hpp"
#include "copipe/schedule/interleaved.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/verify.hpp"

#include <string>
#include <vector>

using namespace copipe;

static_assert(schedule_policy<data_parallel<dualpipe>>);
static_assert(verify(data_parallel<one_f_one_b>{}, shape{4, 8}));

TEST_CASE("replicas run the schedule of one, each on ranks and stages of its own, and take as long") {
    auto const check = [](auto const& policy, shape one, int replicas) {
        data_parallel<std::remove_cvref_t<decltype(policy)>> const all{replicas, policy};
        shape const size{replicas * one.ranks, replicas * one.micro_batches};
        CAPTURE(policy.name, one.ranks, replicas);
        auto const proof = verify(all, size);
        REQUIRE(proof);
        auto const alone = verify(policy, one).peak;
        for (std::size_t r = 0; r < proof.peak.size(); ++r) CHECK(proof.peak[r] == alone[r % alone.size()]);
        auto const makespan = [](auto const& of, shape s) {
            uniform_costs const costs{.communication = 0.5};
            return evaluate(programs(of, s), of.placed(s), s.micro_batches, costs).makespan;
        };
        CHECK(makespan(all, size) == makespan(policy, one));
        for (int rank = 0; rank < size.ranks; ++rank)
            for (int const peer : peers(all.placed(size), rank)) CHECK(peer / one.ranks == rank / one.ranks);
    };
    check(one_f_one_b{}, {4, 8}, 3);
    check(dualpipe{}, {4, 10}, 2);
    check(dualpipe_v{}, {3, 8}, 4);
    check(interleaved<2>{}, {4, 8}, 2);
    check(one_f_one_b{}, {1, 2}, 5);
}

TEST_CASE("shapes that cannot be shared out are refused by rule") {
    data_parallel<dualpipe> const three{3};
    CHECK(three.refusal({4, 12}) == "The ranks must be a multiple of the replicas.");
    CHECK(three.refusal({12, 32}) == "The micro-batches must be a multiple of the replicas.");
    CHECK(three.refusal({12, 30}) == dualpipe{}.refusal({4, 10}));
    CHECK(three.refusal({9, 30}) == dualpipe{}.refusal({3, 10}));
    CHECK(data_parallel<one_f_one_b>{0}.refusal({2, 2}) == "There must be at least one replica.");
    CHECK_THROWS_AS(programs(three, {6, 3}), shape_error);
}
