// SPDX-License-Identifier: Apache-2.0
// How the engine tells what it measured, without knowing who listens.
#pragma once

#include "copipe/schedule/span.hpp"

#include <concepts>
#include <cstdint>

namespace copipe {

/// A layer's pass over one micro-batch took from `start` to `end`. `what` is its stage, its micro-batch and forward,
/// backward_input or backward_weight; a full backward is told as the last two.
struct layer_span {
    double start = 0;
    double end = 0;
    chunk what;
    std::int32_t rank = 0;
    std::int32_t layer = 0; ///< its number in the model

    [[nodiscard]] constexpr auto seconds() const noexcept -> double { return end - start; }
};

/// Whoever wants to know what each rank did and waited for.
///
/// `o.record(span)` is called once per finished span, on the thread of the rank it names, by several ranks at once; it
/// must be quick and must not throw. A rank's chunks, waits and sends come in order of time, a receive together with
/// the chunk that needed it. Seconds are those of the device's clock.
///
/// An observer that also has `o.record(layer_span)`, as quick and as quiet, is told of each layer on steps that run
/// with layer timing; not of overlapped chunks whose layers took turns, as their times cannot be told apart.
template <class O>
concept observer = requires(O& o, span const& measured) {
    { o.record(measured) } noexcept;
};

/// An observer of any type, by reference; or none.
class observer_ref {
public:
    observer_ref() = default;
    template <observer O>
        requires(!std::same_as<O, observer_ref>)
    explicit observer_ref(O& listener)
        : listener_(&listener),
          record_([](void* self, span const& measured) noexcept { static_cast<O*>(self)->record(measured); }) {
        if constexpr (requires(layer_span const& measured) { listener.record(measured); }) {
            record_layer_ = [](void* self, layer_span const& measured) noexcept {
                static_cast<O*>(self)->record(measured);
            };
        }
    }

    [[nodiscard]] explicit operator bool() const noexcept { return listener_ != nullptr; }
    [[nodiscard]] auto wants_layers() const noexcept -> bool { return record_layer_ != nullptr; }
    void record(span const& measured) const noexcept {
        if (listener_) record_(listener_, measured);
    }
    void record(layer_span const& measured) const noexcept {
        if (record_layer_) record_layer_(listener_, measured);
    }

private:
    void* listener_ = nullptr;
    void (*record_)(void*, span const&) noexcept = nullptr;
    void (*record_layer_)(void*, layer_span const&) noexcept = nullptr;
};

} // namespace copipe
