// SPDX-License-Identifier: Apache-2.0
// What the engine reports of a step: every chunk once, in order, and every moment of a rank accounted for.
#include "catch.hpp"
#include "pipeline/fixture.hpp"

#include "copipe/pipeline/observer.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/gpipe.hpp"
#include "copipe/schedule/messages.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/zb_h1.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <map>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

using namespace copipe;

namespace {

/// Each rank's spans as they came; a rank writes only its own.
struct notebook {
    std::vector<std::vector<span>> of_rank;
    explicit notebook(int ranks) : of_rank(static_cast<std::size_t>(ranks)) {}
    void record(span const& measured) noexcept { of_rank[static_cast<std::size_t>(measured.rank)].push_back(measured); }
};

auto is_compute(span const& s) -> bool { return s.kind <= span_kind::overlapped_backward; }
auto is_overlapped(span const& s) -> bool {
    return s.kind == span_kind::overlapped_forward || s.kind == span_kind::overlapped_backward;
}
auto chosen(std::vector<span> const& all, auto const& pick) {
    std::vector<span> some;
    std::copy_if(all.begin(), all.end(), std::back_inserter(some), pick);
    return some;
}
using key = std::tuple<int, int, int>;
auto key_of(chunk const& c) -> key { return {static_cast<int>(c.what), c.stage, c.micro_batch}; }

/// Everything that must be true of one rank's spans of a training step; the first thing that is not, or nothing.
auto complaint(step_plan const& plan, int rank, std::vector<span> const& spans, double begin, double end)
    -> std::string {
    auto const compute = chosen(spans, is_compute);
    auto const waits = chosen(spans, [](span const& s) { return s.kind == span_kind::wait; });
    for (span const& s : spans) {
        if (s.start > s.end) return "a span ends before it starts: " + std::string(name(s.kind));
        if (s.start < begin || s.end > end) return "a span lies outside the step: " + std::string(name(s.kind));
        if ((s.kind == span_kind::wait) != (s.reason != wait_reason::none)) return "a reason without a wait, or none";
    }
    // Each action once, in the order of the program, halves of a pair with kinds of their own.
    std::size_t at = 0;
    double busy_until = begin;
    std::size_t next_wait = 0;
    double idle = 0, waited = 0;
    for (action const& each : plan.training[static_cast<std::size_t>(rank)].actions) {
        double start = end, stop = begin;
        for (chunk const& c : each.chunks()) {
            if (at == compute.size()) return "chunks are missing, from " + text(c) + " on";
            span const& s = compute[at++];
            if (!(s.what == c)) return "expected " + text(c) + ", got " + text(s.what);
            if (s.kind != kind_of(c.what, each.overlapped())) return text(c) + " is a " + std::string(name(s.kind));
            start = std::min(start, s.start);
            stop = std::max(stop, s.end);
        }
        if (start < busy_until) return text(each) + " overlaps the action before it";
        if (start > busy_until) {
            idle += start - busy_until;
            if (next_wait == waits.size()) return "nobody waited before " + text(each);
            span const& w = waits[next_wait++];
            if (w.start != busy_until || w.end != start) return "the wait before " + text(each) + " is not the gap";
            if (!(w.what == each.front())) return "the wait before " + text(each) + " names another chunk";
            waited += w.seconds();
        }
        busy_until = stop;
    }
    if (at != compute.size()) return "more chunks than the program has";
    if (next_wait != waits.size()) return "waits that fill no gap";
    if (idle != waited) return "idle time that no wait explains";
    // Each message that crosses ranks once: received before its chunk starts, sent after its chunk ended.
    std::map<key, span> of_chunk;
    for (span const& s : compute) of_chunk[key_of(s.what)] = s;
    std::map<key, int> received, sent;
    for (span const& s : spans) {
        if (s.kind == span_kind::receive) {
            ++received[key_of(s.what)];
            if (s.end > of_chunk.at(key_of(s.what)).start) return text(s.what) + " starts before its input is there";
        }
        if (s.kind == span_kind::send) {
            ++sent[key_of(s.what)];
            if (s.start < of_chunk.at(key_of(s.what)).end) return text(s.what) + " is sent before it is computed";
        }
    }
    for (span const& s : compute) {
        auto const in = input_of(s.what, plan.where);
        auto const out = output_of(s.what, plan.where);
        int const comes = in && crosses_ranks(*in, plan.where) ? 1 : 0;
        int const goes = out && crosses_ranks(*out, plan.where) ? 1 : 0;
        if (received[key_of(s.what)] != comes) return "receives of " + text(s.what);
        if (sent[key_of(s.what)] != goes) return "sends of " + text(s.what);
    }
    // Sends and waits come in order of time, as the chunks do.
    for (auto const kind : {span_kind::send, span_kind::wait}) {
        auto const some = chosen(spans, [&](span const& s) { return s.kind == kind; });
        if (!std::is_sorted(some.begin(), some.end(), [](span const& a, span const& b) { return a.end < b.end; })) {
            return std::string(name(kind)) + " spans do not come in order of time";
        }
    }
    return {};
}

struct not_noexcept {
    void record(span const&) {}
};

} // namespace

