// SPDX-License-Identifier: Apache-2.0
// A file that appears complete or not at all, whatever happens while it is written.
#pragma once

#include "copipe/error.hpp"

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <fcntl.h>
#include <string>
#include <string_view>
#include <sys/stat.h>
#include <system_error>
#include <unistd.h>
#include <utility>

namespace copipe {

/// A file could not be read or written.
class file_error : public error {
public:
    /// `attempt` is "read" or "write"; `code` is errno's value.
    file_error(std::string path, std::string_view attempt, int code)
        : error("cannot " + std::string(attempt) + " " + path + ": " + meaning(code)), file(std::move(path)),
          reason(code, std::generic_category()) {}

    std::string file;
    std::error_code reason;

private:
    [[nodiscard]] static std::string meaning(int code) {
        switch (code) {
        case ENOENT: return "no such file or folder; check the path";
        case ENOTDIR: return "a part of the path is a file where a folder must be";
        case EISDIR: return "it is a folder; name a file in it";
        case EEXIST: return "it is not a regular file; choose another path";
        case ENOSPC:
        case EDQUOT: return "no space is left; free some or choose another disk";
        case EACCES:
        case EPERM:
        case EROFS: return "no permission; choose another path";
        default: return std::generic_category().message(code);
        }
    }
};

/// Writes all bytes at `offset` of an open file; throws `file_error` about `path`. Several threads may write at once.
template <class = void>
void write_all(int descriptor, std::string const& path, void const* from, std::size_t bytes, std::uint64_t offset) {
    for (auto at = static_cast<char const*>(from), end = at + bytes; at != end;) {
        auto const left = static_cast<std::size_t>(end - at);
        ssize_t const written = ::pwrite(descriptor, at, left, static_cast<off_t>(offset));
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) throw file_error(path, "write", written < 0 ? errno : ENOSPC);
        at += written;
        offset += static_cast<std::uint64_t>(written);
    }
}

/// A file under a temporary name in its own folder, until `commit` moves it to its path and so replaces an older one.
/// Destroyed before that, it leaves nothing behind and the older file as it was.
class atomic_file {
public:
    /// Throws `file_error` if the path cannot be written, or names something other than a file.
    template <class = void> explicit atomic_file(std::string path) : path_(std::move(path)), target_(resolved(path_)) {
        for (int attempt = 0; descriptor_ < 0; ++attempt) {
            temporary_ = target_ + ".partial." + std::to_string(::getpid()) + "." + std::to_string(attempt);
            descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
            if (descriptor_ < 0 && errno != EEXIST) throw file_error(path_, "write", errno);
        }
    }
    atomic_file(atomic_file const&) = delete;
    atomic_file& operator=(atomic_file const&) = delete;
    ~atomic_file() {
        if (descriptor_ < 0) return;
        ::close(descriptor_);
        ::unlink(temporary_.c_str());
    }

    [[nodiscard]] std::string const& path() const noexcept { return path_; }

    /// Appends to what was appended before.
    template <class = void> void append(std::string_view text) {
        write_at(text.data(), text.size(), size_);
        size_ += text.size();
    }
    /// Writes anywhere; several threads at once may. Throws `file_error`.
    template <class = void> void write_at(void const* from, std::size_t bytes, std::uint64_t offset) const {
        write_all(descriptor_, path_, from, bytes, offset);
    }

    /// Puts the file on the disk and then in its place. Throws `file_error`; the older file is then as it was.
    template <class = void> void commit() {
        if (::fsync(descriptor_) != 0 || ::rename(temporary_.c_str(), target_.c_str()) != 0)
            throw file_error(path_, "write", errno);
        ::close(std::exchange(descriptor_, -1));
        std::size_t const slash = target_.rfind('/');
        std::string const folder = slash == std::string::npos ? "." : target_.substr(0, slash + 1);
        int const opened = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (opened < 0) return; // a folder that can be written but not read: the move itself has succeeded
        ::fsync(opened);
        ::close(opened);
    }

private:
    /// The path itself, or what it points to if it is a link.
    template <class = void> [[nodiscard]] static std::string resolved(std::string const& path) {
        struct stat found = {};
        if (::stat(path.c_str(), &found) != 0) return path;
        if (S_ISDIR(found.st_mode)) throw file_error(path, "write", EISDIR);
        if (!S_ISREG(found.st_mode)) throw file_error(path, "write", EEXIST);
        if (::access(path.c_str(), W_OK) != 0) throw file_error(path, "write", errno);
        char* const real = ::realpath(path.c_str(), nullptr);
        std::string target = real ? real : path;
        std::free(real);
        return target;
    }

    std::string path_;
    std::string target_;
    std::string temporary_;
    int descriptor_ = -1;
    std::uint64_t size_ = 0;
};

/// Throws `file_error` unless an `atomic_file` can be written there: to find out before hours of work, not after.
template <class = void> void require_writable(std::string const& path) { atomic_file const probe{path}; }

} // namespace copipe
