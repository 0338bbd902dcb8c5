// SPDX-License-Identifier: Apache-2.0
// Trainers whose ranks are processes: in a translation unit of their own, because sockets take long to compile.
#include "gpt/processes.hpp"

#include "copipe/transport/tcp.hpp"
#include "gpt/trainer_under.hpp"

#include <string>
#include <utility>
#include <vector>

namespace gpt {

auto agreed_cut(copipe::launch const& own, copipe::partition const& here) -> copipe::partition {
    copipe::packet card;
    card.put(here.bounds().size());
    for (int const bound : here.bounds()) card.put(static_cast<std::uint64_t>(bound));
    copipe::packet first{copipe::meet(own, card.bytes()).members.front().card};
    std::vector<int> bounds(first.number());
    for (int& each : bounds) each = static_cast<int>(first.number());
    return copipe::partition::given(bounds, here.layers());
}

auto make_process_trainer(std::string_view policy, copipe::model<host_device> const& model,
                          copipe::trainer_options<host_device> options) -> std::unique_ptr<any_trainer> {
    return trainer_named<host_device, copipe::tcp>(policy, model, std::move(options), {});
}

} // namespace gpt
