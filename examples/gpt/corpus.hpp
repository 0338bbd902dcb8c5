// SPDX-License-Identifier: Apache-2.0
// Text as bytes: files and folders read into one array, cut into training and validation text, and micro-batches of
// random windows that any rank draws alone from their number.
#pragma once

#include "copipe/error.hpp"
#include "copipe/model/parameter.hpp"
#include "copipe/pipeline/dataset.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace gpt {

/// Text that cannot be trained on. `path` is the file or folder at fault.
class corpus_error : public copipe::error {
public:
    std::filesystem::path path;
    corpus_error(std::filesystem::path at, std::string const& sentence)
        : copipe::error("data '" + at.string() + "' " + sentence), path(std::move(at)) {}
};

/// Random windows of a text. Refers to the corpus it came from.
struct windows {
    std::span<std::uint8_t const> text;
    int context;
    std::uint64_t seed;

    /// Micro-batch number `index`: `batch` windows of `context` bytes in `input` [batch, context], and in `target`, of
    /// the same shape, the byte that follows each. Depends on nothing but the text, the seed and the index.
    void sample(std::uint64_t index, int batch, std::int32_t* input, std::int32_t* target) const {
        copipe::counter_random const random{seed, index};
        auto const length = static_cast<std::size_t>(context);
        std::uint64_t const starts = text.size() - length;
        for (int b = 0; b < batch; ++b, input += length, target += length) {
            std::span const window = text.subspan(random.bits(static_cast<std::uint64_t>(b)) % starts, length + 1);
            std::copy_n(window.begin(), length, input);
            std::copy_n(window.begin() + 1, length, target);
        }
    }
};

/// Windows as a dataset: every micro-batch holds `batch` of them. An epoch is as many as the text would fill end to
/// end.
struct micro_batches {
    windows from;
    int batch;

    [[nodiscard]] auto size() const noexcept -> std::uint64_t {
        auto const tokens = static_cast<std::uint64_t>(batch) * static_cast<std::uint64_t>(from.context);
        return std::max<std::uint64_t>(from.text.size() / tokens, 1);
    }
    void load(std::uint64_t index, copipe::host_array& input, copipe::host_array& target) const {
        copipe::extents const sizes{batch, from.context};
        from.sample(index, batch, input.resize<std::int32_t>(sizes, copipe::dtype::i32),
                    target.resize<std::int32_t>(sizes, copipe::dtype::i32));
    }
};
static_assert(copipe::dataset<micro_batches>);

/// All bytes of `paths`, in their order; the files of a folder recursively, sorted by path. Hidden folders (.git) and
/// folders named "build" are passed over.
class corpus {
public:
    struct options {
        int context = 64;
        double validation_share = 0.1; ///< of the bytes, at the end; never less than one window
        std::uint64_t seed = 1;
    };

    /// Throws corpus_error when a path is missing, unreadable or has no bytes, or when all of them together are too
    /// short to give one window of training and one of validation.
    corpus(std::span<std::filesystem::path const> paths, options chosen) : options_(chosen) {
        for (auto const& path : paths) {
            std::size_t const before = bytes_.size();
            for (auto const& file : files_of(path)) append(file);
            if (bytes_.size() == before) throw corpus_error(path, "is empty: name a file or folder that has text");
        }
        std::size_t const window = static_cast<std::size_t>(options_.context) + 1;
        auto const share = static_cast<std::size_t>(options_.validation_share * static_cast<double>(bytes_.size()));
        if (bytes_.size() < window + std::max(share, window)) {
            throw corpus_error(paths.empty() ? std::filesystem::path{} : paths.front(),
                               "gives " + std::to_string(bytes_.size()) +
                                   " bytes, too few for training and validation at "
                                   "a context of " +
                                   std::to_string(options_.context) + ": add text or shorten the context");
        }
        training_bytes_ = bytes_.size() - std::max(share, window);
    }

    [[nodiscard]] auto bytes() const noexcept -> std::span<std::uint8_t const> { return bytes_; }
    [[nodiscard]] auto training() const noexcept -> windows {
        return {bytes().first(training_bytes_), options_.context, options_.seed};
    }
    [[nodiscard]] auto validation() const noexcept -> windows {
        return {bytes().subspan(training_bytes_), options_.context, options_.seed};
    }

private:
    static auto files_of(std::filesystem::path const& path) -> std::vector<std::filesystem::path> {
        namespace fs = std::filesystem;
        try {
            if (!fs::exists(path)) throw corpus_error(path, "does not exist: name a file or a folder");
            if (!fs::is_directory(path)) return {path};
            std::vector<fs::path> files;
            for (fs::recursive_directory_iterator at{path}, end; at != end; ++at) {
                std::string const name = at->path().filename().string();
                if (at->is_directory() && (name.starts_with('.') || name == "build")) at.disable_recursion_pending();
                if (at->is_regular_file()) files.push_back(at->path());
            }
            std::ranges::sort(files);
            return files;
        } catch (fs::filesystem_error const& failure) {
            throw corpus_error(failure.path1().empty() ? path : failure.path1(),
                               "cannot be read (" + failure.code().message() + "): check its permissions");
        }
    }

    void append(std::filesystem::path const& file) {
        std::ifstream stream{file, std::ios::binary};
        for (std::array<char, 1 << 16> some; stream.read(some.data(), some.size()), stream.gcount() > 0;)
            bytes_.insert(bytes_.end(), some.begin(), some.begin() + stream.gcount());
        if (!stream.is_open() || stream.bad()) throw corpus_error(file, "cannot be read: check its permissions");
    }

    options options_;
    std::vector<std::uint8_t> bytes_;
    std::size_t training_bytes_ = 0;
};

} // namespace gpt
