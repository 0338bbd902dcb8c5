// SPDX-License-Identifier: Apache-2.0
// What copipe asks of a layer, and its type-erased form. Forward, input gradient and weight gradient are separate,
// because zero-bubble schedules run them at different times.
#pragma once

#include "copipe/async/task.hpp"
#include "copipe/device/device.hpp"
#include "copipe/model/parameter.hpp"
#include "copipe/model/tensor.hpp"

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

namespace copipe {

/// What a layer is given for one chunk: the rank's compute stream to enqueue on, and what it is working on.
template <device Device>
struct context {
    /// What `follow` returns.
    struct following {
        typename Device::stream* stream;
        typename Device::event const* event;
        [[nodiscard]] static constexpr auto await_ready() noexcept -> bool { return false; }
        [[nodiscard]] static auto await_suspend(std::coroutine_handle<> self, environment const* env) noexcept {
            return let_partner_run::await_suspend(self, env);
        }
        void await_resume() const { stream->wait(*event); }
    };

    typename Device::stream& stream; ///< the rank's compute stream
    std::int64_t micro_batch = 0;    ///< number of the micro-batch within the step, over both directions
    bool training = true;            ///< false in evaluation: no backward will follow
    tensor target{};                 ///< in the last stage's forward only: what the dataset gave as target
    float scale = 1;                 ///< last stage only: this micro-batch's share of the step's loss
    int rank = 0;                    ///< whose pipeline this is
    std::uint64_t run = 0;           ///< counts steps and evaluations: no parameter changes within one; 0: unknown
    int layer = -1;                  ///< number of the layer at work, in the model
    std::vector<typename Device::event>* marks = nullptr; ///< the engine's: where to note when each layer ended

    /// Memory for this chunk, on the compute stream; its contents are undefined.
    [[nodiscard]] auto make(extents const& sizes, dtype type = dtype::f32) const -> tensor {
        return tensor{*stream.memory(), sizes, type};
    }
    /// The stream-ordered await: later work of this chunk runs after `e`; inside an overlapped pair the partner chunk
    /// goes first.
    [[nodiscard]] auto follow(typename Device::event const& e) const -> following { return {&stream, &e}; }
    /// Notes the moment between two layers, if somebody measures them.
    void mark() const {
        if (marks) marks->push_back(stream.record(timing::on));
    }
};

template <class R, class T>
concept now_or_later = std::same_as<R, T> || std::same_as<R, task<T>>;

/// A layer of a model.
///
///     struct layer {
///         struct saved { copipe::tensor x, dy; };                 // what a micro-batch keeps from F to B or W
///         auto parameters() -> std::array<copipe::parameter*, 2>; // may be left out if there are none
///         auto forward(context& c, tensor x, saved& s) -> tensor;         // returns y
///         auto backward_input(context& c, tensor dy, saved& s) -> tensor; // returns dx; the first layer may return {}
///         void backward_weight(context& c, saved& s);             // adds to the gradients; left out with parameters
///     };
///
/// Each of the three may instead be a coroutine (`task<tensor>`, `task<>`) that awaits, for instance, its own
/// communication. All enqueue their work on `c.stream` and return without waiting for it. `backward_input` may run long
/// before `backward_weight`: it saves what the latter needs. The first layer of a model gets the dataset's input; the
/// last one returns the loss of the micro-batch, one float, reads `c.target`, and starts the backward (its `dy` is
/// empty) scaled by `c.scale`. `saved` is default-constructed, and reset after `backward_weight`, or after `forward` in
/// evaluation. Copying a layer copies its declaration: what is to move with it and to be saved is a parameter. A rank's
/// layers are used by its thread only. Placement must not show in the numbers.
template <class L, class D>
concept layer = device<D> && std::copy_constructible<L> && std::default_initializable<typename L::saved> &&
                requires(L& l, context<D>& c, tensor x, typename L::saved& s) {
                    { l.forward(c, x, s) } -> now_or_later<tensor>;
                    { l.backward_input(c, x, s) } -> now_or_later<tensor>;
                } && (!requires(L& l) { l.parameters(); } || requires(L& l, context<D>& c, typename L::saved& s) {
                    { l.backward_weight(c, s) } -> now_or_later<void>;
                });

/// A layer of any type, placed on a rank: the layer itself and what its micro-batches in flight have saved.
template <device Device>
class any_layer {
public:
    template <class L>
        requires(!std::same_as<L, any_layer>) && layer<L, Device>
    explicit any_layer(L prototype) : self_(std::make_unique<model<L>>(std::move(prototype))) {}

