// SPDX-License-Identifier: Apache-2.0
// The eight steps that DualPipe and DualPipeV share: a rank's walk over two streams of micro-batches that meet.
#pragma once

#include "copipe/schedule/policy.hpp"

namespace copipe {

/// One rank of a dual walk. Phase 0 is the stream that enters from the near end, phase 1 the one that comes back from
/// beyond the middle. `reach` ranks lie on the way to the middle and this one is `depth` of them from the near end;
/// `steady` repetitions form the steady state. Weight gradients that were split off wait in one FIFO, empty in the end.
class dual_walk {
public:
    struct rank_view {
        int near_stage, far_stage; ///< stage of phase 0 and of phase 1
        int reach, depth, steady;
    };

    static constexpr program of(rank_view const& at) {
        dual_walk walk(at);
        walk.warm_up();
        walk.steady_state();
        walk.cool_down();
        return walk.order_;
    }

private:
    constexpr explicit dual_walk(rank_view const& at) : at_(at), beyond_(at.reach - at.depth - 1) {}

    static constexpr void repeat(int times, auto step) {
        for (int i = 0; i < times; ++i) step(i);
    }

    constexpr void warm_up() {
        repeat(2 * beyond_, [this](int) { forward(0); });
        repeat(at_.depth + 1, [this](int) { forward(0), forward(1); });
        repeat(beyond_, [this](int) { backward_input(1), backward_weight(), forward(1); });
    }

    /// On the rank in the middle the first backward belongs to the forward just before it, so they cannot overlap.
    constexpr void steady_state() {
        repeat(at_.steady, [this](int i) {
            if (i == 0 && beyond_ == 0)
                forward(0), backward(1);
            else
                overlapped(0, 1);
            overlapped(1, 0);
        });
        repeat(beyond_, [this](int) { backward(1), overlapped(1, 0); });
    }

    /// The last depth+1 backwards hand their input gradients on at once; their weight gradients fill the bubble.
    constexpr void cool_down() {
        repeat(2 * (at_.depth + 1), [this](int i) {
            int const phase = 1 - i % 2;
            i <= at_.depth ? backward(phase) : backward_input(phase);
        });
        repeat(beyond_, [this](int) { backward_weight(), backward_input(0); });
        repeat(at_.depth + 1, [this](int) { backward_weight(); });
    }

    constexpr int stage(int phase) const { return phase == 0 ? at_.near_stage : at_.far_stage; }
    constexpr chunk next_forward(int phase) { return {op::forward, stage(phase), forwards_[phase]++}; }
    constexpr chunk next_backward(int phase, op what) { return {what, stage(phase), backwards_[phase]++}; }

    constexpr void forward(int phase) { order_.push_back(next_forward(phase)); }
    constexpr void backward(int phase) { order_.push_back(next_backward(phase, op::backward)); }
    constexpr void backward_input(int phase) {
        chunk const input = next_backward(phase, op::backward_input);
        order_.push_back(input);
        waiting_.push_back({op::backward_weight, input.stage, input.micro_batch});
    }
    constexpr void backward_weight() { order_.push_back(waiting_[oldest_++]); }
    constexpr void overlapped(int forward_phase, int backward_phase) {
        chunk const ahead = next_forward(forward_phase);
        order_.push_back({ahead, next_backward(backward_phase, op::backward)});
    }

    rank_view at_;
    int beyond_; ///< ranks between this one and the middle
    int forwards_[2] = {0, 0};
    int backwards_[2] = {0, 0};
    program waiting_;
    std::size_t oldest_ = 0;
    program order_;
};

} // namespace copipe
