// SPDX-License-Identifier: Apache-2.0
// What a device can do, found out with small fixed jobs: its rates once at the start, and again and again the time of
// one job, which tells a device that has become slow from layers that have become expensive.
#pragma once

#include "copipe/device/host_stream.hpp"
#include "copipe/device/simulated.hpp"
#include "copipe/error.hpp"
#include "copipe/model/tensor.hpp"
#include "copipe/observe/json_text.hpp"

#include <algorithm>
#include <charconv>
#include <concepts>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <sys/stat.h>
#include <system_error>
#include <unistd.h>
#include <utility>
#include <vector>

namespace copipe {

/// Enqueues the fixed job: c = a b, square matrices of `size` rows, one after the other in `abc`. A device brings an
/// overload for its own streams; without one it is not probed.
template <class = void> void probe_product(host_stream& stream, float* abc, int size) {
    stream.launch([abc, n = static_cast<std::size_t>(size)] {
        float const* const a = abc;
        float const* const b = a + n * n;
        float* const c = abc + 2 * n * n;
        for (std::size_t i = 0; i < n; ++i) {
            std::fill_n(c + i * n, n, 0.0F);
            for (std::size_t k = 0; k < n; ++k)
                for (std::size_t j = 0; j < n; ++j) c[i * n + j] += a[i * n + k] * b[k * n + j];
        }
    });
}
/// In virtual time a device of slowness 1 computes 10^12 products a second.
template <class = void> void probe_product(simulated_stream& stream, float*, int size) {
    stream.launch(1e-12 * size * size * size);
}

template <class Stream>
concept probed_stream = requires(Stream& stream, float* abc) { probe_product(stream, abc, 1); };

/// A fixed job on a stream, timed on the device's clock; no job at all on streams that have none.
template <device Device>
class device_probe {
public:
    using stream = typename Device::stream;
    using event = typename Device::event;

    static constexpr bool possible = probed_stream<stream>;

    /// The product of matrices of `rows` rows, so many times.
    device_probe(stream& on, int rows, int times = 8)
        : stream_(&on), size_(rows), abc_(*on.memory(), {3, rows, rows}), events_(static_cast<std::size_t>(times) + 1) {
        on.zero(abc_.data(), abc_.bytes());
    }

    /// Enqueues the job so many times.
    void start() {
        for (std::size_t i = 0; i + 1 < events_.size(); ++i) {
            events_[i] = stream_->record(timing::on);
            if constexpr (possible) probe_product(*stream_, abc_.data(), size_);
        }
        events_.back() = stream_->record(timing::on);
    }
    [[nodiscard]] auto ended() const noexcept -> event const& { return events_.back(); }
    /// Of the fastest job, once they have ended: what else the machine did meanwhile says nothing of the device.
    [[nodiscard]] auto seconds() const -> double {
        double least = std::numeric_limits<double>::infinity();
        for (std::size_t i = 0; i + 1 < events_.size(); ++i)
            least = std::min(least, events_[i + 1].time() - events_[i].time());
        return least;
    }
    /// Additions and multiplications of one job.
    [[nodiscard]] auto operations() const noexcept -> double { return 2.0 * size_ * size_ * size_; }

private:
    stream* stream_;
    int size_;
    tensor abc_;
    std::vector<event> events_;
};

/// What a device can do. 0 where it is not known.
struct fingerprint {
    double small_product = 0; ///< operations a second, in matrix products of 64 rows
    double large_product = 0; ///< of 256 rows
    double memory = 0;        ///< bytes a second, read and written, within the device
    double copy = 0;          ///< bytes a second from host memory
    double link = 0;          ///< bytes a second on a stream for what arrives from another rank
    double free_bytes = 0;    ///< of memory, at the time
    bool read = false;        ///< from a file, all but `free_bytes`

    [[nodiscard]] auto operator==(fingerprint const&) const -> bool = default;
};

/// Bytes of memory that nobody uses at the time; 0 if that is not known.
template <device Device>
[[nodiscard]] auto free_memory([[maybe_unused]] Device& dev) -> double {
    if constexpr (requires { dev.free_memory(); })
        return static_cast<double>(dev.free_memory());
    else if constexpr (std::same_as<typename Device::stream, host_stream>)
        return static_cast<double>(::sysconf(_SC_AVPHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE));
    else
        return 0;
}

/// Measures a device, in some milliseconds, on two of its streams, which must be idle: of compute, and of a link.
template <device Device>
[[nodiscard]] auto take_fingerprint(Device& dev, typename Device::stream& compute, typename Device::stream& link)
    -> fingerprint {
    auto const rate = [](double amount, double seconds) { return seconds > 0 ? amount / seconds : 0; };
    fingerprint found;
    if constexpr (device_probe<Device>::possible) {
        for (auto const& [size, into] : {std::pair{64, &found.small_product}, {256, &found.large_product}}) {
            device_probe<Device> job{compute, size, size > 100 ? 2 : 8};
            job.start();
            compute.synchronize();
            *into = rate(job.operations(), job.seconds());
        }
    }
    std::size_t const bytes = std::size_t{1} << 20U;
    tensor const from{*compute.memory(), {static_cast<std::int64_t>(bytes)}, dtype::u8};
    tensor const to{*compute.memory(), from.sizes(), dtype::u8};
    std::vector<std::byte> const host(bytes);
    compute.zero(from.data(), bytes);
    compute.zero(to.data(), bytes);
    compute.synchronize();
    auto const best = [&](typename Device::stream& stream, void const* source) {
        double least = std::numeric_limits<double>::infinity();
        for (int i = 0; i < 3; ++i) {
            auto const start = stream.record(timing::on);
            stream.copy(to.data(), source, bytes);
            auto const end = stream.record(timing::on);
            stream.synchronize();
            least = std::min(least, end.time() - start.time());
        }
        return least;
    };
    found.memory = rate(2.0 * static_cast<double>(bytes), best(compute, from.data()));
    found.copy = rate(static_cast<double>(bytes), best(compute, host.data()));
    found.link = rate(static_cast<double>(bytes), best(link, from.data()));
    found.free_bytes = free_memory(dev);
    return found;
}

/// Calls `take(line)` for each line of a text file that has an end, if there is such a file; up to a line that is none.
template <class Take>
void each_line(char const* path, Take take) {
    std::FILE* const file = std::fopen(path, "r");
    std::string line;
    for (int c = 0; file && line.size() < 10'000 && (c = std::fgetc(file)) != EOF;) {
        if (c != '\n') {
            line += static_cast<char>(c);
            continue;
        }
        take(std::string_view(line));
        line.clear();
    }
    if (file) std::fclose(file);
}

/// Fingerprints by the names of devices, kept in a text file from run to run: one line each.
class fingerprint_file {
public:
    explicit fingerprint_file(std::string path) : path_(std::move(path)) {}

