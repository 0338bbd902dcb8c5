// SPDX-License-Identifier: Apache-2.0
// A vector whose index is the number of a layer, stage, rank or expert: this room counts in int.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <utility>
#include <vector>

namespace copipe {

/// A std::vector, to and from which it converts, that also takes an int as its index and counts in int.
template <class T>
class row : public std::vector<T> {
public:
    using std::vector<T>::vector;
    row(std::vector<T> values) : std::vector<T>(std::move(values)) {}
    explicit row(int size, T const& value = T{}) : std::vector<T>(static_cast<std::size_t>(size), value) {}

    [[nodiscard]] T& operator[](std::integral auto at) noexcept { return this->data()[at]; }
    [[nodiscard]] T const& operator[](std::integral auto at) const noexcept { return this->data()[at]; }
    [[nodiscard]] T max() const { return *std::max_element(this->begin(), this->end()); }
    [[nodiscard]] int count() const noexcept { return static_cast<int>(this->size()); }
};

} // namespace copipe
