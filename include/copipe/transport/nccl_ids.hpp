// SPDX-License-Identifier: Apache-2.0
// What ranks agree on before they open communicators: their ids, and that no two ranks share a GPU.
#pragma once

#include "copipe/device/cuda_error.hpp"
#include "copipe/transport/nccl_communicator.hpp"
#include "copipe/transport/nccl_options.hpp"
#include "copipe/transport/rendezvous.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace copipe {

/// What a communicator carries: messages of two ranks both ways, or to the higher one, or to the lower; or sums.
enum class nccl_lane : std::uint8_t { both, up, down, sum };

/// A communicator's name: its ranks, lowest first, and its lane. No two have one.
using nccl_name = std::pair<std::vector<int>, nccl_lane>;
using nccl_ids = std::map<nccl_name, ncclUniqueId>;

/// A rank of this process and its GPU's number.
using nccl_place = std::pair<int, int>;

/// The lowest rank of each communicator draws its id.
[[nodiscard]] inline auto drawn_ids(std::vector<nccl_place> const& here, std::vector<nccl_name> const& names)
    -> nccl_ids {
    nccl_ids drawn;
    for (nccl_name const& name : names) {
        int const lowest = name.first.front();
        if (std::none_of(here.begin(), here.end(), [=](auto const& one) { return one.first == lowest; })) continue;
        ncclUniqueId id;
        require_nccl(ncclGetUniqueId(&id), "ncclGetUniqueId");
        drawn.emplace(name, id);
    }
    return drawn;
}

inline void put_ids(packet& into, nccl_ids const& ids) {
    into.put(ids.size());
    for (auto const& [name, id] : ids) {
        into.put(name.first.size());
        for (int const rank : name.first) into.put(static_cast<std::uint64_t>(rank));
        into.put(static_cast<std::uint64_t>(name.second)).put(std::string_view(id.internal, sizeof id.internal));
    }
}
inline void take_ids(packet& from, nccl_ids& into) {
    for (std::uint64_t left = from.number(); left > 0; --left) {
        nccl_name name;
        for (std::uint64_t ranks = from.number(); ranks > 0; --ranks)
            name.first.push_back(static_cast<int>(from.number()));
        name.second = static_cast<nccl_lane>(from.number());
        std::string const bytes = from.text();
        ncclUniqueId id;
        std::memcpy(id.internal, bytes.data(), std::min(bytes.size(), sizeof id.internal));
        into.insert_or_assign(std::move(name), id);
    }
}

/// The GPU of that number, by a name that no other has.
[[nodiscard]] inline auto name_of_gpu(int number) -> std::string {
    std::array<char, 64> host{}, bus{};
    gethostname(host.data(), host.size() - 1);
    require_cuda(cudaDeviceGetPCIBusId(bus.data(), static_cast<int>(bus.size()), number), "cudaDeviceGetPCIBusId",
                 {number, "device"});
    return std::string(bus.data()) + " of " + host.data();
}

/// Throws shared_gpu when NCCL would hang on two ranks that share one. `gpus`: ranks, and their GPUs' names.
inline void require_own_gpus(std::vector<std::pair<int, std::string>> const& gpus) {
    int version = 0;
    require_nccl(ncclGetVersion(&version), "ncclGetVersion");
    for (std::size_t i = 0; version < 23000 && i < gpus.size(); ++i)
        for (std::size_t before = 0; before < i; ++before)
            if (gpus[before].second == gpus[i].second)
                throw shared_gpu{gpus[before].first, gpus[i].first, gpus[i].second};
}

/// The ids of all communicators; several processes meet to exchange them. Throws shared_gpu, nccl_error or
/// rendezvous_error.
[[nodiscard]] inline auto agreed_ids(std::vector<nccl_place> const& here, std::vector<nccl_name> const& names,
                                     launch const& process, meeting_options const& where) -> nccl_ids {
    std::vector<std::pair<int, std::string>> gpus;
    for (auto const& [rank, gpu] : here) gpus.emplace_back(rank, name_of_gpu(gpu));
    nccl_ids ids = drawn_ids(here, names);
    if (process.size > 1) {
        packet card;
        card.put(gpus.front().second);
        put_ids(card, ids);
        meeting const met = meet(process, card.bytes(), where);
        gpus.clear();
        for (auto const& each : met.members) {
            packet theirs{each.card};
            gpus.emplace_back(static_cast<int>(gpus.size()), theirs.text());
            take_ids(theirs, ids);
        }
    }
    require_own_gpus(gpus);
    return ids;
}

} // namespace copipe
