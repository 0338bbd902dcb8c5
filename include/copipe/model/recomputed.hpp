// SPDX-License-Identifier: Apache-2.0
// Gradient checkpointing of one layer: it keeps its input instead of its activations, and runs forward again before its
// backward. Chen, Xu, Zhang, Guestrin, "Training deep nets with sublinear memory cost", 2016.
#pragma once

#include "copipe/async/task.hpp"
#include "copipe/model/tensor.hpp"

#include <type_traits>
#include <utility>

namespace copipe {

/// A layer around a layer: the same numbers to the bit, one forward more, and between forward and backward no more
/// memory than the input (and, of a loss layer, the target).
template <class L>
struct recomputed {
    struct saved {
        tensor x{};
        tensor target{};
        typename L::saved inner{};
    };
    L layer;

    explicit recomputed(L prototype) : layer(std::move(prototype)) {}

    auto parameters()
        requires requires(L& l) { l.parameters(); }
    {
        return layer.parameters();
    }

    template <class Context>
    auto forward(Context& c, tensor x, saved& s) -> task<tensor> {
        s.x = x;
        s.target = c.target;
        tensor y = co_await run_forward(c, std::move(x), s);
        s.inner = {};
        co_return y;
    }

    template <class Context>
    auto backward_input(Context& c, tensor dy, saved& s) -> task<tensor> {
        Context again = c;
        again.target = std::move(s.target);
        tensor const discarded = co_await run_forward(again, std::move(s.x), s);
        if constexpr (std::is_same_v<decltype(layer.backward_input(c, dy, s.inner)), tensor>) {
            co_return layer.backward_input(c, std::move(dy), s.inner);
        } else {
            co_return co_await layer.backward_input(c, std::move(dy), s.inner);
        }
    }

    template <class Context>
    auto backward_weight(Context& c, saved& s)
        requires requires(L& l) { l.backward_weight(c, s.inner); }
    {
        return layer.backward_weight(c, s.inner);
    }

private:
    template <class Context>
    auto run_forward(Context& c, tensor x, saved& s) -> task<tensor> {
        if constexpr (std::is_same_v<decltype(layer.forward(c, x, s.inner)), tensor>) {
            co_return layer.forward(c, std::move(x), s.inner);
        } else {
            co_return co_await layer.forward(c, std::move(x), s.inner);
        }
    }
};

} // namespace copipe
