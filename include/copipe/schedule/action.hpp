// SPDX-License-Identifier: Apache-2.0
// What a rank runs: a chunk (one stage's work on one micro-batch), alone or as an overlapped forward-and-backward pair.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace copipe {

/// The four kinds of work. A full `backward` computes both gradients; split, it is a `backward_input` (needed upstream
/// at once) and a `backward_weight` (needed only before the optimizer's update).
enum class op : std::uint8_t { forward, backward, backward_input, backward_weight };

/// The letter of an op in schedule tables: F, B, I, W.
[[nodiscard]] constexpr char letter(op what) noexcept { return "FBIW"[static_cast<std::size_t>(what)]; }

/// One stage's work on one micro-batch. Stages and micro-batches count from 0; under DualPipe micro-batches count
/// within their direction. At most 65535 stages.
struct chunk {
    op what = op::forward;
    std::uint16_t stage = 0;
    std::int32_t micro_batch = 0;

    constexpr chunk() = default;
    constexpr chunk(op kind, int of_stage, int of_micro_batch) noexcept
        : what(kind), stage(static_cast<std::uint16_t>(of_stage)), micro_batch(of_micro_batch) {}

    friend constexpr bool operator==(chunk const&, chunk const&) = default;
};

/// The chunks of an action: a std::span of them would be dear in every file that includes this (docs/design.md).
struct chunk_list {
    chunk const* first;
    std::size_t count;

    [[nodiscard]] constexpr chunk const* begin() const noexcept { return first; }
    [[nodiscard]] constexpr chunk const* end() const noexcept { return first + count; }
    [[nodiscard]] constexpr std::size_t size() const noexcept { return count; }
    [[nodiscard]] constexpr chunk const& operator[](std::size_t i) const noexcept { return first[i]; }
    [[nodiscard]] constexpr chunk const& front() const noexcept { return first[0]; }
    [[nodiscard]] constexpr chunk const& back() const noexcept { return first[count - 1]; }
};

/// One entry of a rank's program: a chunk, or a forward overlapped with a full backward of another chunk.
/// A single chunk is stored twice, so a program is a plain array of 16-byte values.
class action {
public:
    constexpr action(chunk only) noexcept : halves_{only, only} {}
    constexpr action(op what, int stage, int micro_batch) noexcept : action(chunk{what, stage, micro_batch}) {}
    constexpr action(chunk forward, chunk backward) noexcept : halves_{forward, backward} {}

    [[nodiscard]] constexpr bool overlapped() const noexcept { return halves_[0] != halves_[1]; }

    /// Its one chunk, or the forward and then the backward of the pair.
    [[nodiscard]] constexpr chunk_list chunks() const noexcept { return {halves_.data(), overlapped() ? 2U : 1U}; }
    [[nodiscard]] constexpr chunk const& front() const noexcept { return halves_[0]; }

    friend constexpr bool operator==(action const&, action const&) = default;

private:
    std::array<chunk, 2> halves_;
};

static_assert(sizeof(chunk) == 8 && sizeof(action) == 16);

/// `3F12`: stage 3, forward, micro-batch 12.
[[nodiscard]] inline std::string text(chunk const& one) {
    return std::to_string(one.stage) + letter(one.what) + std::to_string(one.micro_batch);
}

/// `3F12`, or `(3F12;4B0)OVERLAP_F_B` as in PyTorch's schedule files.
[[nodiscard]] inline std::string text(action const& one) {
    auto const halves = one.chunks();
    return one.overlapped() ? "(" + text(halves[0]) + ";" + text(halves[1]) + ")OVERLAP_F_B" : text(halves[0]);
}

} // namespace copipe
