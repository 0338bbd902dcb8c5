// SPDX-License-Identifier: Apache-2.0
// Reads safetensors files: every byte of a file is accounted for, or the file is refused.
#pragma once

#include "copipe/observe/atomic_file.hpp"
#include "copipe/train/safetensors_entry.hpp"
#include "copipe/train/safetensors_header.hpp"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <fcntl.h>
#include <map>
#include <string>
#include <string_view>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>
#include <vector>

namespace copipe {

/// An open file: its header is read and checked against the file's size, its tensors are read when asked for.
/// Several threads may read at once.
template <class = void> class basic_safetensors_reader {
public:
    /// Throws `file_error` if the file cannot be read, `safetensors_error` if it is damaged or of another format.
    explicit basic_safetensors_reader(std::string path) : path_(std::move(path)), descriptor_(path_) {
        std::uint64_t const size = file_size();
        std::uint64_t length = 0;
        if (size < sizeof length) fail("", "is not a safetensors file: it is shorter than 8 bytes");
        read_all(&length, sizeof length, 0);
        if (length > safetensors_header_limit)
            fail("", "is not a safetensors file: its header would have " + std::to_string(length) + " bytes");
        if (length > size - sizeof length) fail("", "is truncated within its header, or not a safetensors file");
        std::string text(static_cast<std::size_t>(length), '\0');
        read_all(text.data(), text.size(), sizeof length);
        if (!text.starts_with('{')) fail("", "is not a safetensors file: its header does not begin with {");
        header_ = safetensors_header_reader{path_, text}.read();
        data_ = sizeof length + length;
        check(size - data_);
        index_ = index_by_name(path_, header_.entries);
    }

    [[nodiscard]] std::string const& path() const noexcept { return path_; }
    /// In the order of their bytes.
    [[nodiscard]] std::vector<tensor_entry> const& entries() const noexcept { return header_.entries; }
    [[nodiscard]] std::map<std::string, std::string> const& metadata() const noexcept { return header_.metadata; }

    /// Null if the file has no such tensor.
    [[nodiscard]] tensor_entry const* find(std::string_view name) const {
        auto const found = index_.find(name);
        return found == index_.end() ? nullptr : &header_.entries[found->second];
    }
    /// Throws `safetensors_error` if the file has no such tensor.
    [[nodiscard]] tensor_entry const& at(std::string_view name) const {
        tensor_entry const* const found = find(name);
        if (!found) fail(std::string(name), "is missing");
        return *found;
    }

    /// Reads a tensor's bytes, or so many of them from `offset` on, straight to where they are wanted.
    void read(tensor_entry const& from, void* to, std::uint64_t bytes, std::uint64_t offset = 0) const {
        if (offset > from.bytes() || bytes > from.bytes() - offset)
            fail(from.name, "has " + std::to_string(from.bytes()) + " bytes, more were asked for");
        read_all(to, static_cast<std::size_t>(bytes), data_ + from.begin + offset);
    }

private:
    /// Closes the file even if the constructor throws.
    class open_file {
    public:
        explicit open_file(std::string const& path) : number_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
            if (number_ < 0) throw file_error(path, "read", errno);
        }
        open_file(open_file const&) = delete;
        open_file& operator=(open_file const&) = delete;
        ~open_file() { ::close(number_); }
        [[nodiscard]] int number() const noexcept { return number_; }

    private:
        int number_;
    };

    [[noreturn]] void fail(std::string tensor, std::string_view fault) const {
        throw safetensors_error(path_, std::move(tensor), fault);
    }

    [[nodiscard]] std::uint64_t file_size() const {
        struct stat found = {};
        if (::fstat(descriptor_.number(), &found) != 0) throw file_error(path_, "read", errno);
        if (S_ISDIR(found.st_mode)) throw file_error(path_, "read", EISDIR);
        return static_cast<std::uint64_t>(found.st_size);
    }

    void read_all(void* to, std::size_t bytes, std::uint64_t offset) const {
        for (auto at = static_cast<char*>(to), end = at + bytes; at != end;) {
            auto const left = static_cast<std::size_t>(end - at);
            ssize_t const got = ::pread(descriptor_.number(), at, left, static_cast<off_t>(offset));
            if (got < 0 && errno == EINTR) continue;
            if (got < 0) throw file_error(path_, "read", errno);
            if (got == 0) fail("", "became shorter while it was read");
            at += got;
            offset += static_cast<std::uint64_t>(got);
        }
    }

    /// Every byte of the data belongs to exactly one tensor, which has the size that its type and shape say.
    void check(std::uint64_t data_bytes) {
        auto& entries = header_.entries;
        std::sort(entries.begin(), entries.end(), [](tensor_entry const& a, tensor_entry const& b) {
            if (a.begin != b.begin) return a.begin < b.begin;
            return a.end != b.end ? a.end < b.end : a.name < b.name;
        });
        std::uint64_t reached = 0;
        for (tensor_entry const& each : entries) {
            auto const bytes = tensor_bytes(each.dtype, each.shape);
            if (element_bytes(each.dtype) == 0) fail(each.name, "is of type " + each.dtype + ", which is unknown");
            if (each.begin > each.end || !bytes || *bytes != each.bytes())
                fail(each.name, "has a data range that does not fit its type and shape");
            if (each.begin > reached) fail(each.name, "follows bytes that belong to no tensor");
            if (each.begin < reached) fail(each.name, "shares bytes with another tensor");
            if (each.end > data_bytes) fail(each.name, "is truncated: the file ends before it does");
            reached = each.end;
        }
        if (reached < data_bytes)
            fail("", "has " + std::to_string(data_bytes - reached) + " bytes that belong to no tensor at its end");
    }

    std::string path_;
    open_file descriptor_;
    safetensors_header header_{};
    std::map<std::string_view, std::size_t> index_{};
    std::uint64_t data_ = 0; // where the header ends
};

using safetensors_reader = basic_safetensors_reader<>;

} // namespace copipe
