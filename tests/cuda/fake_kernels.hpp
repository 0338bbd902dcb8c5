// SPDX-License-Identifier: Apache-2.0
// What copipe's kernels in PTX do, for the fake CUDA runtime: the arguments are read as the launch does, by their
// declared types.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

namespace fake {

template <class T>
[[nodiscard]] auto argument(void** arguments, std::size_t index) -> T {
    return *static_cast<T*>(arguments[index]);
}

/// The kernel of that name, its arguments bound.
[[nodiscard]] inline auto kernel(std::string const& name, unsigned blocks, void** arguments) -> std::function<void()> {
    static_cast<void>(blocks);
    if (name == "copipe_add") {
        auto* const sum = argument<float*>(arguments, 0);
        auto const* const addend = argument<float const*>(arguments, 1);
        auto const count = argument<std::uint64_t>(arguments, 2);
        return [=] {
            for (std::uint64_t i = 0; i < count; ++i) sum[i] += addend[i];
        };
    }
    throw std::logic_error("the fake CUDA runtime does not know the kernel " + name);
}

} // namespace fake
