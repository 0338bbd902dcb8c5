// SPDX-License-Identifier: Apache-2.0
// Where a span is drawn in a timeline, and under which name.
#pragma once

#include "copipe/schedule/action.hpp"
#include "copipe/schedule/span.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace copipe {

/// The tracks of a rank. Sends outlast the chunks that caused them, and the halves of a pair share their time: what may
/// overlap gets tracks of its own, because Perfetto does not draw overlapping events on one.
enum class trace_track : std::uint8_t { compute, overlapped_forward, overlapped_backward, send, receive, wait };

[[nodiscard]] constexpr trace_track track_of(span_kind kind) noexcept {
    switch (kind) {
    case span_kind::overlapped_forward: return trace_track::overlapped_forward;
    case span_kind::overlapped_backward: return trace_track::overlapped_backward;
    case span_kind::send: return trace_track::send;
    case span_kind::receive: return trace_track::receive;
    case span_kind::wait: return trace_track::wait;
    default: return trace_track::compute;
    }
}
[[nodiscard]] constexpr std::string_view name(trace_track track) noexcept {
    constexpr std::string_view names[] = {"compute", "overlapped forward", "overlapped backward",
                                          "send",    "receive",            "wait"};
    return names[static_cast<std::size_t>(track)];
}

/// `F3 stage 1`, `send F3 stage 1`, `wait: input`, `optimizer`.
[[nodiscard]] inline std::string trace_name(span const& one) {
    if (one.kind == span_kind::wait) return "wait: " + std::string(name(one.reason));
    if (one.kind == span_kind::optimizer) return "optimizer";
    if (one.kind == span_kind::move) return "layers move";
    std::string const chunk =
        letter(one.what.what) + std::to_string(one.what.micro_batch) + " stage " + std::to_string(one.what.stage);
    bool const message = one.kind == span_kind::send || one.kind == span_kind::receive;
    return message ? std::string(name(one.kind)) + " " + chunk : chunk;
}

} // namespace copipe
