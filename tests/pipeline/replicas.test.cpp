// SPDX-License-Identifier: Apache-2.0
// Data parallelism in the engine: replicas of a pipeline learn what plain training on all their micro-batches does.
#include "catch.hpp"
#include "pipeline/fixture.hpp"

#include "copipe/schedule/data_parallel.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/sequential.hpp"

using namespace copipe;

TEST_CASE("replicas have the losses of plain training on all micro-batches, and its gradients but for rounding") {
    bool const tied = GENERATE(false, true);
    auto const layers = toy::network(7, tied);
    toy::numbers const data{[](std::uint64_t index) { return static_cast<std::int64_t>(1 + index % 4); }};
    auto const check = [&](auto const& policy, shape size) {
        toy::pipeline plain{sequential{}, {1, size.micro_batches}, layers};
        toy::outcome const expected = plain.train(data);
        toy::pipeline piped{policy, size, layers};
        CAPTURE(policy.name, policy.replicas, tied);
        toy::outcome const first = piped.train(data);
        CHECK(first.losses == expected.losses);
        CHECK(first.copies_agree);
        CHECK(first.distance_to(expected) < 1e-5);
        CHECK(piped.train(data).same_bits(first)); // again and again the same
        CHECK(piped.evaluate(data) == plain.evaluate(data));
    };
    check(data_parallel<one_f_one_b>{2}, {4, 8});
    check(data_parallel<one_f_one_b>{3}, {3, 9});
    check(data_parallel<dualpipe>{2}, {4, 8});
}

TEST_CASE("with one micro-batch for each replica, their gradients are added in the order of replicas") {
    auto const layers = toy::network(3);
    toy::pipeline plain{sequential{}, {1, 4}, layers}; // adds up micro-batch by micro-batch
    toy::pipeline piped{data_parallel<one_f_one_b>{4}, {8, 4}, layers};
    CHECK(piped.train(toy::numbers{}).same_bits(plain.train(toy::numbers{})));
}
