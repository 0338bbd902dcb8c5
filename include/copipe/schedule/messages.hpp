// SPDX-License-Identifier: Apache-2.0
// The messages that a program implies: who sends what to whom, and in which order each pair of ranks exchanges them.
#pragma once

#include "copipe/schedule/action.hpp"
#include "copipe/schedule/placement.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace copipe {

/// Activations flow forward, their gradients backward.
enum class flow : std::uint8_t { forward, backward };

/// What one stage hands to a neighbouring stage for one micro-batch. The value is the message's identity.
struct message {
    std::uint16_t from_stage, to_stage;
    std::int32_t micro_batch;
    flow direction;

    friend constexpr bool operator==(message const&, message const&) = default;
};

/// `the output of stage 3 for micro-batch 0`, or its gradient.
[[nodiscard]] inline std::string text(message const& sent) {
    return std::string("the ") + (sent.direction == flow::forward ? "output" : "gradient") + " of stage " +
           std::to_string(sent.from_stage) + " for micro-batch " + std::to_string(sent.micro_batch);
}

/// The messages from one rank to another. On the way between two ranks messages never overtake one another: both sides
/// list them in the order in which the sender produces them, and receives must be posted in it.
struct lane {
    int peer;
    std::vector<message> messages;
};

/// The stages lie on different ranks. (The last rank of a `v` hands stage P-1's output to itself.)
[[nodiscard]] constexpr bool crosses_ranks(message const& sent, placement const& where) {
    return where.rank_of(sent.from_stage) != where.rank_of(sent.to_stage);
}

/// What the chunk needs from a neighbouring stage; nothing for a weight gradient, at a chain's end, and for the loss.
[[nodiscard]] constexpr std::optional<message> input_of(chunk const& one, placement const& where) {
    bool const down = one.what == op::forward;
    if (one.what == op::backward_weight || (down ? where.is_first(one.stage) : where.is_last(one.stage))) return {};
    auto const from = static_cast<std::uint16_t>(down ? one.stage - 1 : one.stage + 1);
    return message{from, one.stage, one.micro_batch, down ? flow::forward : flow::backward};
}

/// What the chunk hands to a neighbouring stage.
[[nodiscard]] constexpr std::optional<message> output_of(chunk const& one, placement const& where) {
    bool const down = one.what == op::forward;
    if (one.what == op::backward_weight || (down ? where.is_last(one.stage) : where.is_first(one.stage))) return {};
    auto const to = static_cast<std::uint16_t>(down ? one.stage + 1 : one.stage - 1);
    return message{one.stage, to, one.micro_batch, down ? flow::forward : flow::backward};
}

/// All that `from` sends to `to` while it runs `sender`, in order; of an overlapped pair the forward's output is first.
template <class = void>
[[nodiscard]] constexpr std::vector<message> sent(std::vector<action> const& sender, placement const& where, int from,
                                                  int to) {
    std::vector<message> in_order;
    if (from == to) return in_order;
    for (action const& each : sender)
        for (chunk const& one : each.chunks())
            if (auto const out = output_of(one, where); out && where.rank_of(out->to_stage) == to)
                in_order.push_back(*out);
    return in_order;
}

/// The ranks that `rank` exchanges messages with, ascending: its neighbours in a line or a ring, at most two.
template <class = void> [[nodiscard]] constexpr std::vector<int> peers(placement const& where, int rank) {
    std::vector<int> found;
    auto const add = [&](int other) {
        auto at = found.begin();
        while (at != found.end() && *at < other) ++at;
        if (other != rank && (at == found.end() || *at != other)) found.insert(at, other);
    };
    for (int k = 0; k < where.per_rank; ++k) {
        int const at = where.stage_of(rank, k);
        if (!where.is_first(at)) add(where.rank_of(at - 1));
        if (!where.is_last(at)) add(where.rank_of(at + 1));
    }
    return found;
}

/// What `rank` receives, by peer, in each sender's order. `all` holds the programs of all ranks; only peers' are read.
template <class = void>
[[nodiscard]] constexpr std::vector<lane> incoming(std::vector<std::vector<action>> const& all, placement const& where,
                                                      int rank) {
    std::vector<lane> lanes;
    for (int const peer : peers(where, rank))
        lanes.push_back({peer, sent(all[static_cast<std::size_t>(peer)], where, peer, rank)});
    return lanes;
}

} // namespace copipe