    /// The fingerprint of a device of that name; nothing if none was kept.
    template <class = void> [[nodiscard]] auto find(std::string const& name) const -> std::optional<fingerprint> {
        std::optional<fingerprint> kept;
        each_line(path_.c_str(), [&](std::string_view line) {
            if (kept || !line.starts_with(name + '\t')) return;
            fingerprint found;
            line.remove_prefix(name.size());
            for (double* const into : {&found.small_product, &found.large_product, &found.memory, &found.copy,
                                       &found.link, &found.free_bytes}) {
                if (line.empty()) return;
                auto const [end, wrong] = std::from_chars(line.data() + 1, line.data() + line.size(), *into);
                if (wrong != std::errc{}) return;
                line.remove_prefix(static_cast<std::size_t>(end - line.data()));
            }
            kept = found;
        });
        return kept;
    }

    /// Adds one. Throws `error` if the file cannot be written.
    template <class = void> void keep(std::string const& name, fingerprint const& found) const {
        std::string line = name + '\t';
        for (double const each : {found.small_product, found.large_product, found.memory, found.copy, found.link,
                                  found.free_bytes}) {
            append_json(line, each);
            line += ' ';
        }
        line.back() = '\n';
        std::FILE* const file = std::fopen(path_.c_str(), "a");
        bool const written = file && std::fputs(line.c_str(), file) >= 0;
        if (!file || std::fclose(file) != 0 || !written)
            throw error("cannot write fingerprints of devices to " + path_ + ": choose another file");
    }

private:
    std::string path_;
};

/// What kind of device it is: its own `name()`, or the host's processor. Empty if that is not known.
template <device Device>
[[nodiscard]] auto device_name([[maybe_unused]] Device& dev) -> std::string {
    if constexpr (requires { std::string(dev.name()); }) return std::string(dev.name());
    if constexpr (!std::same_as<typename Device::stream, host_stream>) return {};
    std::string found;
    each_line("/proc/cpuinfo", [&](std::string_view line) {
        auto const colon = line.find(": ");
        if (found.empty() && line.starts_with("model name") && colon != line.npos) found = line.substr(colon + 2);
    });
    return found.empty() ? found : found + ", " + std::to_string(::sysconf(_SC_NPROCESSORS_ONLN)) + " threads";
}

/// A device's fingerprint from the file of that path, or else measured, and kept there. Always measured if the path is
/// empty, or the device has no name. Throws `error` if the file cannot be written.
template <device Device>
[[nodiscard]] auto known_fingerprint(std::string const& path, Device& dev, typename Device::stream& compute,
                                     typename Device::stream& link) -> fingerprint {
    std::string const name = path.empty() ? "" : device_name(dev);
    if (name.empty()) return take_fingerprint(dev, compute, link);
    fingerprint_file const file{path};
    if (auto found = file.find(name)) {
        found->read = true;
        found->free_bytes = free_memory(dev);
        return *found;
    }
    fingerprint const found = take_fingerprint(dev, compute, link);
    file.keep(name, found);
    return found;
}

/// Where a user's fingerprints are kept, by the XDG Base Directory Specification: `copipe/fingerprints` in
/// $XDG_CACHE_HOME or ~/.cache, made if it is missing. Empty if that cannot be written.
template <class = void> [[nodiscard]] auto fingerprint_cache() -> std::string {
    char const* const cache = std::getenv("XDG_CACHE_HOME");
    char const* const home = std::getenv("HOME");
    bool const named = cache && *cache == '/';
    if (!named && !(home && *home == '/')) return {};
    std::string const folder = (named ? std::string(cache) : std::string(home) + "/.cache") + "/copipe";
    for (std::size_t end = 0; end != folder.npos;) {
        end = folder.find('/', end + 1);
        ::mkdir(folder.substr(0, end).c_str(), 0777);
    }
    return ::access(folder.c_str(), W_OK | X_OK) == 0 ? folder + "/fingerprints" : std::string{};
}

} // namespace copipe
