// SPDX-License-Identifier: Apache-2.0
// In steady state a step asks the heap for nothing that grows with the number of chunks.
#include "catch.hpp"
#include "counting_new.hpp"
#include "pipeline/fixture.hpp"

#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/gpipe.hpp"
#include "copipe/schedule/one_f_one_b.hpp"

#include <algorithm>
#include <cstddef>
#include <string>
#include <utility>
#include <vector>

using namespace copipe;

namespace {

struct counter {
    std::size_t spans = 0;
    std::size_t passes = 0;
    void record(span const&) noexcept { ++spans; }
    void record(layer_span const&) noexcept { ++passes; }
};

/// Heap allocations of one training step after warm-up: of the best of several, as threads differ in their timing.
template <class Policy>
auto allocations_of_step(Policy const& policy, int micro_batches, toy::setup const& how) -> std::size_t {
    toy::pipeline piped{policy, {4, micro_batches}, toy::network(11, true), how};
    toy::numbers const data;
    for (int i = 0; i < 5; ++i) piped.run_step(data);
    std::size_t least = ~std::size_t{0};
    for (int i = 0; i < 10; ++i) {
        std::size_t const before = heap_allocations;
        piped.run_step(data);
        least = std::min(least, heap_allocations - before);
    }
    return least;
}

} // namespace

TEST_CASE("a step allocates as little with 64 micro-batches as with 8, on one thread", "[one_thread]") {
    counter listener;
    for (auto const& [listens, layers] : {std::pair{false, timing::off}, {true, timing::off}, {true, timing::on}}) {
        toy::setup how{.threads = rank_threads::calling_thread, .execution = host_execution::inline_};
        if (listens) how.options.listener = observer_ref{listener};
        how.layers = layers;
        auto const check = [&](auto const& policy) {
            std::size_t const few = allocations_of_step(policy, 8, how);
            std::size_t const many = allocations_of_step(policy, 64, how);
            CAPTURE(policy.name, how.options.listener.wants_layers(), listener.passes, few, many);
            CHECK(few == many);
            CHECK(few < 40);
        };
        check(gpipe{});
        check(one_f_one_b{});
        check(dualpipe{});
        check(dualpipe_v{});
        CHECK((listener.passes > 0) == (layers == timing::on));
    }
}

TEST_CASE("a step allocates as little with 64 micro-batches as with 8, with threads for ranks and streams") {
    toy::setup const how{};
    auto const check = [&](auto const& policy) {
        std::size_t const few = allocations_of_step(policy, 8, how);
        std::size_t const many = allocations_of_step(policy, 64, how);
        CAPTURE(policy.name, few, many);
        CHECK(few < 80);
        CHECK(many < 80); // the step has 4 ranks of 128 chunks and more
    };
    check(one_f_one_b{});
    check(dualpipe{});
    check(dualpipe_v{});
}
