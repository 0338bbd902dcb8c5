// SPDX-License-Identifier: Apache-2.0
// What a checkpoint says besides its tensors, and how a trainer checks that a file is one of its own model.
#pragma once

#include "copipe/error.hpp"
#include "copipe/model/tensor.hpp"
#include "copipe/train/safetensors_reader.hpp"

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <system_error>

namespace copipe {

/// A safetensors file is sound, but not a checkpoint of this model.
class checkpoint_error : public error {
public:
    checkpoint_error(std::string const& in_file, std::string const& why) : error(in_file + ": " + why), file(in_file) {}
    std::string file;
};

/// Where training stands: steps trained and micro-batches of the dataset consumed. In a file, the metadata
/// `copipe.step`, `copipe.position` and `copipe.format` = 1.
struct training_position {
    std::uint64_t step = 0;
    std::uint64_t position = 0;

    template <class = void> [[nodiscard]] auto metadata() const -> std::map<std::string, std::string> {
        return {{"copipe.format", "1"},
                {"copipe.step", std::to_string(step)},
                {"copipe.position", std::to_string(position)}};
    }

    /// Throws checkpoint_error if copipe did not write the file.
    template <class = void> [[nodiscard]] static auto in(safetensors_reader const& file) -> training_position {
        auto const number = [&](char const* key) {
            auto const found = file.metadata().find(key);
            std::string const text = found == file.metadata().end() ? "" : found->second;
            std::uint64_t value = 0;
            auto const [end, failed] = std::from_chars(text.data(), text.data() + text.size(), value);
            if (failed != std::errc{} || end != text.data() + text.size()) {
                throw checkpoint_error(
                    file.path(),
                    std::string("is a safetensors file but not a checkpoint of copipe: its metadata has no ") + key);
            }
            return value;
        };
        if (std::uint64_t const format = number("copipe.format"); format != 1) {
            throw checkpoint_error(file.path(), "was written by a newer copipe (format " + std::to_string(format) +
                                                    ", this one reads 1)");
        }
        return {.step = number("copipe.step"), .position = number("copipe.position")};
    }
};

/// The tensor's entry; throws checkpoint_error unless it is there as 32-bit floats of these sizes.
template <class = void>
[[nodiscard]] auto require_tensor(safetensors_reader const& file, std::string const& name, extents const& sizes)
    -> tensor_entry const& {
    tensor_entry const* const found = file.find(name);
    if (!found) throw checkpoint_error(file.path(), "has no tensor " + name + ": it belongs to another model");
    bool same = found->dtype == name_of(dtype::f32) && found->shape.size() == sizes.rank();
    for (std::size_t i = 0; same && i < sizes.rank(); ++i)
        same = found->shape[i] == static_cast<std::uint64_t>(sizes[i]);
    if (same) return *found;
    std::string shape = "[";
    for (auto const size : found->shape) shape += (shape.size() > 1 ? ", " : "") + std::to_string(size);
    throw checkpoint_error(file.path(), "tensor " + name + " is " + found->dtype + " " + shape +
                                            "], the model has F32 " + to_string(sizes) +
                                            ": it belongs to a model of another size");
}

} // namespace copipe
