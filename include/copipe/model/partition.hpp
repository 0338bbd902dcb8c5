// SPDX-License-Identifier: Apache-2.0
// Which layers form which stage of the model.
#pragma once

#include "copipe/error.hpp"

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace copipe {

/// A partition would leave a stage empty, or lose or repeat a layer.
class partition_error : public error {
public:
    using error::error;
};

/// A contiguous partition of layers 0..n-1 into model stages: stage s holds layers first(s) to last(s)-1, at least one.
class partition {
public:
    /// As even as possible, the larger stages first. Throws partition_error if there are fewer layers than stages.
    template <class = void> [[nodiscard]] static auto even(int layers, int stages) -> partition {
        if (stages < 1 || layers < stages) {
            throw partition_error("cannot cut " + std::to_string(layers) + " layers into " + std::to_string(stages) +
                                  " stages: every stage needs a layer; use more layers or fewer ranks");
        }
        std::vector<int> bounds{0};
        for (int s = 0; s < stages; ++s)
            bounds.push_back(bounds.back() + layers / stages + (s < layers % stages ? 1 : 0));
        return partition{std::move(bounds)};
    }

    /// From bounds 0 = b[0] < b[1] < ... < b[stages] = layers. Throws partition_error naming the first wrong bound.
    template <class = void> [[nodiscard]] static auto given(std::vector<int> bounds, int layers) -> partition {
        if (bounds.size() < 2 || bounds.front() != 0) throw partition_error("a partition's bounds begin with layer 0");
        for (std::size_t s = 1; s < bounds.size(); ++s) {
            if (bounds[s] <= bounds[s - 1]) {
                throw partition_error("stage " + std::to_string(s - 1) + " would be empty: bounds " +
                                      std::to_string(bounds[s - 1]) + " and " + std::to_string(bounds[s]));
            }
        }
        if (bounds.back() != layers) {
            throw partition_error("the partition ends at layer " + std::to_string(bounds.back()) +
                                  " but the model has " + std::to_string(layers) + " layers");
        }
        return partition{std::move(bounds)};
    }

    [[nodiscard]] auto stages() const noexcept -> int { return static_cast<int>(bounds_.size()) - 1; }
    [[nodiscard]] auto layers() const noexcept -> int { return bounds_.back(); }
    [[nodiscard]] auto first(int stage) const -> int { return bounds_.at(static_cast<std::size_t>(stage)); }
    [[nodiscard]] auto last(int stage) const -> int { return bounds_.at(static_cast<std::size_t>(stage) + 1); }
    [[nodiscard]] auto bounds() const noexcept -> std::vector<int> const& { return bounds_; }
    [[nodiscard]] auto operator==(partition const&) const -> bool = default;

private:
    explicit partition(std::vector<int> bounds) : bounds_(std::move(bounds)) {}
    std::vector<int> bounds_;
};

} // namespace copipe
