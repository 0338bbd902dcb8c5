// SPDX-License-Identifier: Apache-2.0
// Messages on their way out of a rank. Their tensors live until the receiver has read them, and no compute waits.
#pragma once

#include "copipe/async/task.hpp"
#include "copipe/pipeline/chunk_reporter.hpp"
#include "copipe/transport/transport.hpp"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace copipe {

/// Sends tensors of one rank to others, and knows which may still be read. Everything passed by reference outlives it.
template <device Device, transport_endpoint<Device> Endpoint>
class outbox {
public:
    using event = typename Device::event;

    outbox(Device& dev, Endpoint& by, chunk_reporter<Device> const& reporter) noexcept
        : device_(&dev), by_(&by), reporter_(&reporter) {}

    /// Lives until the peer has taken the message over, which its stream may read from `ready` on.
    auto send(int peer, std::uint64_t identity, chunk of, tensor value, event ready) -> task<> {
        envelope what{.identity = identity, .bytes = value.bytes()};
        what.header[0] = static_cast<std::int64_t>(value.type());
        what.header[1] = static_cast<std::int64_t>(value.sizes().rank());
        std::copy(value.sizes().begin(), value.sizes().end(), what.header.begin() + 2);
        event over = co_await by_->send(peer, what, value.data(), ready);
        auto& to_peer = sent_to(peer);
        to_peer.push_back({of, std::move(value), std::move(ready), std::move(over)});
        let_go(to_peer);
    }

    /// Frees what peers have read by now.
    void let_go() {
        for (auto& [peer, to_peer] : sent_) let_go(to_peer);
    }

    /// Waits until peers have read everything.
    auto all_read() -> task<> {
        for (auto& [peer, to_peer] : sent_) { // the last to be read is the last that was sent
            if (!to_peer.empty()) co_await to_peer.back().over.completion();
            let_go(to_peer);
        }
    }

private:
    /// A message that its receiver has taken over but may still read.
    struct lent {
        chunk of;
        tensor value;
        event ready;
        event over;
    };

    [[nodiscard]] auto sent_to(int peer) -> std::vector<lent>& {
        auto const known = std::find_if(sent_.begin(), sent_.end(), [=](auto const& one) { return one.first == peer; });
        return known != sent_.end() ? known->second : sent_.emplace_back(peer, std::vector<lent>{}).second;
    }

    void let_go(std::vector<lent>& to_peer) {
        auto const held = std::find_if(to_peer.begin(), to_peer.end(), [](lent const& l) { return !l.over.done(); });
        if (reporter_->listener()) {
            std::for_each(to_peer.begin(), held,
                          [this](lent const& l) { reporter_->sent(l.of, l.ready.time(), device_->now()); });
        }
        to_peer.erase(to_peer.begin(), held);
    }

    Device* device_;
    Endpoint* by_;
    chunk_reporter<Device> const* reporter_;
    std::vector<std::pair<int, std::vector<lent>>> sent_{}; ///< to each of the few ranks that messages went to
};

} // namespace copipe
