// SPDX-License-Identifier: Apache-2.0
// Where micro-batches come from: what the pipeline asks of a dataset.
#pragma once

#include "copipe/error.hpp"
#include "copipe/model/tensor.hpp"

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace copipe {

/// A dataset that no step can be made from: it has no micro-batches, or those of a step count for nothing.
class dataset_error : public error {
public:
    using error::error;
};

/// An array in host memory that keeps its capacity when it is filled again. Until then it has no elements.
class host_array {
public:
    /// Gives the array a new shape and returns its elements, unchanged or undefined, for filling.
    template <class T>
    auto resize(extents const& sizes, dtype type) -> T* {
        sizes_ = sizes;
        type_ = type;
        storage_.resize((bytes() + sizeof(std::uint64_t) - 1) / sizeof(std::uint64_t));
        return data<T>();
    }
    template <class T>
    [[nodiscard]] auto data() noexcept -> T* {
        return reinterpret_cast<T*>(storage_.data());
    }
    [[nodiscard]] auto data() const noexcept -> void const* { return storage_.data(); }
    [[nodiscard]] auto sizes() const noexcept -> extents const& { return sizes_; }
    [[nodiscard]] auto type() const noexcept -> dtype { return type_; }
    [[nodiscard]] auto bytes() const noexcept -> std::size_t {
        return static_cast<std::size_t>(sizes_.count()) * bytes_of(type_);
    }

private:
    extents sizes_{0};
    dtype type_ = dtype::f32;
    std::vector<std::uint64_t> storage_{};
};

/// A source of numbered micro-batches.
///
/// - `data.size()`: micro-batches in one epoch, at least 1.
/// - `data.load(index, input, target)`: fills both arrays with micro-batch `index`, which counts on from 0 over all
///   epochs (epoch index / size()). The same index always gives the same numbers; shapes may differ from one index to
///   the next. Called by several ranks' threads at once: the first stage wants the input, the last one the target. A
///   dataset without targets leaves the second array alone.
/// - optional `data.weight(index)`: what the micro-batch counts for in the step's mean loss, for instance its number of
///   targets; 1 if left out. A step's loss is the weighted mean of its micro-batches' losses, as in a trainer without a
///   pipeline.
template <class D>
concept dataset = requires(D const& data, std::uint64_t index, host_array& input, host_array& target) {
    { data.size() } -> std::convertible_to<std::uint64_t>;
    data.load(index, input, target);
};

/// A dataset of any type, by reference: what the engine reads from.
class dataset_ref {
public:
    template <dataset D>
    explicit dataset_ref(D const& data)
        : data_(&data),
          load_([](void const* self, std::uint64_t index, host_array& input, host_array& target) {
              static_cast<D const*>(self)->load(index, input, target);
          }),
          weight_([]([[maybe_unused]] void const* self, [[maybe_unused]] std::uint64_t index) -> double {
              if constexpr (requires(D const& d) { d.weight(index); })
                  return static_cast<D const*>(self)->weight(index);
              else
                  return 1.0;
          }) {}

    void load(std::uint64_t index, host_array& input, host_array& target) const { load_(data_, index, input, target); }
    [[nodiscard]] auto weight(std::uint64_t index) const -> double { return weight_(data_, index); }

private:
    void const* data_;
    void (*load_)(void const*, std::uint64_t, host_array&, host_array&);
    double (*weight_)(void const*, std::uint64_t);
};

/// Micro-batches first to first+count-1 of a dataset: one step's worth.
struct batch {
    dataset_ref data;
    std::uint64_t first = 0;
};

/// What each of a step's micro-batches counts for in its mean loss: they add up to 1. Throws dataset_error if there is
/// nothing to learn from.
template <class = void> void weigh(batch const& from, std::vector<double>& weights) {
    double total = 0;
    for (std::size_t m = 0; m < weights.size(); ++m) total += weights[m] = from.data.weight(from.first + m);
    if (!(total > 0)) {
        throw dataset_error("the dataset's weights of micro-batches " + std::to_string(from.first) + " to " +
                            std::to_string(from.first + weights.size() - 1) + " add up to " + std::to_string(total) +
                            "; a step needs something to learn from");
    }
    for (double& each : weights) each /= total;
}

} // namespace copipe
