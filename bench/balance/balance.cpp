// SPDX-License-Identifier: Apache-2.0
// When devices and layers change while training: the engine in virtual time under four balancers. Prints one table:
// the time of each run over that of an oracle that knows what is to come and moves layers for free.
//   balance [all | 8 | 128 | types]     a core a scenario; 128 takes 39 minutes of processor time
#include "virtual_training.hpp"

#include "copipe/balance/balanced.hpp"
#include "copipe/observe/table.hpp"
#include "copipe/plan/cost_table.hpp"
#include "copipe/schedule/evaluate.hpp"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <exception>
#include <future>
#include <string_view>
#include <thread>

namespace {

using namespace bench;

/// The best partition for a step's true costs, noise left out: one whose slowest device is fastest, and from there on,
/// unless steps are large, whatever makes the predicted step shorter.
class oracle {
public:
    partition operator()(scenario const& of, int step) {
        copipe::measurements truth{.where = {.ranks = of.ranks}};
        for (int layer = 0; layer < of.layers; ++layer) truth.layers.push_back(of.cost(step, layer));
        for (int rank = 0; rank < of.ranks; ++rank) truth.slowness.push_back(of.slowness(step, rank));
        auto const problem = copipe::problem_of(truth, truth.layers);
        if (best_ && problem.weights == known_.weights && problem.slow == known_.slow) return *best_;
        known_ = problem;
        row<int> const even(partition::even(of.layers, of.ranks).bounds());
        copipe::present_partition const from_even{even, row<copipe::ticks>(of.layers, 1)};
        auto bounds = copipe::solve_partition(problem, &from_even)->bounds;
        if (of.ranks * of.micro_batches < 20'000) {
            auto other = copipe::solve_partition(problem)->bounds;
            if (descend(of, truth, other) < descend(of, truth, bounds)) bounds = other;
        }
        best_ = partition::given(bounds, of.layers);
        return *best_;
    }

private:
    double descend(scenario const& of, copipe::measurements const& truth, row<int>& bounds) {
        if (programs_.empty()) programs_ = copipe::programs(copipe::one_f_one_b{}, {of.ranks, of.micro_batches});
        double best = seconds(of, truth, bounds);
        for (double before = 0; best != before;) {
            before = best;
            for (int cut = 1; cut < of.ranks; ++cut)
                for (int const shift : {1, -1}) {
                    auto trial = bounds;
                    trial[cut] += shift;
                    if (trial[cut] <= trial[cut - 1] || trial[cut] >= trial[cut + 1]) continue;
                    double const found = seconds(of, truth, trial);
                    if (found >= best) continue;
                    best = found;
                    bounds = trial;
                }
        }
        return best;
    }
    [[nodiscard]] double seconds(scenario const& of, copipe::measurements const& truth, row<int> const& bounds) const {
        copipe::cost_table costs{.where = copipe::placement::single(of.ranks), .stages = {}};
        for (int rank = 0; rank < of.ranks; ++rank) {
            copipe::cost_table::stage_cost sum{0, 0, 0};
            for (int layer = bounds[rank]; layer < bounds[rank + 1]; ++layer) {
                sum.forward += truth.slowness[rank] * truth.layers[layer].forward;
                sum.input += truth.slowness[rank] * truth.layers[layer].backward_input;
                sum.weight += truth.slowness[rank] * truth.layers[layer].backward_weight;
            }
            costs.stages.push_back(sum);
        }
        return copipe::evaluate(programs_, costs.where, of.micro_batches, costs).makespan;
    }

    std::optional<partition> best_;
    copipe::partition_problem known_;
    std::vector<copipe::program> programs_;
};

/// Goes where the last measurements were best, every 100 steps.
struct every_100 {
    static int check_every() { return 100; }
    [[nodiscard]] static auto propose(copipe::measurements const& seen, partition const& now)
        -> std::optional<partition> {
        auto const plan = copipe::solve_partition(copipe::problem_of(seen, seen.layers));
        auto const next = partition::given(plan->bounds, now.layers());
        return next == now ? std::nullopt : std::optional{next};
    }
};

/// A row of the table: the scenario under the four balancers.
auto run(scenario const& of) -> std::vector<std::string> {
    oracle knows;
    auto const start = partition::even(of.layers, of.ranks);
    auto const best = train(of, start, copipe::static_partition{}, std::ref(knows));
    auto const still = train(of, start, copipe::static_partition{});
    auto const often = of.steps > 100 ? train(of, start, every_100{}) : still;
    auto const ours = train(of, start, copipe::balanced{{.check_every = of.steps > 100 ? 100 : 10}});
    auto const over = [&](outcome const& each) { return copipe::decimal(each.seconds / best.seconds, 4); };
    return {of.name, std::to_string(of.ranks), std::to_string(of.steps), over(still), over(often), over(ours),
            std::to_string(often.moves), std::to_string(ours.moves),
            copipe::decimal(still.last_step / ours.last_step, 3), copipe::percent(ours.utilisation)};
}

/// The scenarios' rows, in their order. Every core runs one after the other.
auto run_all(std::vector<scenario> const& all) -> std::vector<std::vector<std::string>> {
    std::vector<std::vector<std::string>> rows(all.size());
    std::atomic<std::size_t> next = 0;
    auto const work = [&] {
        for (std::size_t which; (which = next++) < all.size();) {
            rows[which] = run(all[which]);
            std::fprintf(stderr, "%d devices, %s\n", all[which].ranks, all[which].name.c_str());
        }
    };
    std::vector<std::future<void>> cores(std::max(1U, std::thread::hardware_concurrency()));
    for (auto& core : cores) core = std::async(std::launch::async, work);
    for (auto& core : cores) core.get();
    return rows;
}

} // namespace

int main(int count, char** arguments) {
    try {
        std::string_view const which = count > 1 ? arguments[1] : "all";
        if (which != "all" && which != "8" && which != "128" && which != "types") {
            std::fprintf(stderr, "balance: no such part: %s (there are 8, 128 and types; without any, all)\n",
                         arguments[1]);
            return 2;
        }
        auto const wanted = [&](std::string_view part) { return which == "all" || which == part; };
        std::vector<scenario> all;
        auto const add = [&](std::vector<scenario> some) { all.insert(all.end(), some.begin(), some.end()); };
        if (wanted("8")) add(changing(8, 64, 32, 1500));
        if (wanted("128")) add(changing(128, 512, 256, 600));
        if (wanted("types")) add({two_types(128, 768, 2048, 11)});
        copipe::text_table table;
        table.row({"scenario", "devices", "steps", "static", "every 100", "balanced", "moves: every 100",
                   "balanced", "last step: static / balanced", "utilisation"});
        for (auto& each : run_all(all)) table.row(std::move(each));
        std::printf("%s", table.text().c_str());
    } catch (std::exception const& failure) {
        std::fprintf(stderr, "balance: %s\n", failure.what());
        return 1;
    }
}
