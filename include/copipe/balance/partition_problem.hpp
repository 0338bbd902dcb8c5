// SPDX-License-Identifier: Apache-2.0
// What is to be cut into stages, and what the stages are to run on.
#pragma once

#include "copipe/balance/bottleneck.hpp"
#include "copipe/balance/row.hpp"
#include "copipe/error.hpp"

#include <algorithm>
#include <initializer_list>
#include <numeric>
#include <string>

namespace copipe {

/// How stages lie on ranks. Stages are numbered in the order of the model's layers.
enum class stage_order {
    single,        ///< stage s on rank s
    best,          ///< one stage per rank, ranks in the order that is best
    loop,          ///< stage s on rank s mod P (interleaved schedules)
    v,             ///< 2P stages, s and 2P-1-s on one rank (DualPipeV, ZBV)
    bidirectional, ///< P stages, s and P-1-s on both the ranks s and P-1-s (DualPipe)
    replicated,    ///< as many stages as is best, each on one or more ranks that share its micro-batches (PipeDream)
};

/// Which ranks hold which stages of a model.
struct stage_map {
    stage_order order = stage_order::single;
    int ranks = 1;
    int stages_per_rank = 1; ///< of `loop`

    [[nodiscard]] int stages() const noexcept {
        return ranks * (order == stage_order::loop ? stages_per_rank : order == stage_order::v ? 2 : 1);
    }
    /// On how many ranks each stage is.
    [[nodiscard]] int copies() const noexcept { return order == stage_order::bidirectional ? 2 : 1; }
    [[nodiscard]] int rank_of(int stage, int copy = 0) const noexcept {
        if (order == stage_order::v) return std::min(stage, stages() - 1 - stage);
        return copy > 0 ? ranks - 1 - stage : stage % ranks;
    }
    [[nodiscard]] bool operator==(stage_map const&) const = default;
};

/// The least common multiple of 1, 2, ..., `ranks`, into which any number of replicas divides; at most 2^60.
inline ticks common_share(int ranks) {
    ticks unit = 1;
    for (ticks r = 2; r <= ranks; ++r) unit = std::min(unit / std::gcd(unit, r), (ticks{1} << 60) / r) * r;
    return unit;
}

/// A model as a chain of layers, and the ranks to spread it over. A row that is empty is an option not taken.
struct partition_problem {
    stage_order order = stage_order::single;
    int ranks = 1;
    int stages_per_rank = 1;    ///< of `loop`
    int loop_limit = 1 << 20;   ///< stages that a probe of `loop` may try: enough for 20 layers, often for far more
    bool allow_empty = false;   ///< stages may be without layers
    bool overlapped = false;    ///< `transfer` takes its link's time instead of adding to both its stages'
    bool lock_step = false;     ///< `bidirectional`: a rank's stages take turns at forward and backward, one beside the
                                ///< other; the time is that of the longer of the two sums
    int micro_batches = 0;      ///< minimise the whole step, the sum of all stages + (micro_batches - 1) times the
                                ///< slowest, instead of the slowest alone; 0: no
    ticks sync = 0;             ///< `replicated`: r replicas of a layer exchange 2 (r-1) `sync` `parameters`

    row<ticks> weights{};       ///< [layers] time of a layer on a rank of slowness 1
    row<ticks> forward{};       ///< [layers] the forward part of it, for `lock_step` and for recomputation
    row<row<ticks>> costs{};    ///< [ranks][layers] time on each rank, in place of `weights`
    row<ticks> slow{};          ///< [ranks] factor on all times of a rank, at least 1
    row<ticks> transfer{};      ///< [layers + 1] time of the message before each layer on a link of slowness 1
    row<ticks> link{};          ///< [stages - 1] factor on the message from each stage to the next

