// SPDX-License-Identifier: Apache-2.0
// Trainers whose ranks are processes: in a translation unit of their own, because sockets take long to compile.
#include "gpt/processes.hpp"

#include "copipe/transport/tcp.hpp"
#include "gpt/trainer_under.hpp"

#include <string>
#include <utility>
#include <vector>

namespace gpt {

auto agreed_cut(copipe::launch const& own, copipe::partition const& here, bool on_gpu, std::chrono::seconds within)
    -> copipe::partition {
    copipe::packet card;
    card.put(std::uint64_t{on_gpu}).put(here.bounds().size());
    for (int const bound : here.bounds()) card.put(static_cast<std::uint64_t>(bound));
    copipe::meeting const met = copipe::meet(own, card.bytes(), {.deadline = within});
    copipe::packet first{met.members.front().card};
    bool const gpus = first.number() != 0;
    for (std::size_t rank = 1; rank < met.members.size(); ++rank) {
        copipe::packet theirs{met.members[rank].card};
        if ((theirs.number() != 0) == gpus) continue;
        throw copipe::rendezvous_error("rank 0 computes on " + std::string(gpus ? "a GPU" : "the CPU") + ", rank " +
                                       std::to_string(rank) + " on " + (gpus ? "the CPU" : "a GPU") +
                                       ": give each a GPU, or start all with --device cpu");
    }
    std::vector<int> bounds(first.number());
    for (int& each : bounds) each = static_cast<int>(first.number());
    return copipe::partition::given(bounds, here.layers());
}

auto make_process_trainer(std::string_view policy, copipe::model<host_device> const& model,
                          copipe::trainer_options<host_device> options) -> std::unique_ptr<any_trainer> {
    return trainer_named<host_device, copipe::tcp>(policy, model, std::move(options), {});
}

} // namespace gpt
