// SPDX-License-Identifier: Apache-2.0
#include "copipe/observe/schedule_csv.hpp"
#include "catch.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/zb_v.hpp"

using namespace copipe;

namespace {

/// The sentence with which a text is refused.
std::string refusal_of(std::string const& text) {
    try {
        static_cast<void>(parse_schedule(text, "file.csv"));
    } catch (schedule_syntax_error const& wrong) {
        CHECK(wrong.file == "file.csv");
        return wrong.what();
    }
    return "";
}

} // namespace

TEST_CASE("a schedule that is written and read again is the same") {
    for (auto const& all : {programs(dualpipe{}, {4, 10}), programs(zb_v{}, {3, 7})}) {
        auto const read = parse_schedule(to_csv(all), "file.csv");
        CHECK(read.programs == all);
        for (auto const& transfers : read.transfers) CHECK(transfers.empty());
    }
}

TEST_CASE("a schedule is written one rank per line, with line feeds and without empty cells") {
    std::vector<program> const all{
        {{op::forward, 0, 0}, {op::backward, 0, 0}},
        {},
        {{chunk{op::forward, 2, 10}, chunk{op::backward, 5, 9}}, {op::backward_weight, 2, 1}}};
    CHECK(to_csv(all) == "0F0,0B0\n\n(2F10;5B9)OVERLAP_F_B,2W1\n");
}

TEST_CASE("idle cells, carriage returns, blanks and a missing last line feed are read over") {
    auto const read = parse_schedule("0F0,,0B0,\r\n,, 1F0 ,\t1I0,1W0", "file.csv");
    CHECK(to_csv(read.programs) == "0F0,0B0\n1F0,1I0,1W0\n");
}

TEST_CASE("lowered sends and receives are kept apart from the programs, memory commands skipped") {
    auto const read = parse_schedule("0UNSHARD,0F0,0SEND_F0,0RECV_B0@1,0B0,0REDUCE_GRAD,0RESHARD\n"
                                     "1RECV_F0,1F0,1B0,1SEND_B0\n",
                                     "file.csv");
    CHECK(to_csv(read.programs) == "0F0,0B0\n1F0,1B0\n");
    REQUIRE(read.transfers[0].size() == 2);
    CHECK(read.transfers[0][0].send);
    CHECK(read.transfers[0][0].after == 1);
    CHECK(read.transfers[0][0].what == message{0, 1, 0, flow::forward});
    CHECK_FALSE(read.transfers[0][1].send);
    CHECK(read.transfers[0][1].what == message{1, 0, 0, flow::backward});
    REQUIRE(read.transfers[1].size() == 2);
    CHECK(read.transfers[1][0].after == 0);
    CHECK(read.transfers[1][0].what == message{0, 1, 0, flow::forward});
    CHECK(read.transfers[1][1].what == message{1, 0, 0, flow::backward});
}

TEST_CASE("what is no schedule is refused with line and column") {
    auto const no_action = [](std::string const& token) {
        return "'" + token + "' is no action; expected stage, operation and micro-batch such as 3F0";
    };
    CHECK(refusal_of("0F0,0B0\n1F0, 1X0\n") == "file.csv:2:6: " + no_action("1X0"));
    for (std::string const token : {"F0", "0F", "0", "0f0", "0F0x", "-1F0", "0FF0", "0 F0", "0SEND_F", "0F0@1", "x"})
        CHECK(refusal_of(token) == "file.csv:1:1: " + no_action(token));
    CHECK(refusal_of("") == "file.csv:1:1: the file holds no schedule");
    CHECK(refusal_of("\r\n\n") == "file.csv:1:1: the file holds no schedule");
    CHECK(refusal_of("65535F0") == "file.csv:1:1: there are at most 65535 stages");
    CHECK(refusal_of("0F123456789012") == "file.csv:1:1: the number in '123456789012' is too large");
    CHECK(refusal_of("0SEND_B0") == "file.csv:1:1: stage 0 has no neighbour on that side");
    CHECK(refusal_of("0F\x1b[2J") == "file.csv:1:1: " + no_action("0F\\x1b[2J")); // shown, not sent to the terminal
    CHECK(refusal_of(std::string{"0F0,\0", 5}) == "file.csv:1:5: " + no_action("\\x00"));
    CHECK(refusal_of("\xef\xbb\xbf" "0F0") == "file.csv:1:1: " + no_action("\\xef\\xbb\\xbf0F0"));
    CHECK(refusal_of(std::string(1000, 'a')) == "file.csv:1:1: " + no_action(std::string(48, 'a') + "..."));
    CHECK(refusal_of("0F0,(0F1;0B0)") ==
          "file.csv:1:5: '(0F1;0B0)' is no pair; expected a form such as (3F1;4B0)OVERLAP_F_B");
    for (std::string const pair :
         {"(0B1;0F0)OVERLAP_F_B", "(0F1;0I0)OVERLAP_F_B", "(;)OVERLAP_F_B", "(0F1;)OVERLAP_F_B"})
        CHECK(refusal_of(pair) == "file.csv:1:1: '" + pair +
                                      "' does not pair a forward with a full backward, as (3F1;4B0)OVERLAP_F_B does");
}