    row<ticks> parameters{};    ///< [layers] bytes of a layer, needed once
    row<ticks> activations{};   ///< [layers] bytes of a layer, needed per micro-batch in flight
    row<ticks> checkpoint{};    ///< [layers] bytes in place of `activations` if the layer is recomputed
    ticks recompute_space = 0;  ///< bytes that a rank needs besides where any of its layers is recomputed
    row<ticks> fixed{};         ///< [ranks] bytes that a rank needs besides
    row<ticks> in_flight{};     ///< [ranks] micro-batches in flight, of two stages in that nearer to the first layer;
                                ///< on the upper half of `bidirectional` ranks, in that nearer to the last; of `loop`
                                ///< [stages] instead, as `restored`
    row<ticks> in_flight_far{}; ///< [ranks] micro-batches in flight in the rank's other stage
    row<ticks> restored{};      ///< [ranks] of `in_flight`, those between input and weight gradient: recomputed layers
                                ///< have their activations back then
    row<ticks> restored_far{};  ///< [ranks] the same of `in_flight_far`
    row<ticks> capacity{};      ///< [ranks] bytes that a rank has

    [[nodiscard]] int layers() const noexcept { return (costs.empty() ? weights : costs[0]).count(); }
    [[nodiscard]] int stages() const noexcept { return stage_map{order, ranks, stages_per_rank}.stages(); }
    [[nodiscard]] bool mirrored() const noexcept {
        return order == stage_order::v || order == stage_order::bidirectional;
    }
    /// The rank that a stage is on, the lower of two.
    [[nodiscard]] int rank_of(int stage) const noexcept {
        return mirrored() ? std::min(stage, stages() - 1 - stage) : stage % ranks;
    }
    /// The factor on times of the stages of a rank; of the slower rank where they are on two; of `rank` + 1 replicas,
    /// in units of 1 / common_share(ranks).
    [[nodiscard]] ticks slowness(int rank) const noexcept {
        if (order == stage_order::replicated) return common_share(ranks) / (rank + 1);
        if (slow.empty()) return 1;
        return order == stage_order::bidirectional ? std::max(slow[rank], slow[ranks - 1 - rank]) : slow[rank];
    }
};

/// A problem that contradicts itself, or exceeds 64 bits; `field` names the member of partition_problem at fault.
class partition_problem_error : public error {
public:
    partition_problem_error(std::string const& at_fault, std::string const& sentence)
        : error("`" + at_fault + "` " + sentence), field(at_fault) {}
    std::string field;
};

/// Throws partition_problem_error where sizes, signs or options of a problem do not agree.
template <class = void> void require_solvable(partition_problem const& p) {
    using enum stage_order;
    auto const require = [](bool right, char const* field, char const* sentence) {
        if (!right) throw partition_problem_error(field, sentence);
    };
    char const* const misplaced = "does not go with this order of stages.";
    bool const one_each = p.order == single, in_order = one_each || p.mirrored();
    int const layers = p.layers();
    require(p.ranks >= 1 && p.stages_per_rank >= 1, "ranks", "must be at least 1.");
    require(p.order != bidirectional || p.ranks % 2 == 0, "ranks", "must be even where stages are bidirectional.");
    require(layers >= 1, p.costs.empty() ? "weights" : "costs", "must have at least one layer.");
    require(!p.mirrored() || layers <= 10'000, "weights", "may have 10000 layers where stages are mirrored.");
    require((p.order != loop && p.order != best) || p.stages() <= 4096, "ranks",
            "may have 4096 stages in all where they are dealt out in loops, or in the best order.");
    require(p.costs.empty() || (one_each && p.costs.count() == p.ranks), "costs", "must have a row per rank.");
    require(!p.allow_empty || in_order || p.order == best, "allow_empty", misplaced);
    require(!p.lock_step || p.order == bidirectional, "lock_step", misplaced);
    require(!p.overlapped || one_each, "overlapped", misplaced);
    require(p.micro_batches == 0 || one_each, "micro_batches", misplaced);
    require(p.micro_batches >= 0 && p.sync >= 0, "micro_batches", "and `sync` must not be negative.");

    struct option {
        char const* field;
        row<ticks> const& values;
        int size;
        bool applies, needed;
        enum { time, factor, bytes, count } kind;
    };
    double most[] = {1, 1.0 + p.ranks, 1, 1}; // no sum of its kind is larger
    auto const check = [&](option const& each) {
        require(!each.needed || !each.values.empty(), each.field, "is missing, and another option needs it.");
        require(each.values.empty() || each.applies, each.field, misplaced);
        require(each.values.empty() || each.values.count() == each.size, each.field, "has the wrong length.");
        for (ticks const value : each.values) {
            require(value >= (each.kind == option::factor), each.field, "has a number that is too small.");
            most[each.kind] += static_cast<double>(value);
        }
    };
    bool const recomputes = !p.checkpoint.empty(), limited = !p.capacity.empty() || recomputes;
    bool const kept = in_order || p.order == loop;
    int const holders = p.order == loop ? p.stages() : p.ranks;
    bool const linked = one_each && p.ranks > 1 && !p.transfer.empty();
    for (auto const& own : p.costs) check({"costs", own, layers, true, true, option::time});
    for (auto const& each : std::initializer_list<option>{
             {"weights", p.weights, layers, p.costs.empty(), false, option::time},
             {"forward", p.forward, layers, kept, p.lock_step || recomputes, option::time},
             {"slow", p.slow, p.ranks, p.order != replicated, false, option::factor},
             {"transfer", p.transfer, layers + 1, one_each || p.order == replicated, false, option::time},
             {"link", p.link, p.stages() - 1, one_each, linked, option::factor},
             {"parameters", p.parameters, layers, true, limited || p.sync > 0, option::bytes},
             {"activations", p.activations, layers, kept, limited, option::bytes},
             {"checkpoint", p.checkpoint, layers, kept && !p.lock_step, false, option::bytes},
             {"fixed", p.fixed, p.ranks, kept, false, option::bytes},
             {"in_flight", p.in_flight, holders, kept, limited, option::count},
             {"in_flight_far", p.in_flight_far, p.ranks, p.mirrored(), limited && p.mirrored(), option::count},
             {"restored", p.restored, holders, recomputes, false, option::count},
             {"restored_far", p.restored_far, p.ranks, recomputes && p.mirrored(), false, option::count},
             {"capacity", p.capacity, p.ranks, kept, limited, option::bytes}})
        check(each);
    for (int i = 0; p.lock_step && i < layers; ++i)
        require(p.forward[i] <= p.weights[i], "forward", "must not exceed `weights`.");
    double const exchanged = 2.0 * p.ranks * static_cast<double>(p.sync) * most[option::bytes];
    double const unit = p.order == replicated ? static_cast<double>(common_share(p.ranks)) : 1;
    require((most[option::time] * most[option::factor] + exchanged) * (p.micro_batches + 1) * unit < 1e18 &&
                most[option::bytes] * most[option::count] < 1e18,
            "weights", "or bytes make sums beyond 64 bits; use a coarser unit.");
}

/// The time of the slowest rank if layers could be cut anywhere and messages and memory cost nothing: no partition is
/// faster. For `replicated` times common_share(ranks).
template <class = void> double ideal_time(partition_problem const& p) {
    double work = 0, speed = 0;
    for (int i = 0; i < p.layers(); ++i) {
        ticks least = p.costs.empty() ? p.weights[i] : never;
        for (auto const& own : p.costs) least = std::min(least, own[i]);
        work += static_cast<double>(least);
    }
    for (int rank = 0; rank < p.ranks; ++rank) speed += 1.0 / static_cast<double>(p.slowness(rank));
    if (p.order == stage_order::replicated) speed = 1.0 / static_cast<double>(p.slowness(p.ranks - 1));
    return work * (p.order == stage_order::bidirectional && !p.lock_step ? 2 : 1) / speed;
}

} // namespace copipe
