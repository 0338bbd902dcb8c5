// SPDX-License-Identifier: Apache-2.0
// Every policy by its name, for programs that pick one at run time.
#pragma once

#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/gpipe.hpp"
#include "copipe/schedule/interleaved.hpp"
#include "copipe/schedule/interleaved_zero_bubble.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/sequential.hpp"
#include "copipe/schedule/v_half.hpp"
#include "copipe/schedule/v_min.hpp"
#include "copipe/schedule/zb_h1.hpp"
#include "copipe/schedule/zb_h2.hpp"
#include "copipe/schedule/zb_v.hpp"

#include "options.hpp"

#include <cstdint>
#include <string>
#include <tuple>

/// All policies, in the order of their papers: interleaved ones with `chunks` on each rank, planning ones for `costs`.
inline auto all_policies(int chunks, copipe::uniform_costs const& costs) {
    using namespace copipe;
    return std::tuple{sequential{},
                      gpipe{},
                      one_f_one_b{},
                      interleaved<>{.chunks = chunks},
                      interleaved_overlapped<>{.chunks = chunks},
                      zb_h1{.costs = costs},
                      zb_h2{.costs = costs},
                      zb_v{.costs = costs},
                      interleaved_zero_bubble<>{.chunks = chunks},
                      v_half{.costs = costs},
                      v_min{.costs = costs},
                      dualpipe{},
                      dualpipe_v{}};
}

/// Throws `usage_error` if the step is too long to look at.
inline void require_feasible(copipe::placement const& where, int micro_batches) {
    auto const actions = std::int64_t{3} * where.stages() * where.micro_batches_per_stage(micro_batches);
    if (actions > 100'000'000)
        throw usage_error("this step has " + std::to_string(actions) + " actions; at most 100000000 are possible");
}

/// Calls `visit` with each policy in turn.
template <class Visit>
void for_each_policy(int chunks, copipe::uniform_costs const& costs, Visit&& visit) {
    std::apply([&](auto const&... policy) { (visit(policy), ...); }, all_policies(chunks, costs));
}
