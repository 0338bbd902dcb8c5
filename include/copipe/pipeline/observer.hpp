// SPDX-License-Identifier: Apache-2.0
// How the engine tells what it measured, without knowing who listens.
#pragma once

#include "copipe/schedule/span.hpp"

#include <concepts>

namespace copipe {

/// Whoever wants to know what each rank did and waited for.
///
/// `o.record(span)` is called once per finished span, on the thread of the rank it names, by several ranks at once; it
/// must be quick and must not throw. A rank's chunks, waits and sends come in order of time, a receive together with
/// the chunk that needed it. Seconds are those of the device's clock.
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
          record_([](void* self, span const& measured) noexcept { static_cast<O*>(self)->record(measured); }) {}

    [[nodiscard]] explicit operator bool() const noexcept { return listener_ != nullptr; }
    void record(span const& measured) const noexcept {
        if (listener_) record_(listener_, measured);
    }

private:
    void* listener_ = nullptr;
    void (*record_)(void*, span const&) noexcept = nullptr;
};

} // namespace copipe
