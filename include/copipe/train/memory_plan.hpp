// SPDX-License-Identifier: Apache-2.0
// Memory before it runs out: what each rank of a pipeline will hold, and which layers must be recomputed so that this
// stays within a limit.
#pragma once

#include "copipe/balance/solve_partition.hpp"
#include "copipe/model/partition.hpp"
#include "copipe/observe/table.hpp"
#include "copipe/schedule/placement.hpp"
#include "copipe/schedule/policy.hpp"
#include "copipe/train/layer_profile.hpp"
#include "copipe/train/layer_times.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace copipe {

/// Which layers form which stage, and which of them are recomputed, in order.
struct fitted_layers {
    partition cut;
    row<int> recomputed{};
};

template <class = void> struct basic_memory_limit;
template <class = void>
[[nodiscard]] auto memory_problem(basic_memory_limit<> const& limit, std::vector<program> const& programs,
                                  placement const& where, std::size_t states, std::size_t lookahead)
    -> partition_problem;
template <class = void>
[[nodiscard]] auto fit_into_memory(partition_problem const& of, partition const& first, bool told) -> fitted_layers;

/// How a trainer keeps within a memory_limit.
struct memory_planner {
    decltype(&memory_problem<>) problem;
    decltype(&fit_into_memory<>) fit;
};
template <class Lazy = void>
inline constexpr memory_planner exact_memory_planner{&memory_problem<Lazy>, &fit_into_memory<Lazy>};

/// What ranks may hold, and what layers need.
template <class Lazy> struct basic_memory_limit {
    std::vector<std::size_t> bytes{};    ///< of device memory, for each rank, or one number for every rank
    std::vector<layer_profile> layers{}; ///< of profile_layers
    memory_planner const* planner = &exact_memory_planner<Lazy>; ///< named only here: others need not compile it
};
using memory_limit = basic_memory_limit<>;

/// A rank's layers need more memory than it may use, even if as many are recomputed as help: under the partition that
/// was asked for (`told`), or under any, and then of all the one that lacks least.
class memory_error : public error {
public:
    memory_error(int at_rank, std::size_t needed, std::size_t allowed, bool told)
        : error("rank " + std::to_string(at_rank) + " needs " + byte_count(needed) +
                " of memory for its layers under " + (told ? "this" : "the best") +
                " partition even if all of them are recomputed, but may use " +
                byte_count(allowed) + ": allow all ranks " + std::to_string(needed - allowed) + " bytes more, " +
                (told ? "take another partition, " : "") +
                "take more ranks or smaller micro-batches, or a policy with fewer of them in flight"),
          rank(at_rank),
          needs(needed),
          has(allowed) {}
    int rank;
    std::size_t needs, has; ///< bytes
};

/// How many micro-batches a stage holds at most, and how many of them at most wait for their weight gradient alone.
struct in_flight {
    int micro_batches = 0, restored = 0;
};
template <class = void> [[nodiscard]] auto most_in_flight(program const& own, int stage) -> in_flight {
    in_flight now, most;
    for (action const& each : own) {
        for (chunk const& c : each.chunks()) {
            if (c.stage != stage) continue;
            most.micro_batches = std::max(most.micro_batches, now.micro_batches += c.what == op::forward);
            most.restored = std::max(most.restored, now.restored += c.what == op::backward_input);
        }
        for (chunk const& c : each.chunks()) {
            if (c.stage != stage) continue;
            now.micro_batches -= c.what == op::backward || c.what == op::backward_weight;
            now.restored -= c.what == op::backward_weight;
        }
    }
    return most;
}

