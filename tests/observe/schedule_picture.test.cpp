// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "copipe/observe/schedule_svg.hpp"
#include "copipe/observe/schedule_text.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/evaluate.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/zb_h1.hpp"

#include <sstream>

using namespace copipe;

namespace {
std::size_t count(std::string const& text, std::string const& part) {
    std::size_t found = 0;
    for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
    return found;
}
} // namespace

TEST_CASE("the text picture of a small step shows one column per unit of time") {
    auto const spans = timeline(programs(zb_h1{}, {2, 2}), placement::single(2), 2, uniform_costs{});
    CHECK(to_text(spans).starts_with("rank 0 01.awbw\n"
                                     "rank 1 .0a1bww\n"));
    auto const dual = timeline(programs(dualpipe{}, {2, 4}), placement::bidirectional(2), 4, uniform_costs{});
    CHECK(to_text(dual).starts_with("rank 0 001aa***bbbw\n"
                                    "rank 1 001aa***bbbw\n"));
}

TEST_CASE("a long step's text picture fits the columns it is given") {
    auto const spans = timeline(programs(one_f_one_b{}, {12, 200}), placement::single(12), 200, uniform_costs{});
    for (std::size_t const columns : {40U, 80U, 200U}) {
        std::istringstream lines(to_text(spans, columns));
        std::string line;
        for (int i = 0; i < 12; ++i) {
            std::getline(lines, line);
            CHECK(line.size() <= columns);
            CHECK(line.size() + 2 >= columns);
        }
    }
}

TEST_CASE("a step that takes no time at all still has a picture") {
    uniform_costs const nothing{.forward = 0, .input = 0, .weight = 0};
    auto const spans = timeline(programs(one_f_one_b{}, {2, 2}), placement::single(2), 2, nothing);
    CHECK(to_text(spans).starts_with("rank 0 "));
    std::string const svg = to_svg(spans, placement::single(2), "nothing");
    CHECK(svg.find("nan") == std::string::npos);
    CHECK(svg.find(" width=\"788\" ") != std::string::npos); // room for the legend
}

TEST_CASE("the SVG picture draws every chunk once, halves of pairs apart, and a memory curve per rank") {
    auto const all = programs(dualpipe{}, {4, 10});
    auto const spans = timeline(all, placement::bidirectional(4), 10, uniform_costs{.overlapped = 2});
    std::string const svg = to_svg(spans, placement::bidirectional(4), "DualPipe <4 & 10>");
    std::size_t chunks = 0;
    for (auto const& own : all)
        for (auto const& each : own) chunks += each.chunks().size();
    CHECK(count(svg, "<g><title>") == chunks);
    CHECK(count(svg, "<g>") == count(svg, "</g>"));
    CHECK(count(svg, "<title>") == count(svg, "</title>"));
    CHECK(count(svg, "<path class=\"curve\"") == 4);
    CHECK(count(svg, "<title>3B1, ") == 1);
    CHECK(count(svg, "DualPipe &lt;4 &amp; 10&gt;") == 2);
    CHECK(svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\" "));
    CHECK(svg.ends_with("</svg>\n"));
}
