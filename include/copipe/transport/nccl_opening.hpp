// SPDX-License-Identifier: Apache-2.0
// Opens the communicators of all ranks of a process, all at once and within a time.
#pragma once

#include "copipe/device/cuda_error.hpp"
#include "copipe/transport/nccl_communicator.hpp"
#include "copipe/transport/nccl_ids.hpp"

#include <algorithm>
#include <chrono>
#include <future>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace copipe {

/// Ends of communicators, by rank and name.
using nccl_ends = std::map<std::pair<int, nccl_name>, std::shared_ptr<nccl_communicator>>;

/// Begins to open what the ranks of this process are part of.
inline void open_all(nccl_group& group, nccl_ends& all, nccl_ids const& ids, std::vector<nccl_place> const& here,
                     int max_ctas) {
    for (auto const& [rank, gpu] : here) {
        require_cuda(cudaSetDevice(gpu), "cudaSetDevice", {gpu, "opening communicators"});
        for (auto const& [name, id] : ids) {
            auto const& among = name.first;
            auto const own = std::find(among.begin(), among.end(), rank);
            if (own == among.end()) continue;
            bool const sums = name.second == nccl_lane::sum;
            std::string where = "rank " + std::to_string(rank) + (sums ? ", summing over" : ", with");
            for (int const each : among)
                if (sums || each != rank) where += (each == among[0] || !sums ? " rank " : ", ") + std::to_string(each);
            all[{rank, name}] = std::make_shared<nccl_communicator>(
                group, id, static_cast<int>(among.size()), static_cast<int>(own - among.begin()),
                sums ? 0 : max_ctas, std::move(where));
        }
    }
}
/// The same to the end. The other processes do so at the same time. On a thread that does nothing else.
inline void open_all(nccl_ends& all, nccl_ids const& ids, std::vector<nccl_place> const& here, int max_ctas) {
    nccl_group group;
    try {
        open_all(group, all, ids, here, max_ctas);
    } catch (...) { // the group's end would wait for those of its ranks that have not been named
        group.forget();
        throw;
    }
    group.end("opening all communicators");
}

/// The same on a thread that is left behind when it takes longer than `limit`: a call of NCCL that waits for a rank
/// which never comes does not end, and takes its communicators with it.
[[nodiscard]] inline auto opened_within(std::chrono::milliseconds limit, nccl_ids ids, std::vector<nccl_place> here,
                                        int max_ctas) -> nccl_ends {
    auto const all = std::make_shared<nccl_ends>();
    int const first = here.front().first;
    std::packaged_task<void()> work(
        [=, ids = std::move(ids), here = std::move(here)] { open_all(*all, ids, here, max_ctas); });
    auto ended = work.get_future();
    std::thread worker(std::move(work));
    if (ended.wait_for(limit) == std::future_status::ready) {
        worker.join();
        ended.get();
        return std::move(*all);
    }
    worker.detach();
    throw error("NCCL could not open the communicators of rank " + std::to_string(first) + " within " +
                std::to_string(limit.count()) +
                " ms: not all of its neighbours came; NCCL_DEBUG=INFO says more");
}

} // namespace copipe
