// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/messages.hpp"
#include "copipe/schedule/one_f_one_b.hpp"

#include <algorithm>
#include <cstdlib>

using namespace copipe;

namespace {
message forward(int from, int to, int m) {
    return {static_cast<std::uint16_t>(from), static_cast<std::uint16_t>(to), m, flow::forward};
}
message backward(int from, int to, int m) {
    return {static_cast<std::uint16_t>(from), static_cast<std::uint16_t>(to), m, flow::backward};
}
} // namespace

TEST_CASE("1F1B exchanges activations with the next rank and gradients with the previous one") {
    auto const all = programs(one_f_one_b{}, {3, 2});
    auto const in = incoming(all, placement::single(3), 1);
    REQUIRE(in.size() == 2);
    CHECK(in[0].peer == 0);
    CHECK(in[0].messages == std::vector{forward(0, 1, 0), forward(0, 1, 1)});
    CHECK(in[1].peer == 2);
    CHECK(in[1].messages == std::vector{backward(2, 1, 0), backward(2, 1, 1)});
    CHECK(sent(all[0], placement::single(3), 0, 1) == in[0].messages);
}

TEST_CASE("every pair of neighbouring ranks exchanges each micro-batch once in each flow") {
    auto const where = placement::bidirectional(6);
    auto const all = programs(dualpipe{}, {6, 16});
    std::size_t messages = 0;
    for (int rank = 0; rank < 6; ++rank)
        for (auto const& [peer, expected] : incoming(all, where, rank)) {
            CHECK(std::abs(peer - rank) == 1);
            messages += expected.size();
        }
    CHECK(messages == 2U * 5U * 16U); // two flows, five edges of each direction's chain, 8 micro-batches each way
}

TEST_CASE("every input of a program is among the messages that its peers send, once") {
    auto const where = placement::v(4);
    auto const all = programs(dualpipe_v{}, {4, 9});
    for (int rank = 0; rank < 4; ++rank) {
        std::vector<message> got;
        for (auto const& from : incoming(all, where, rank))
            got.insert(got.end(), from.messages.begin(), from.messages.end());
        std::size_t needed = 0;
        for (auto const& each : all[static_cast<std::size_t>(rank)])
            for (auto const& one : each.chunks())
                if (auto const in = input_of(one, where); in && crosses_ranks(*in, where)) {
                    ++needed;
                    CHECK(std::count(got.begin(), got.end(), *in) == 1);
                }
        CHECK(needed == got.size());
    }
}

TEST_CASE("the last rank of a v hands its middle stages' tensors to itself, not to the transport") {
    auto const where = placement::v(2);
    auto const handed = output_of({op::forward, 1, 0}, where);
    REQUIRE(handed);
    CHECK(*handed == forward(1, 2, 0));
    CHECK_FALSE(crosses_ranks(*handed, where));
    CHECK(peers(where, 1) == std::vector{0});
    CHECK(peers(placement::v(1), 0).empty());
}

TEST_CASE("the two chains of a bidirectional placement do not touch") {
    auto const where = placement::bidirectional(4);
    CHECK_FALSE(output_of({op::forward, 3, 0}, where));
    CHECK_FALSE(input_of({op::forward, 4, 0}, where));
    CHECK_FALSE(input_of({op::backward, 3, 0}, where));
    CHECK_FALSE(output_of({op::backward_input, 4, 0}, where));
    CHECK_FALSE(output_of({op::backward_weight, 2, 0}, where));
}

TEST_CASE("of an overlapped pair the forward's output is sent first") {
    std::vector<action> const own{{chunk{op::forward, 2, 1}, chunk{op::backward, 1, 0}}};
    CHECK(sent(own, placement::v(2), 1, 0) == std::vector{forward(2, 3, 1), backward(1, 0, 0)});
}

TEST_CASE("a loop of ranks sends from the last rank to the first") {
    CHECK(peers(placement::loop(4, 2), 0) == std::vector{1, 3});
    CHECK(peers(placement::loop(4, 2), 3) == std::vector{0, 2});
    CHECK(peers(placement::single(4), 3) == std::vector{2});
    CHECK(peers(placement::loop(2, 3), 1) == std::vector{0});
}
