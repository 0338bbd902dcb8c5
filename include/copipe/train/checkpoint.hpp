// SPDX-License-Identifier: Apache-2.0
// A trainer's checkpoint as a file: what it says besides its tensors, and how a file is checked to be one of the model.
#pragma once

#include "copipe/error.hpp"
#include "copipe/model/tensor.hpp"
#include "copipe/pipeline/gradient_reduction.hpp"
#include "copipe/train/safetensors_reader.hpp"
#include "copipe/train/safetensors_writer.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

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

/// A parameter (state 0) or a part of its optimizer state (from 1), as it lies in checkpoints.
struct stored_tensor {
    std::string name;
    extents sizes;
    parameter_group const* group;
    std::size_t state;
};

/// Writes a checkpoint, which appears whole or not at all: `read` fills in each tensor's values, in order. Where a file
/// has several processes' tensors, one of them `writes` and the others only read. Throws file_error, and
/// checkpoint_error for a parameter that is not finite: with such no training could go on.
template <class = void>
void write_checkpoint(std::string const& file, bool writes, training_position const& where,
                      std::vector<stored_tensor> const& tensors,
                      std::function<void(stored_tensor const&, std::vector<float>&)> const& read) {
    std::optional<safetensors_writer> writer;
    if (writes) {
        std::vector<tensor_entry> entries;
        for (stored_tensor const& each : tensors)
            entries.push_back({.name = each.name,
                               .dtype = std::string(name_of(dtype::f32)),
                               .shape = {each.sizes.begin(), each.sizes.end()}});
        writer.emplace(file, std::move(entries), where.metadata());
    }
    std::vector<float> values;
    for (stored_tensor const& each : tensors) {
        read(each, values);
        if (!writer) continue;
        if (each.state == 0 && !std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); }))
            throw checkpoint_error(file, "stays as it was: after step " + std::to_string(where.step) + " " + each.name +
                                             " is not finite; go on from an earlier checkpoint at a lower learning "
                                             "rate");
        writer->write(each.name, values.data(), values.size() * sizeof(float));
    }
    if (writer) writer->commit();
}

/// Reads a checkpoint of exactly these tensors: `write` is told each one's values once all have been found to fit.
/// Throws file_error, safetensors_error or checkpoint_error.
template <class = void>
[[nodiscard]] auto read_checkpoint(std::string const& file, std::vector<stored_tensor> const& tensors,
                                   std::function<void(stored_tensor const&, std::vector<float> const&)> const& write)
    -> training_position {
    safetensors_reader const reader{file};
    training_position const where = training_position::in(reader);
    for (stored_tensor const& each : tensors) static_cast<void>(require_tensor(reader, each.name, each.sizes));
    if (tensors.size() != reader.entries().size())
        throw checkpoint_error(file, "has " + std::to_string(reader.entries().size()) + " tensors, the model " +
                                         std::to_string(tensors.size()) + ": it belongs to another model");
    std::vector<float> values;
    for (stored_tensor const& each : tensors) {
        values.resize(static_cast<std::size_t>(each.sizes.count()));
        reader.read(reader.at(each.name), values.data(), values.size() * sizeof(float));
        write(each, values);
    }
    return where;
}

} // namespace copipe
