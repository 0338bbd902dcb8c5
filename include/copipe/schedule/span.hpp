// SPDX-License-Identifier: Apache-2.0
// One stretch of a timeline. Planned and measured timelines are made of the same spans.
#pragma once

#include "copipe/schedule/action.hpp"

#include <cstdint>
#include <string_view>

namespace copipe {

/// What fills a span. The halves of an overlapped pair have kinds of their own because they share their rank's time.
enum class span_kind : std::uint8_t {
    forward,
    backward,
    backward_input,
    backward_weight,
    overlapped_forward,
    overlapped_backward,
    send,
    receive,
    wait,
    optimizer,
    move, ///< layers move to other ranks
};

/// Why a rank waits: its input has not arrived; another chunk has the turn; memory (the window of chunks in flight is
/// full); the host is late with a launch; the device has not reached the event; gradients are summed across ranks.
enum class wait_reason : std::uint8_t { none, input, turn, memory, host, device, reduction };

/// A rank did `kind` from `start` to `end`, in seconds on one clock. A send names the chunk that produced the message,
/// a receive and a wait the chunk that needs it. Plain data: recording one allocates nothing.
struct span {
    double start = 0;
    double end = 0;
    chunk what;
    std::int32_t rank = 0;
    span_kind kind = span_kind::wait;
    wait_reason reason = wait_reason::none;

    [[nodiscard]] constexpr double seconds() const noexcept { return end - start; }

    friend constexpr bool operator==(span const&, span const&) = default;
};

static_assert(sizeof(span) == 32);

/// The kind of a chunk's compute.
[[nodiscard]] constexpr span_kind kind_of(op what, bool overlapped = false) noexcept {
    if (overlapped) return what == op::forward ? span_kind::overlapped_forward : span_kind::overlapped_backward;
    return static_cast<span_kind>(what);
}

[[nodiscard]] constexpr std::string_view name(span_kind kind) noexcept {
    constexpr std::string_view names[] = {
        "forward",             "backward", "backward input", "backward weight", "overlapped forward",
        "overlapped backward", "send",     "receive",        "wait",            "optimizer", "move"};
    return names[static_cast<std::size_t>(kind)];
}

[[nodiscard]] constexpr std::string_view name(wait_reason reason) noexcept {
    constexpr std::string_view names[] = {"none", "input", "turn", "memory", "host", "device", "reduction"};
    return names[static_cast<std::size_t>(reason)];
}

} // namespace copipe
