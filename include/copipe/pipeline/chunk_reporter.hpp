// SPDX-License-Identifier: Apache-2.0
// Tells an observer what a rank did and what it waited for, from the events that its chunks recorded.
#pragma once

#include "copipe/pipeline/in_flight.hpp"
#include "copipe/pipeline/observer.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <vector>

namespace copipe {

/// Reports of one rank, on its thread, actions in their order.
template <device Device>
class chunk_reporter {
public:
    using event = typename Device::event;

    chunk_reporter(observer_ref listener, int rank) noexcept : listener_(listener), rank_(rank) {}

    [[nodiscard]] auto listener() const noexcept -> observer_ref { return listener_; }
    /// Whether anyone wants to know.
    [[nodiscard]] auto timed() const noexcept -> timing { return listener_ ? timing::on : timing::off; }

    /// A step begins, at this second of the device's clock.
    void begin(double now) noexcept { last_end_ = now; }

    void sent(chunk const& of, double start, double end) const {
        report(span_kind::send, wait_reason::none, of, start, end);
    }

    /// An action has ended; what came in for it is told, and what the rank waited for before it.
    void ended(action_in_flight<Device> const& done) {
        auto const pieces = done.what.chunks();
        double start = done.halves[0].start.time();
        double arrived = 0;
        for (std::size_t i = 0; i < pieces.size(); ++i) {
            start = std::min(start, done.halves[i].start.time());
            if (pieces[i].what == op::backward_weight) continue;
            auto const& moved = done.halves[i].from->moved;
            if (moved.end.time() == 0) continue; // handed over on this rank
            arrived = std::max(arrived, moved.end.time());
            report(span_kind::receive, wait_reason::none, pieces[i], moved.start.time(), moved.end.time());
        }
        if (start > last_end_) {
            wait_reason const why = arrived > last_end_   ? wait_reason::input
                                    : done.held_by_window ? wait_reason::memory
                                                          : wait_reason::host;
            report(span_kind::wait, why, pieces[0], last_end_, start);
        }
        for (std::size_t i = 0; i < pieces.size(); ++i) {
            auto const& each = done.halves[i];
            report(kind_of(pieces[i].what, done.what.overlapped()), wait_reason::none, pieces[i], each.start.time(),
                   each.end.time());
            last_end_ = std::max(last_end_, each.end.time());
            if (!took_turns(done.halves[0].marks, done.halves[1].marks)) layers_of(pieces[i], each);
        }
    }

private:
    [[nodiscard]] static auto took_turns(std::vector<event> const& a, std::vector<event> const& b) -> bool {
        return !a.empty() && !b.empty() && a.front().time() < b.back().time() && b.front().time() < a.back().time();
    }

    /// The passes between a chunk's marks: layers upwards, or downwards with one pass each or two.
    void layers_of(chunk const& c, chunk_in_flight<Device> const& done) const {
        auto const& marks = done.marks;
        stage<Device> const& layers = done.home->layers;
        bool const both = c.what == op::backward;
        for (std::size_t i = 1; i < marks.size(); ++i) {
            auto const nth = static_cast<int>(both ? (i - 1) / 2 : i - 1);
            int const layer = layers.first() + (c.what == op::forward ? nth : layers.size() - 1 - nth);
            op const pass = !both ? c.what : i % 2 == 1 ? op::backward_input : op::backward_weight;
            listener_.record(layer_span{.start = marks[i - 1].time(),
                                        .end = marks[i].time(),
                                        .what = {pass, c.stage, c.micro_batch},
                                        .rank = rank_,
                                        .layer = layer});
        }
    }

    void report(span_kind kind, wait_reason reason, chunk const& c, double start, double end) const {
        listener_.record({.start = start, .end = end, .what = c, .rank = rank_, .kind = kind, .reason = reason});
    }

    observer_ref listener_;
    int rank_;
    double last_end_ = 0;
};

} // namespace copipe
