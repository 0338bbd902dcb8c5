// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "copipe/observe/recorder.hpp"
#include "copipe/observe/summary.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/evaluate.hpp"
#include "copipe/schedule/one_f_one_b.hpp"

#include <random>

using namespace copipe;

namespace {

span work(int rank, double start, double end, span_kind kind) {
    return {start, end, {}, rank, kind, wait_reason::none};
}
span waiting(int rank, double start, double end, wait_reason why) {
    return {start, end, {}, rank, span_kind::wait, why};
}

// A rank's figures, counted second by second from the words of the documentation.
rank_summary counted(std::vector<span> const& spans, int step_start, int step_end) {
    auto const at = [](span const& each, int second) { return each.start <= second && each.end >= second + 1; };
    double first_forward = step_end, last_forward = step_start, first_backward = step_end;
    for (span const& each : spans) {
        bool const forward = each.kind == span_kind::forward || each.kind == span_kind::overlapped_forward;
        bool const chunk = each.kind != span_kind::wait && each.kind != span_kind::send &&
                           each.kind != span_kind::receive && each.kind != span_kind::optimizer;
        if (forward) first_forward = std::min(first_forward, each.start);
        if (forward) last_forward = std::max(last_forward, each.end);
        if (chunk && !forward) first_backward = std::min(first_backward, each.start);
    }
    if (first_backward == step_end) first_backward = first_forward;

    rank_summary found;
    for (int second = step_start; second < step_end; ++second) {
        bool busy = false, pair = false, any[7] = {};
        for (span const& each : spans) {
            if (!at(each, second)) continue;
            if (each.kind == span_kind::wait) any[static_cast<int>(each.reason)] = true;
            if (each.kind <= span_kind::overlapped_backward) busy = true;
            if (each.kind == span_kind::overlapped_forward || each.kind == span_kind::overlapped_backward) pair = true;
        }
        found.busy += busy;
        found.overlapped += pair;
        if (busy) continue;
        found.bubble += 1;
        found.warm_up += second < first_backward;
        found.cool_down += second >= first_backward && second >= last_forward;
        int why = 0;
        for (int const candidate : {2, 3, 4, 5, 6, 1}) // from the last resort to the first cause
            if (any[candidate]) why = candidate;
        found.waiting[static_cast<std::size_t>(why)] += 1;
    }
    return found;
}

} // namespace

TEST_CASE("busy, bubble, phases and reasons are what counting second by second gives") {
    // Each rank waits for only one of memory, host, device and reduction: their order among themselves is not promised.
    for (unsigned seed = 0; seed < 200; ++seed) {
        INFO("seed " << seed);
        std::mt19937 draw{seed};
        auto const upto = [&](int n) { return static_cast<int>(draw() % static_cast<unsigned>(n)); };
        std::vector<std::vector<span>> ranks(3);
        int start = 1000, end = 0;
        for (int rank = 0; rank < 3; ++rank) {
            int const rare = 3 + upto(4);
            for (int i = 1 + upto(12); i-- > 0;) {
                int const from = upto(40), to = from + 1 + upto(8);
                int const what = upto(12);
                constexpr int reasons[] = {0, 1, 2};
                auto& spans = ranks[static_cast<std::size_t>(rank)];
                if (what >= 10) {
                    int const why = upto(4) == 3 ? rare : reasons[upto(3)];
                    spans.push_back(waiting(rank, from, to, static_cast<wait_reason>(why)));
                } else {
                    spans.push_back(work(rank, from, to, static_cast<span_kind>(what == 8 ? 9 : what)));
                    if (what < 6) start = std::min(start, from), end = std::max(end, to);
                }
            }
        }
        if (start > end) continue;
        auto const found = summarize(ranks);
        REQUIRE(found.makespan == end - start);
        for (std::size_t rank = 0; rank < 3; ++rank) {
            INFO("rank " << rank);
            auto const& got = found.ranks[rank];
            auto const expected = counted(ranks[rank], start, end);
            CHECK(got.busy == expected.busy);
            CHECK(got.overlapped == expected.overlapped);
            CHECK(got.bubble == expected.bubble);
            CHECK(got.warm_up == expected.warm_up);
            CHECK(got.cool_down == expected.cool_down);
            CHECK(got.waiting == expected.waiting);
        }
    }
}

TEST_CASE("a planned timeline has the busy and idle time of its forecast") {
    uniform_costs const costs{.forward = 1, .input = 1.5, .weight = 0.5, .overlapped = 2.5, .communication = 0.25};
    auto const check = [&](auto const& policy, shape size) {
        auto const all = programs(policy, size);
        auto const where = policy.placed(size);
        auto const expected = evaluate(all, where, size.micro_batches, costs);
        auto const found = summarize(timeline(all, where, size.micro_batches, costs));
        REQUIRE(found.makespan == Approx(expected.makespan));
        for (std::size_t rank = 0; rank < all.size(); ++rank) {
            CHECK(found.ranks[rank].busy == Approx(expected.busy[rank]));
            CHECK(found.ranks[rank].bubble == Approx(expected.bubble[rank]));
            CHECK(found.bubble_ratios()[rank] == Approx(expected.bubble[rank] / expected.makespan));
        }
    };
    check(one_f_one_b{}, {.ranks = 4, .micro_batches = 8});
    check(dualpipe{}, {.ranks = 4, .micro_batches = 10});
}

TEST_CASE("the last rank of 1F1B idles P-1 forwards at first and P-1 backwards at last") {
    shape const size{.ranks = 4, .micro_batches = 8};
    auto const where = one_f_one_b{}.placed(size);
    auto const found = summarize(timeline(programs(one_f_one_b{}, size), where, 8, uniform_costs{}));
    auto const& last = found.ranks[3];
    CHECK(last.warm_up == Approx(3 * 1.0));
    CHECK(last.cool_down == Approx(3 * 2.0));
    CHECK(last.steady() == Approx(0).margin(1e-12));
}

TEST_CASE("halves that run at the same time are busy once") {
    auto const found = summarize(
        {{work(0, 0, 4, span_kind::overlapped_forward), work(0, 1, 5, span_kind::overlapped_backward)}});
    CHECK(found.ranks[0].busy == 5);
    CHECK(found.ranks[0].overlapped == 5);
    CHECK(found.ranks[0].bubble == 0);
}

TEST_CASE("reduction and optimizer after the last chunk lengthen the update, not the bubble") {
    auto const found = summarize({{work(0, 0, 2, span_kind::forward), work(0, 2, 6, span_kind::backward),
                                    waiting(0, 6, 7, wait_reason::reduction), work(0, 7, 9, span_kind::optimizer)},
                                   {work(1, 2, 4, span_kind::forward)}});
    CHECK(found.makespan == 6);
    CHECK(found.ranks[0].update == 3);
    CHECK(found.ranks[0].bubble == 0);
    CHECK(found.ranks[1].update == 0);
    CHECK(found.ranks[1].bubble_ratio() == Approx(4.0 / 6));
}

TEST_CASE("a step without spans is all zero") {
    auto const found = summarize(recorder{2});
    REQUIRE(found.ranks.size() == 2);
    CHECK(found.makespan == 0);
    CHECK(found.bubble_ratios() == std::vector<double>{0, 0});
    CHECK(found.mean_bubble_ratio() == 0);
}