/// The model and its schedule as a problem for solve_partition: times from the profile, in nanoseconds, and memory as
/// the engine will use it, with `states` optimizer tensors per parameter and hosts `lookahead` actions ahead. Of
/// replicas, which do alike, it is one, and what the least of them may hold counts. Throws partition_error.
template <class>
auto memory_problem(memory_limit const& limit, std::vector<program> const& programs, placement const& all,
                    std::size_t states, std::size_t lookahead) -> partition_problem {
    placement const where{all.kind, all.line(), all.per_rank};
    stage_map const map = stages_on_ranks(where);
    if (limit.bytes.size() != 1 && limit.bytes.size() != programs.size())
        throw partition_error("there are memory limits for " + std::to_string(limit.bytes.size()) + " of " +
                              std::to_string(programs.size()) + " ranks");
    partition_problem found{.order = map.order, .ranks = map.ranks, .stages_per_rank = map.stages_per_rank};
    std::size_t working = 0, message = 0, saved = 0, summed = 0;
    for (layer_profile const& each : limit.layers) {
        auto const ticks_of = [](double seconds) { return std::llround(1e9 * seconds); };
        found.weights.push_back(ticks_of(each.forward + each.backward_input + each.backward_weight));
        found.forward.push_back(ticks_of(each.forward));
        found.parameters.push_back(static_cast<ticks>(each.parameter_bytes * (2 + states) + each.derived_bytes));
        found.activations.push_back(static_cast<ticks>(each.saved_bytes));
        found.checkpoint.push_back(static_cast<ticks>(std::min(each.saved_bytes, each.checkpoint_bytes)));
        working = std::max(working, each.working_bytes);
        message = std::max(message, each.checkpoint_bytes);
        saved = std::max(saved, each.saved_bytes);
        if (all.copies() > 1) summed = std::max(summed, 2 * each.parameter_bytes); // a gradient's sum and an addend
    }
    found.recompute_space = static_cast<ticks>(saved);
    auto const most = [&](int stage) {
        return most_in_flight(programs[static_cast<std::size_t>(where.rank_of(stage))], stage);
    };
    found.in_flight = found.restored = row<ticks>(map.order == stage_order::loop ? map.stages() : map.ranks);
    if (found.mirrored()) found.in_flight_far = found.restored_far = row<ticks>(map.ranks);
    for (int rank = 0; rank < map.ranks; ++rank) {
        // Besides what layers keep: inputs and gradients that have come early, and messages that have been read but
        // whose action the host has not retired yet; ...
        std::size_t const ahead = std::min(lookahead, programs[static_cast<std::size_t>(rank)].size());
        std::size_t messages = 4 * ahead + 2 * static_cast<std::size_t>(where.per_rank);
        for (int const stage : where.stages_of(rank)) {
            auto const own = most(stage);
            bool const near = map.order == stage_order::loop || stage == where.stage_of(rank, 0);
            auto const at = static_cast<std::size_t>(map.order == stage_order::loop ? stage : rank);
            (near ? found.in_flight : found.in_flight_far)[at] = own.micro_batches;
            (near ? found.restored : found.restored_far)[at] = own.restored;
            // ... a stage's inputs, its outputs until the next rank has read them, and its gradients until the one
            // before has: at the latest when that micro-batch's backward runs there.
            auto const held = static_cast<std::size_t>(own.micro_batches);
            messages += held;
            if (!where.is_last(stage) && where.rank_of(stage + 1) != rank) messages += held;
            if (!where.is_first(stage) && where.rank_of(stage - 1) != rank)
                messages += static_cast<std::size_t>(most(stage - 1).micro_batches);
        }
        found.fixed.push_back(static_cast<ticks>(std::max(working + messages * message, summed)));
        auto least = limit.bytes[limit.bytes.size() == 1 ? 0 : static_cast<std::size_t>(rank)];
        for (int same = rank; limit.bytes.size() > 1 && same < all.ranks; same += where.ranks)
            least = std::min(least, limit.bytes[static_cast<std::size_t>(same)]);
        found.capacity.push_back(static_cast<ticks>(least));
    }
    return found;
}

/// Throws memory_error for a partition that was `told`, or for the one that the least more would do for.
template <class = void> [[noreturn]] void refuse_memory(partition_problem of, std::optional<partition> const& told) {
    std::fill(of.forward.begin(), of.forward.end(), 0); // no matter how long it takes
    row<ticks> const allowed = of.capacity;
    auto const needed = [&](ticks more) -> std::optional<row<ticks>> {
        for (int rank = 0; rank < of.ranks; ++rank) of.capacity[rank] = allowed[rank] + more;
        if (told) {
            row<int> const bounds(told->bounds());
            auto const again = recompute_for(of, bounds);
            return again ? std::optional{bytes_of(of, bounds, *again)} : std::nullopt;
        }
        auto const plan = solve_partition(of);
        return plan ? std::optional{bytes_of(of, plan->bounds, plan->recompute)} : std::nullopt;
    };
    ticks low = 0, high = 1; // more than `low`, `high` at most
    while (!needed(high)) low = std::exchange(high, 2 * high);
    while (high - low > 1) {
        ticks const middle = low + (high - low) / 2;
        (needed(middle) ? high : low) = middle;
    }
    auto const bytes = *needed(high);
    int worst = 0;
    for (int rank = 1; rank < of.ranks; ++rank)
        if (bytes[rank] - allowed[rank] > bytes[worst] - allowed[worst]) worst = rank;
    throw memory_error(worst, static_cast<std::size_t>(allowed[worst] + high), static_cast<std::size_t>(allowed[worst]),
                       told.has_value());
}

/// The layers to recompute under a partition. Throws memory_error naming the rank that lacks most.
template <class = void>
[[nodiscard]] auto require_recompute(partition_problem const& of, partition const& cut) -> row<int> {
    if (auto found = recompute_for(of, row<int>(cut.bounds()))) return *std::move(found);
    refuse_memory(of, cut);
}

/// `first`, or, if that does not fit into memory and was not `told`, the best partition that does. Throws memory_error.
template <class>
auto fit_into_memory(partition_problem const& of, partition const& first, bool told) -> fitted_layers {
    if (told) return {first, require_recompute(of, first)};
    if (auto found = recompute_for(of, row<int>(first.bounds()))) return {first, *std::move(found)};
    auto const fits = solve_partition(of);
    if (!fits) refuse_memory(of, std::nullopt);
    return {partition::given(fits->bounds, first.layers()), fits->recompute};
}

} // namespace copipe
