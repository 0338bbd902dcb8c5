// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "copipe/observe/chrome_trace.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/evaluate.hpp"
#include "says.hpp"
#include "temporary_folder.hpp"

#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

using namespace copipe;
using nlohmann::json;

namespace {

span of(span_kind kind, double start, double end, int rank = 0) {
    return {start, end, {}, rank, kind, wait_reason::none};
}

json written(std::vector<trace_group> const& groups) {
    temporary_folder const folder;
    write_chrome_trace(folder / "trace.json", groups);
    return json::parse(contents(folder / "trace.json"));
}
json written(std::vector<span> const& spans) {
    return written(std::vector{trace_group{.name = "", .spans = spans}});
}

/// The drawn events by process and thread.
auto tracks(json const& trace) {
    std::map<std::pair<int, int>, std::vector<json>> found;
    for (json const& each : trace["traceEvents"])
        if (each["ph"] == "X") found[{each["pid"], each["tid"]}].push_back(each);
    return found;
}
/// The name that metadata gives to processes or threads.
auto names(json const& trace, std::string const& of) {
    std::map<std::pair<int, int>, std::string> found;
    for (json const& each : trace["traceEvents"])
        if (each["name"] == of) found[{each["pid"], each["tid"]}] = each["args"]["name"];
    return found;
}
bool overlap_free(std::vector<json> events) {
    std::sort(events.begin(), events.end(), [](json const& a, json const& b) { return a["ts"] < b["ts"]; });
    for (std::size_t i = 1; i < events.size(); ++i) {
        auto const end = std::llround((events[i - 1]["ts"].get<double>() + events[i - 1]["dur"].get<double>()) * 1e3);
        if (std::llround(events[i]["ts"].get<double>() * 1e3) < end) return false;
    }
    return true;
}

std::vector<span> planned_dualpipe() {
    shape const size{.ranks = 4, .micro_batches = 10};
    auto const where = dualpipe{}.placed(size);
    std::vector<span> all;
    for (auto const& rank : timeline(programs(dualpipe{}, size), where, 10, uniform_costs{}))
        all.insert(all.end(), rank.begin(), rank.end());
    return all;
}

} // namespace

TEST_CASE("a span is drawn at its time in microseconds, under its chunk's name, with what it is about") {
    span const first{.start = 100, .end = 100.5, .what = {op::forward, 1, 3}, .rank = 2, .kind = span_kind::forward};
    span const later{.start = 100.5, .end = 100.500002, .what = {op::backward, 1, 3}, .rank = 2,
                     .kind = span_kind::wait, .reason = wait_reason::input};
    auto const trace = written(std::vector{later, first});
    auto const found = tracks(trace);
    REQUIRE(found.size() == 2);
    json const& chunk = found.begin()->second.at(0);
    CHECK(chunk["name"] == "F3 stage 1");
    CHECK(chunk["cat"] == "forward");
    CHECK(chunk["ts"] == 0.0);
    CHECK(chunk["dur"] == 500000.0);
    CHECK(chunk["args"] == json{{"stage", 1}, {"micro_batch", 3}});
    json const& wait = found.rbegin()->second.at(0);
    CHECK(wait["name"] == "wait: input");
    CHECK(wait["ts"] == 500000.0);
    CHECK(wait["dur"] == 2.0);
    CHECK(wait["args"] == json{{"stage", 1}, {"micro_batch", 3}, {"reason", "input"}, {"for", "B3 stage 1"}});
    CHECK(names(trace, "process_name").begin()->second == "rank 2");
}

TEST_CASE("compute, sends, receives, both halves of pairs and waits have tracks of their own in a rank's process") {
    std::vector<span> spans;
    for (int kind = 0; kind <= static_cast<int>(span_kind::optimizer); ++kind)
        for (int rank : {0, 1})
            spans.push_back(of(static_cast<span_kind>(kind), kind, kind + 1, rank));
    auto const trace = written(spans);
    std::set<std::pair<int, std::string>> drawn;
    auto const threads = names(trace, "thread_name");
    for (auto const& [place, events] : tracks(trace)) drawn.insert({place.first, threads.at(place)});
    CHECK(drawn.size() == 12);
    for (auto const* track : {"compute", "overlapped forward", "overlapped backward", "send", "receive", "wait"})
        CHECK(drawn.count({1, track}) == 1);
}