    [[nodiscard]] auto parameters() const noexcept -> std::vector<parameter*> const& { return self_->parameters; }
    /// Makes room for micro-batches 0 to n-1.
    void reserve(std::size_t micro_batches) { self_->reserve(micro_batches); }
    /// Whether the layer keeps only its input from forward to backward, and runs forward again before that: the same
    /// numbers to the bit. Between steps. Chen, Xu, Zhang, Guestrin, "Training deep nets with sublinear memory cost",
    /// 2016.
    void recompute(bool yes) { self_->recompute(yes); }
    [[nodiscard]] auto forward(context<Device>& c, std::size_t slot, tensor x) -> result_or_task<tensor> {
        return self_->forward(c, slot, std::move(x));
    }
    [[nodiscard]] auto backward_input(context<Device>& c, std::size_t slot, tensor dy) -> result_or_task<tensor> {
        return self_->backward_input(c, slot, std::move(dy));
    }
    [[nodiscard]] auto backward_weight(context<Device>& c, std::size_t slot) -> result_or_task<> {
        return self_->backward_weight(c, slot);
    }
    /// Drops what micro-batch `slot` has saved.
    void drop(std::size_t slot) noexcept { self_->drop(slot); }

private:
    struct interface {
        std::vector<parameter*> parameters{};
        virtual ~interface() = default;
        virtual void reserve(std::size_t micro_batches) = 0;
        virtual void recompute(bool yes) = 0;
        virtual auto forward(context<Device>&, std::size_t slot, tensor x) -> result_or_task<tensor> = 0;
        virtual auto backward_input(context<Device>&, std::size_t slot, tensor dy) -> result_or_task<tensor> = 0;
        virtual auto backward_weight(context<Device>&, std::size_t slot) -> result_or_task<> = 0;
        virtual void drop(std::size_t slot) noexcept = 0;
    };

    template <class L>
    struct model final : interface {
        struct beginning {
            tensor x{}, target{};
        };
        L self;
        std::vector<typename L::saved> slots{};
        std::vector<beginning> kept{}; ///< by slot, to run forward again from; none where nothing is recomputed

        explicit model(L prototype) : self(std::move(prototype)) {
            if constexpr (requires { self.parameters(); }) {
                for (parameter* each : self.parameters()) this->parameters.push_back(each);
            }
        }
        void reserve(std::size_t micro_batches) override { slots.resize(micro_batches); }
        void recompute(bool yes) override {
            kept.clear();
            if (yes) kept.resize(slots.size());
        }
        auto forward(context<Device>& c, std::size_t slot, tensor x) -> result_or_task<tensor> override {
            if (!kept.empty()) return forward_for_input(c, slot, std::move(x));
            return self.forward(c, std::move(x), slots[slot]);
        }
        auto forward_for_input(context<Device>& c, std::size_t slot, tensor x) -> task<tensor> {
            kept[slot] = {x, c.target};
            result_or_task<tensor> pending{self.forward(c, std::move(x), slots[slot])};
            tensor y = co_await pending;
            slots[slot] = {};
            co_return y;
        }
        auto backward_input(context<Device>& c, std::size_t slot, tensor dy) -> result_or_task<tensor> override {
            if (!kept.empty()) return forward_and_backward(c, slot, std::move(dy));
            return self.backward_input(c, std::move(dy), slots[slot]);
        }
        auto forward_and_backward(context<Device>& c, std::size_t slot, tensor dy) -> task<tensor> {
            context<Device> again = c;
            again.target = std::move(kept[slot].target);
            result_or_task<tensor> pending{self.forward(again, std::move(kept[slot].x), slots[slot])};
            tensor const discarded = co_await pending;
            result_or_task<tensor> dx{self.backward_input(c, std::move(dy), slots[slot])};
            co_return co_await dx;
        }
        auto backward_weight([[maybe_unused]] context<Device>& c, [[maybe_unused]] std::size_t slot)
            -> result_or_task<> override {
            if constexpr (requires { { self.backward_weight(c, slots[slot]) } -> std::same_as<task<>>; }) {
                return self.backward_weight(c, slots[slot]);
            } else if constexpr (requires { self.backward_weight(c, slots[slot]); }) {
                self.backward_weight(c, slots[slot]);
            }
            return {};
        }
        void drop(std::size_t slot) noexcept override {
            slots[slot] = {};
            if (!kept.empty()) kept[slot] = {};
        }
    };

    std::unique_ptr<interface> self_;
};

/// How a model is written down: layers by value, in order, copied to whichever ranks hold them. Building it allocates
/// no parameters.
template <device Device>
class model {
public:
    /// Appends a layer; returns the model, so that calls chain.
    template <layer<Device> L>
    auto add(L prototype) -> model& {
        layers_.push_back([prototype = std::move(prototype)] { return any_layer<Device>{prototype}; });
        recomputed_.push_back(false);
        return *this;
    }
    /// Whether layer `index` keeps only its input from forward to backward, and computes the rest again.
    auto recompute(std::size_t index, bool yes = true) -> model& {
        recomputed_.at(index) = yes;
        return *this;
    }
    [[nodiscard]] auto is_recomputed(std::size_t index) const -> bool { return recomputed_.at(index); }
    [[nodiscard]] auto size() const noexcept -> std::size_t { return layers_.size(); }
    /// Layer `index` without memory for anything; see place_layer.
    [[nodiscard]] auto make(std::size_t index) const -> any_layer<Device> { return layers_.at(index)(); }

private:
    std::vector<std::function<any_layer<Device>()>> layers_{};
    std::vector<bool> recomputed_{};
};

} // namespace copipe
