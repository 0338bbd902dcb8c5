// SPDX-License-Identifier: Apache-2.0
// Writes safetensors files, whole or not at all.
#pragma once

#include "copipe/observe/atomic_file.hpp"
#include "copipe/observe/json_text.hpp"
#include "copipe/train/safetensors_entry.hpp"
#include "copipe/train/utf8.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace copipe {

/// A file of known tensors, whose bytes come in any order and from any thread. It appears under its name, whole, when
/// it is committed; destroyed before that, it leaves no trace.
template <class = void> class basic_safetensors_writer {
public:
    /// Takes name, type and shape of each tensor and lays them out: larger types first, so that each is aligned, then
    /// by name. Throws `file_error` if the path cannot be written, `safetensors_error` if the format cannot express the
    /// entries.
    basic_safetensors_writer(std::string const& path, std::vector<tensor_entry> entries,
                       std::map<std::string, std::string> const& metadata = {})
        : entries_(laid_out(path, std::move(entries))), index_(index_by_name(path, entries_)),
          written_(entries_.size(), 0), file_(path) {
        std::string const text = header_text(metadata);
        std::uint64_t const length = text.size();
        if (length > safetensors_header_limit) fail("", "would have a header larger than the format allows");
        file_.write_at(&length, sizeof length, 0);
        file_.write_at(text.data(), text.size(), sizeof length);
        data_ = sizeof length + length;
    }

    /// In the order of their bytes.
    [[nodiscard]] std::vector<tensor_entry> const& entries() const noexcept { return entries_; }

    /// Writes all bytes of a tensor, once. Several threads may write different tensors at once.
    void write(std::string_view name, void const* from, std::size_t bytes) {
        auto const found = index_.find(name);
        if (found == index_.end()) fail(std::string(name), "is not among those that the file was to hold");
        tensor_entry const& entry = entries_[found->second];
        if (bytes != entry.bytes())
            fail(entry.name, "has " + std::to_string(entry.bytes()) + " bytes, not " + std::to_string(bytes));
        if (std::exchange(written_[found->second], char{1})) fail(entry.name, "is written twice");
        file_.write_at(from, bytes, data_ + entry.begin);
    }

    /// Throws `safetensors_error` if a tensor has not been written, `file_error` if the disk refuses.
    void commit() {
        for (std::size_t i = 0; i < entries_.size(); ++i)
            if (!written_[i] && entries_[i].bytes() != 0) fail(entries_[i].name, "has not been written");
        file_.commit();
    }

private:
    [[noreturn]] void fail(std::string tensor, std::string_view fault) const {
        throw safetensors_error(file_.path(), std::move(tensor), fault);
    }

    static std::vector<tensor_entry> laid_out(std::string const& path, std::vector<tensor_entry> entries) {
        std::sort(entries.begin(), entries.end(), [](tensor_entry const& a, tensor_entry const& b) {
            auto const size_a = element_bytes(a.dtype), size_b = element_bytes(b.dtype);
            return size_a != size_b ? size_a > size_b : a.name < b.name;
        });
        std::uint64_t at = 0;
        for (tensor_entry& each : entries) {
            auto const bytes = tensor_bytes(each.dtype, each.shape);
            if (!bytes) throw safetensors_error(path, each.name, "is too large or of unknown type " + each.dtype);
            if (each.name == "__metadata__" || !is_utf8(each.name))
                throw safetensors_error(path, each.name, "has a name that the format does not allow");
            each.begin = at;
            each.end = at += *bytes;
        }
        return entries;
    }

    [[nodiscard]] std::string header_text(std::map<std::string, std::string> const& metadata) const {
        std::string text = "{\"__metadata__\":{";
        for (auto const& [key, value] : metadata) {
            if (!is_utf8(key) || !is_utf8(value)) fail("", "cannot hold metadata " + key + ", which is not UTF-8");
            if (text.back() != '{') text += ',';
            append_json(text, key);
            append_json(text += ':', value);
        }
        text += '}';
        for (tensor_entry const& each : entries_) {
            append_json(text += ',', each.name);
            append_json(text += ":{\"dtype\":", each.dtype);
            text += ",\"shape\":[";
            for (std::size_t i = 0; i < each.shape.size(); ++i) text += (i ? "," : "") + std::to_string(each.shape[i]);
            text += "],\"data_offsets\":[" + std::to_string(each.begin) + "," + std::to_string(each.end) + "]}";
        }
        text += '}';
        text.resize((text.size() + 7) / 8 * 8, ' ');
        return text;
    }

    std::vector<tensor_entry> entries_;
    std::map<std::string_view, std::size_t> index_;
    std::vector<char> written_;
    atomic_file file_;
    std::uint64_t data_ = 0; // where the header ends
};

using safetensors_writer = basic_safetensors_writer<>;

} // namespace copipe
