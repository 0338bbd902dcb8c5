// SPDX-License-Identifier: Apache-2.0
// What a safetensors file (https://github.com/huggingface/safetensors) says of a tensor.
#pragma once

#include "copipe/error.hpp"

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace copipe {

/// A file is not a safetensors file, or a damaged one, or does not hold what was asked for.
class safetensors_error : public error {
public:
    /// `tensor` is empty where the fault is not about one.
    safetensors_error(std::string path, std::string about, std::string_view fault)
        : error(path + ": " + (about.empty() ? "" : "tensor " + about + " ") + std::string(fault)),
          file(std::move(path)), tensor(std::move(about)) {}

    std::string file;
    std::string tensor;
};

/// A header of more bytes is refused, as by other readers of the format.
inline constexpr std::uint64_t safetensors_header_limit = 100'000'000;

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian: so must we be");

/// One tensor of a file: dense, row-major, little-endian.
struct tensor_entry {
    std::string name;
    std::string dtype; ///< as the format writes it: "F32", "BF16", "I64"
    std::vector<std::uint64_t> shape{};
    std::uint64_t begin = 0; ///< of its bytes, counted from the end of the header
    std::uint64_t end = 0;

    [[nodiscard]] std::uint64_t bytes() const noexcept { return end - begin; }
    friend bool operator==(tensor_entry const&, tensor_entry const&) = default;
};

/// Bytes of one element; 0 for a type that is unknown or not of whole bytes.
[[nodiscard]] constexpr std::uint64_t element_bytes(std::string_view dtype) noexcept {
    struct known {
        std::string_view name;
        std::uint64_t bytes;
    };
    constexpr std::array types{known{"F64", 8},     known{"I64", 8},     known{"U64", 8},     known{"C64", 8},
                               known{"F32", 4},     known{"I32", 4},     known{"U32", 4},     known{"F16", 2},
                               known{"BF16", 2},    known{"I16", 2},     known{"U16", 2},     known{"I8", 1},
                               known{"U8", 1},      known{"BOOL", 1},    known{"F8_E4M3", 1}, known{"F8_E5M2", 1},
                               known{"F8_E8M0", 1}};
    for (known const& each : types)
        if (each.name == dtype) return each.bytes;
    return 0;
}

/// Bytes of a tensor; nothing if its type is unknown or the number too large.
[[nodiscard]] constexpr std::optional<std::uint64_t> tensor_bytes(std::string_view dtype,
                                                                  std::vector<std::uint64_t> const& shape) noexcept {
    std::uint64_t bytes = element_bytes(dtype);
    if (bytes == 0) return std::nullopt;
    for (std::uint64_t const size : shape) {
        if (size != 0 && bytes > std::numeric_limits<std::uint64_t>::max() / size) return std::nullopt;
        bytes *= size;
    }
    return bytes;
}

/// The entries in the order of their names.
template <class = void> [[nodiscard]] std::map<std::string_view, std::size_t> index_by_name(std::string const& file,
                                                                           std::vector<tensor_entry> const& entries) {
    std::map<std::string_view, std::size_t> found;
    for (std::size_t i = 0; i < entries.size(); ++i)
        if (!found.emplace(entries[i].name, i).second) throw safetensors_error(file, entries[i].name, "occurs twice");
    return found;
}

} // namespace copipe
