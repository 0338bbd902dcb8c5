// SPDX-License-Identifier: Apache-2.0
// Steps of several trainers that share experts: each is a replica with ranks and micro-batches of its own.
#pragma once

#include "moe/all_to_all.hpp"

#include <cstddef>
#include <exception>
#include <thread>
#include <vector>

namespace moe {

/// Trains one step on every replica at once, replica g on data[g], and returns their reports. If one fails, no other
/// waits for it: all end their step, and its error is thrown. The next step may then be tried.
template <class Trainer, class Data, copipe::device Device>
auto step_together(all_to_all<Device>& net, std::vector<Trainer*> const& replicas, std::vector<Data> const& data) {
    std::vector<decltype(replicas.front()->step(data.front()))> reports(replicas.size());
    std::vector<std::exception_ptr> failures(replicas.size());
    {
        std::vector<std::jthread> threads;
        for (std::size_t g = 0; g < replicas.size(); ++g) {
            threads.emplace_back([&, g] {
                try {
                    reports[g] = replicas[g]->step(data[g]);
                } catch (...) {
                    failures[g] = std::current_exception();
                    net.abort(static_cast<int>(g));
                }
            });
        }
    }
    net.reset();
    std::exception_ptr echo;
    for (std::exception_ptr const& each : failures) {
        if (!each) continue;
        try {
            std::rethrow_exception(each);
        } catch (copipe::peer_failed const&) {
            echo = each; // another replica's error says why
        }
    }
    if (echo) std::rethrow_exception(echo);
    return reports;
}

} // namespace moe
