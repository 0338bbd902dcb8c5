// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "copipe/observe/recorder.hpp"

#include <algorithm>
#include <thread>

using namespace copipe;

namespace {

span numbered(int rank, int number) {
    return {number * 1.0, number + 0.5, {op::forward, rank, number}, rank, span_kind::forward, wait_reason::none};
}

} // namespace

TEST_CASE("spans that several ranks record at once are all kept, each rank's in order") {
    constexpr int ranks = 4, count = 5000;
    recorder spans{ranks, 16};
    std::vector<std::thread> threads;
    for (int rank = 0; rank < ranks; ++rank)
        threads.emplace_back([&spans, rank] {
            for (int i = 0; i < count; ++i) spans.record(numbered(rank, i));
        });
    for (auto& each : threads) each.join();

    for (int rank = 0; rank < ranks; ++rank) {
        REQUIRE(spans.of(rank).size() == count);
        bool in_order = true;
        for (int i = 0; i < count; ++i)
            in_order = in_order && spans.of(rank)[static_cast<std::size_t>(i)] == numbered(rank, i);
        CHECK(in_order);
    }
    CHECK(spans.lost() == 0);
}

TEST_CASE("a step as long as an earlier one is recorded in the same memory") {
    recorder spans{1, 1};
    for (int i = 0; i < 1000; ++i) spans.record(numbered(0, i));
    auto const* const before = spans.of(0).data();
    spans.clear();
    CHECK(spans.of(0).empty());
    for (int i = 0; i < 1000; ++i) spans.record(numbered(0, i));
    CHECK(spans.of(0).data() == before);
}

TEST_CASE("a timeline of chosen steps outlives the recorder's clearing") {
    recorder spans{2};
    std::vector<span> timeline;
    for (int step = 0; step < 3; ++step) {
        spans.record(numbered(1, step));
        spans.record(numbered(0, step));
        if (step != 1) spans.append_to(timeline);
        spans.clear();
    }
    CHECK(timeline == std::vector{numbered(0, 0), numbered(1, 0), numbered(0, 2), numbered(1, 2)});
}

TEST_CASE("a rank that the pipeline does not have is refused when its spans are asked for") {
    CHECK_THROWS_AS(recorder{2}.of(2), std::out_of_range);
}