TEST_CASE("an observer is told of every chunk and message once, in order, and of every idle moment with its reason") {
    auto const execution = GENERATE(host_execution::worker_thread, host_execution::inline_);
    auto const threads = GENERATE(rank_threads::one_each, rank_threads::calling_thread);
    auto const check = [&](auto const& policy, int ranks, std::size_t lookahead) {
        notebook listener{ranks};
        toy::setup how{.threads = threads, .execution = execution};
        how.options.lookahead = lookahead;
        how.options.listener = observer_ref{listener};
        toy::pipeline piped{policy, {ranks, 8}, toy::network(8), how};
        for (int step = 0; step < 5; ++step) {
            for (auto& each : listener.of_rank) each.clear();
            double const begin = piped.devices.front().now();
            piped.run_step(toy::numbers{});
            double const end = piped.devices.front().now();
            for (int r = 0; r < ranks; ++r) {
                CAPTURE(policy.name, ranks, r, lookahead, execution, threads);
                // A rank's first wait begins when it begins its step, a little after `begin`.
                auto const& spans = listener.of_rank[static_cast<std::size_t>(r)];
                auto const first = std::find_if(spans.begin(), spans.end(), [](span const& s) {
                    return s.kind == span_kind::wait || is_compute(s);
                });
                REQUIRE(first != spans.end());
                REQUIRE(first->start >= begin);
                CHECK(complaint(piped.plan, r, spans, first->start, end) == "");
            }
        }
    };
    for (std::size_t const lookahead : {1U, 4U, 1000U}) {
        check(dualpipe{}, 4, lookahead);
        check(dualpipe_v{}, 4, lookahead);
        check(dualpipe_v{}, 1, lookahead);
        check(one_f_one_b{}, 4, lookahead);
        check(gpipe{}, 2, lookahead);
        check(zb_h1{}, 4, lookahead);
    }
}

TEST_CASE("a rank that waits for a slow neighbour is said to wait for its input") {
    struct slow : toy::dense {
        using toy::dense::dense;
        auto forward(copipe::context<toy::host_device>& c, toy::tensor x, saved& s) -> toy::tensor {
            c.stream.launch([] { std::this_thread::sleep_for(std::chrono::milliseconds(2)); });
            return toy::dense::forward(c, x, s);
        }
    };
    model<toy::host_device> layers;
    layers.add(slow{}).add(toy::distance{});
    notebook listener{2};
    toy::setup how;
    how.options.listener = observer_ref{listener};
    toy::pipeline piped{one_f_one_b{}, {2, 8}, layers, how};
    bool told = false;
    for (int attempt = 0; attempt < 50 && !told; ++attempt) { // the machine may have other things to do
        listener = notebook{2};
        piped.run_step(toy::numbers{});
        double for_input = 0, for_all = 0, of_slow = 0;
        for (span const& s : listener.of_rank[1]) {
            if (s.kind == span_kind::wait) for_all += s.seconds();
            if (s.reason == wait_reason::input) for_input += s.seconds();
        }
        for (span const& s : listener.of_rank[0]) {
            if (s.kind == span_kind::forward) of_slow += s.seconds();
        }
        CHECK(of_slow >= 8 * 2e-3);
        told = for_all >= 7 * 2e-3 && for_input >= 0.8 * for_all;
    }
    CHECK(told);
}

TEST_CASE("an evaluation is reported, too") {
    notebook listener{4};
    toy::setup how;
    how.options.listener = observer_ref{listener};
    toy::pipeline piped{dualpipe{}, {4, 8}, toy::network(8), how};
    static_cast<void>(piped.evaluate(toy::numbers{}));
    for (std::size_t r = 0; r < 4; ++r) {
        auto const forwards = chosen(listener.of_rank[r], [](span const& s) { return s.kind == span_kind::forward; });
        CHECK(forwards.size() == 8);
        CHECK(chosen(listener.of_rank[r], is_compute).size() == 8);
        CHECK(chosen(listener.of_rank[r], is_overlapped).empty());
    }
}

TEST_CASE("listening does not show in the numbers") {
    notebook listener{4};
    toy::setup how;
    how.options.listener = observer_ref{listener};
    toy::outcome const heard = toy::pipeline{dualpipe{}, {4, 8}, toy::network(8), how}.train(toy::numbers{});
    CHECK(heard.same_bits(toy::pipeline{dualpipe{}, {4, 8}, toy::network(8)}.train(toy::numbers{})));
}

TEST_CASE("an observer reference passes spans on, and none at all may be there") {
    STATIC_REQUIRE(observer<notebook>);
    STATIC_REQUIRE(observer<observer_ref const>);
    STATIC_REQUIRE_FALSE(observer<not_noexcept>);
    STATIC_REQUIRE_FALSE(observer<int>);
    notebook listener{1};
    observer_ref const some{listener};
    observer_ref const none;
    CHECK(some);
    CHECK_FALSE(none);
    span one;
    one.end = 1;
    some.record(one);
    none.record(one);
    REQUIRE(listener.of_rank[0].size() == 1);
    CHECK(listener.of_rank[0][0].seconds() == 1);
}