TEST_CASE("no two events of a track overlap, however spans do") {
    std::mt19937 draw{7};
    std::uniform_real_distribution<double> time{0, 1e-3};
    std::vector<span> spans;
    for (int i = 0; i < 2000; ++i) {
        double const start = 5e5 + time(draw);
        spans.push_back(of(static_cast<span_kind>(i % 10), start, start + time(draw) / 50, i % 3));
    }
    auto const trace = written(spans);
    std::size_t drawn = 0;
    for (auto const& [place, events] : tracks(trace)) {
        CHECK(overlap_free(events));
        drawn += events.size();
    }
    CHECK(drawn == spans.size());
}

TEST_CASE("back-to-back spans stay on one track although their times are rounded") {
    std::vector<span> spans;
    double now = 123456.789;
    for (int i = 0; i < 1000; ++i) {
        double const end = now + 1e-6 / 3;
        spans.push_back(of(span_kind::forward, now, end));
        now = end;
    }
    CHECK(tracks(written(spans)).size() == 1);
}

TEST_CASE("planned and measured timelines of one step line up in one file") {
    auto const planned = planned_dualpipe();
    auto measured = planned;
    for (span& each : measured) {
        each.start += 98765.25;
        each.end += 98765.25;
    }
    std::vector const groups{trace_group{"planned", planned}, trace_group{"measured", measured}};
    auto const trace = written(groups);
    auto const processes = names(trace, "process_name");
    REQUIRE(processes.size() == 8);
    std::map<std::string, std::vector<std::pair<double, std::string>>> drawn;
    for (auto const& [place, events] : tracks(trace))
        for (json const& each : events)
            drawn[processes.at({place.first, 0})].push_back({each["ts"], each["name"]});
    for (int rank = 0; rank < 4; ++rank) {
        auto const of_rank = " rank " + std::to_string(rank);
        REQUIRE_FALSE(drawn["planned" + of_rank].empty());
        CHECK(drawn["planned" + of_rank] == drawn["measured" + of_rank]);
    }
    std::vector<int> order; // planned and measured of a rank are neighbours
    for (json const& each : trace["traceEvents"])
        if (each["name"] == "process_sort_index") order.push_back(each["args"]["sort_index"]);
    std::sort(order.begin(), order.end());
    CHECK(order == std::vector{1, 2, 3, 4, 5, 6, 7, 8});
    CHECK(processes.at({1, 0}) == "planned rank 0");
    CHECK(processes.at({2, 0}) == "measured rank 0");
}

TEST_CASE("a timeline with too many spans keeps each group's earliest and says so") {
    temporary_folder const folder;
    auto const spans = planned_dualpipe();
    std::vector const groups{trace_group{"a", spans}, trace_group{"b", spans}};
    auto const size = write_chrome_trace(folder / "trace.json", groups, 100);
    CHECK(size.written == 100);
    CHECK(size.left_out == 2 * spans.size() - 100);
    auto const trace = json::parse(contents(folder / "trace.json"));
    std::size_t drawn = 0;
    for (auto const& [place, events] : tracks(trace)) drawn += events.size();
    CHECK(drawn == 100);
    CHECK(trace["otherData"]["note"] ==
          "The timeline is cut: the first 100 of " + std::to_string(2 * spans.size()) + " spans are shown.");
}

TEST_CASE("an empty timeline is a file that opens") {
    CHECK(written(std::vector<span>{})["traceEvents"].empty());
}

TEST_CASE("a timeline that cannot be written says so and leaves nothing behind") {
    temporary_folder const folder;
    CHECK_THROWS_WITH(write_chrome_trace(folder / "no/trace.json", std::vector<span>{}), says("no/trace.json"));
    CHECK(folder.entries() == 0);
}
