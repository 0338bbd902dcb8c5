// SPDX-License-Identifier: Apache-2.0
// What travels between two processes over TCP, and the host memory that it waits in.
#pragma once

#include "copipe/async/executor.hpp"
#include "copipe/device/host.hpp"
#include "copipe/transport/transport.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <type_traits>
#include <utility>
#include <vector>

namespace copipe {

/// How far a rank has come: how often it was reset, and since then, how many all-reduces it has ended.
using tcp_phase = std::uint64_t;
[[nodiscard]] constexpr auto resets(tcp_phase of) noexcept -> tcp_phase { return of >> 32U; }

enum class tcp_kind : std::uint32_t { message, sum, failed, lost, alive, left };

/// What goes ahead of every message. It counts on ranks that are as far as its sender, and not before: so a failure
/// does not overtake the sums that its rank had waited for.
struct tcp_frame {
    tcp_kind kind = tcp_kind::message;
    tcp_phase when = 0;
    std::uint64_t payload = 0; ///< bytes that follow
    envelope what{};
};
static_assert(std::is_trivially_copyable_v<tcp_frame>);

/// Host memory for a message between its arrival and its copy.
struct tcp_block {
    std::unique_ptr<std::byte[]> bytes{};
    std::size_t capacity = 0;
};

/// Blocks to be used again. From any thread.
class tcp_blocks {
public:
    [[nodiscard]] auto take(std::size_t bytes) -> tcp_block {
        {
            std::scoped_lock const lock{mutex_};
            auto const fits = std::find_if(spare_.begin(), spare_.end(),
                                           [bytes](tcp_block const& each) { return each.capacity >= bytes; });
            if (fits != spare_.end()) {
                tcp_block found = std::move(*fits);
                spare_.erase(fits);
                return found;
            }
        }
        return {std::make_unique_for_overwrite<std::byte[]>(bytes), bytes};
    }
    void recycle(tcp_block used) {
        std::scoped_lock const lock{mutex_};
        spare_.push_back(std::move(used));
    }

private:
    std::mutex mutex_{};
    std::vector<tcp_block> spare_{};
};

/// A coroutine that waits until its message has been written, or never will be.
struct tcp_sender : waiter {
    bool failed = false;
    void ended(bool well) noexcept {
        failed = !well;
        env->exec->wake(*this);
    }
};

/// Something to write. Dropping it fails its sender.
struct tcp_outgoing {
    struct drop {
        void operator()(tcp_sender* dropped) const noexcept { dropped->ended(false); }
    };

    tcp_frame head{};
    tcp_block own{}; ///< the data, if the frame brings its own
    void const* data = nullptr;
    host_event const* ready = nullptr;
    std::unique_ptr<tcp_sender, drop> sender{};

    tcp_outgoing() = default;
    explicit tcp_outgoing(tcp_frame const& of) : head(of) {}
    void written() noexcept {
        if (sender) sender.release()->ended(true);
    }
};

} // namespace copipe
