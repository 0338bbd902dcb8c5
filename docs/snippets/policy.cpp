// SPDX-License-Identifier: Apache-2.0
// The examples of docs/concepts.md about schedules: a policy and a cost model of one's own, proofs and predictions.
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/evaluate.hpp"
#include "copipe/schedule/gpipe.hpp"
#include "copipe/schedule/interleaved.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/verify.hpp"
#include "copipe/schedule/zb_h1.hpp"
#include "copipe/schedule/zb_v.hpp"

#include <algorithm>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

void expect(bool holds, char const* what) {
    if (!holds) throw std::logic_error(what);
}

/// GPipe in rounds: the forwards of a few micro-batches, then their backwards. Holds the activations of one round, and
/// pays GPipe's bubble for each.
struct gpipe_in_rounds {
    static constexpr std::string_view name = "gpipe_in_rounds";
    int round = 4; ///< micro-batches of a round

    [[nodiscard]] constexpr std::string_view refusal(copipe::shape size) const {
        if (round < 1) return "A round has at least one micro-batch.";
        return size.micro_batches % round == 0 ? "" : "The micro-batches must fill whole rounds.";
    }
    [[nodiscard]] constexpr copipe::placement placed(copipe::shape size) const {
        return copipe::placement::single(size.ranks); // stage s on rank s
    }
    [[nodiscard]] constexpr copipe::program program(copipe::shape size, int rank) const {
        copipe::program order;
        for (int first = 0; first < size.micro_batches; first += round)
            for (copipe::op const what : {copipe::op::forward, copipe::op::backward})
                for (int m = first; m < first + round; ++m) order.emplace_back(what, rank, m);
        return order;
    }
};
static_assert(copipe::schedule_policy<gpipe_in_rounds>);

// Proved at compile time: complete, without deadlock, weight gradients in order.
static_assert(copipe::verify(gpipe_in_rounds{}, {.ranks = 4, .micro_batches = 16}));
static_assert(copipe::verify(gpipe_in_rounds{}, {.ranks = 4, .micro_batches = 16}).peak == std::vector{4, 4, 4, 4});
static_assert(copipe::refusal(gpipe_in_rounds{}, {.ranks = 4, .micro_batches = 18}) ==
              "The micro-batches must fill whole rounds.");

/// Stages of unequal cost, and messages that take time: `bytes` at `bytes_per_second`, arriving `delay` later.
struct measured_costs {
    std::vector<double> forward_seconds; ///< by stage; a backward takes twice as long
    double bytes;
    double bytes_per_second;
    double delay;

    [[nodiscard]] constexpr double seconds(copipe::action const& work) const {
        double sum = 0;
        for (copipe::chunk const& each : work.chunks()) // of an overlapped pair, both
            sum += forward_seconds[each.stage] * (each.what == copipe::op::backward ? 2 : 1);
        return sum;
    }
    [[nodiscard]] constexpr double occupancy(copipe::message const&) const { return bytes / bytes_per_second; }
    [[nodiscard]] constexpr double latency(copipe::message const&) const { return delay; }
};
static_assert(copipe::cost_model<measured_costs>);

template <copipe::schedule_policy Policy>
constexpr double predicted_seconds(Policy const& policy, copipe::shape size, measured_costs const& costs) {
    std::vector<copipe::program> const all = copipe::verified_programs(policy, size);
    return copipe::evaluate(all, policy.placed(size), size.micro_batches, costs).makespan;
}

// The second stage is slow, and a step is (M + P - 1) chunks of the slowest plus what the others add on the way.
static_assert(predicted_seconds(copipe::one_f_one_b{}, {.ranks = 2, .micro_batches = 4},
                                {.forward_seconds = {1, 2}, .bytes = 0, .bytes_per_second = 1, .delay = 0}) == 27);

/// A broken program: rank 1 wants to run its backward before its forward.
void proof_of_a_fault() {
    copipe::shape const size{.ranks = 2, .micro_batches = 1};
    std::vector<copipe::program> all = copipe::programs(copipe::gpipe{}, size);
    std::swap(all[1][0], all[1][1]);
    copipe::verdict const found = copipe::verify(all, copipe::gpipe{}.placed(size), size.micro_batches);
    expect(!found, "the fault is found");
    expect(found.why() == "Rank 1, action 0, 1B0: the forward has not been run before.", found.why().c_str());
}

/// Bubble of the busiest rank, and chunks live at most on any rank, in whole stages of a model cut into P.
template <copipe::schedule_policy Policy>
std::pair<double, double> bubble_and_memory(Policy const& policy, copipe::shape size) {
    auto const all = copipe::verified_programs(policy, size);
    auto const where = policy.placed(size);
    double const part = static_cast<double>(size.ranks) / where.model_stages(); // of the model, that is one stage
    auto const step = copipe::evaluate(all, where, size.micro_batches,
                                       copipe::uniform_costs{.forward = part, .input = part, .weight = part});
    double most = 0;
    double bubble = step.makespan;
    for (auto const& each : all) most = std::max(most, part * copipe::peak_activations(each));
    for (double const each : step.bubble) bubble = std::min(bubble, each);
    return {bubble / step.makespan, most};
}

template <copipe::schedule_policy Policy>
void print_row(Policy const& policy, copipe::shape size) {
    auto const [bubble, memory] = bubble_and_memory(policy, size);
    std::printf("%-16s bubble %4.1f %%, %4.1f stages' activations\n", std::string(Policy::name).c_str(), 100 * bubble,
                memory);
}

} // namespace

auto main() -> int {
    try {
        proof_of_a_fault();
        copipe::shape const size{.ranks = 4, .micro_batches = 16};
        print_row(copipe::gpipe{}, size);
        print_row(copipe::one_f_one_b{}, size);
        print_row(copipe::interleaved<2>{}, size);
        print_row(copipe::dualpipe{}, size);
        print_row(copipe::dualpipe_v{}, size);
        print_row(copipe::zb_h1{}, size);
        print_row(copipe::zb_v{}, size);
        print_row(gpipe_in_rounds{}, size);
    } catch (std::exception const& failure) {
        std::fprintf(stderr, "%s\n", failure.what());
        return 1;
    }
}
