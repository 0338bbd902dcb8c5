// SPDX-License-Identifier: Apache-2.0
// A training log that programs read: one line of JSON per step.
#pragma once

#include "copipe/observe/atomic_file.hpp"
#include "copipe/observe/json_text.hpp"

#include <cerrno>
#include <cstdint>
#include <fcntl.h>
#include <string>
#include <string_view>
#include <sys/stat.h>
#include <unistd.h>
#include <utility>
#include <vector>

namespace copipe {

/// What a line of the log says; the names of the fields are the members'.
struct step_record {
    std::int64_t step = 0; ///< counting from 1
    double loss = 0;
    double step_seconds = 0;
    double tokens_per_second = 0;
    double gradient_norm = 0;
    std::vector<double> pipeline_bubble_ratio{}; ///< per rank
    std::vector<int> moved_to{}; ///< the partition's bounds, if layers moved just before the step; else left out
};

/// One line, without its end.
template <class = void> [[nodiscard]] std::string json_text(step_record const& record) {
    std::string line = "{\"step\":" + std::to_string(record.step);
    auto const field = [&](std::string_view name, double value) {
        ((line += ",\"") += name) += "\":";
        append_json(line, value);
    };
    field("loss", record.loss);
    field("step_seconds", record.step_seconds);
    field("tokens_per_second", record.tokens_per_second);
    field("gradient_norm", record.gradient_norm);
    line += ",\"pipeline_bubble_ratio\":[";
    for (double const& ratio : record.pipeline_bubble_ratio) {
        if (&ratio != &record.pipeline_bubble_ratio.front()) line += ',';
        append_json(line, ratio);
    }
    line += ']';
    if (!record.moved_to.empty()) {
        line += ",\"moved_to\":[";
        for (int const& bound : record.moved_to)
            line += (&bound == &record.moved_to.front() ? "" : ",") + std::to_string(bound);
        line += ']';
    }
    return line += '}';
}

/// Whether a log starts anew or goes on where an interrupted run has left it.
enum class log_start : bool { empty, append };

/// Writes the log; each line reaches the operating system before `write` returns. Numbers that JSON does not have (NaN,
/// infinity) are null. A pipe will do as well as a file. After a crash the log may be ahead of the checkpoint: the last
/// line of a step counts.
class json_log {
public:
    /// Throws `file_error` if the path cannot be written.
    template <class = void> json_log(std::string path, log_start start) : path_(std::move(path)) {
        int const way = start == log_start::empty ? O_TRUNC : O_APPEND;
        descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | way, 0666);
        if (descriptor_ < 0) throw file_error(path_, "write", errno);
        if (start == log_start::append) end_last_line();
    }
    json_log(json_log const&) = delete;
    json_log& operator=(json_log const&) = delete;
    ~json_log() { ::close(descriptor_); }

    /// Throws `file_error`, for instance when the disk is full.
    template <class = void> void write(step_record const& record) { put(json_text(record) + '\n'); }

private:
    /// A process that was killed may have left half a line.
    template <class = void> void end_last_line() {
        struct stat found = {};
        if (::fstat(descriptor_, &found) != 0 || !S_ISREG(found.st_mode) || found.st_size == 0) return;
        char last = '\n';
        int const reader = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
        bool const half = reader >= 0 && ::pread(reader, &last, 1, found.st_size - 1) == 1 && last != '\n';
        if (reader >= 0) ::close(reader);
        if (half) put("\n");
    }
    template <class = void> void put(std::string_view text) {
        while (!text.empty()) {
            ssize_t const written = ::write(descriptor_, text.data(), text.size());
            if (written < 0 && errno == EINTR) continue;
            if (written < 0) throw file_error(path_, "write", errno);
            text.remove_prefix(static_cast<std::size_t>(written));
        }
    }

    std::string path_;
    int descriptor_ = -1;
};

} // namespace copipe
