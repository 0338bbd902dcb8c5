// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "copipe/observe/run_summary.hpp"

using namespace copipe;

namespace {

step_summary step_of(double busy0, double busy1) {
    rank_summary first{.busy = busy0, .bubble = 10 - busy0, .warm_up = 10 - busy0};
    rank_summary second{.busy = busy1, .bubble = 10 - busy1, .cool_down = 10 - busy1};
    first.waiting[static_cast<std::size_t>(wait_reason::input)] = first.bubble;
    second.waiting[static_cast<std::size_t>(wait_reason::none)] = second.bubble;
    return {.makespan = 10, .ranks = {first, second}};
}

} // namespace

TEST_CASE("the table of a run shows each rank's share of all steps") {
    run_summary run;
    run.add(step_of(8, 9));
    run.add(step_of(7, 10));
    CHECK(run.steps() == 2);
    CHECK(run.total().makespan == 20);
    std::vector<std::size_t> const peaks = {1536, 5u << 20};
    CHECK(run.table(peaks) ==
          "rank    busy  overlapped  bubble  warm-up  steady  cool-down  wait: input  no work  peak memory\n"
          "0     75.0 %       0.0 %  25.0 %   25.0 %   0.0 %      0.0 %       25.0 %    0.0 %      1.5 KiB\n"
          "1     95.0 %       0.0 %   5.0 %    0.0 %   0.0 %      5.0 %        0.0 %    5.0 %      5.0 MiB\n");
}

TEST_CASE("a run without steps has a table of its heading") {
    CHECK(run_summary{}.table() == "rank  busy  overlapped  bubble  warm-up  steady  cool-down\n");
}
