// SPDX-License-Identifier: Apache-2.0
// When devices and layers change while training: the engine in virtual time under four balancers. Prints one table:
// the time of each run over that of an oracle that knows what is to come and moves layers for free.
//   balance [all | 8 | 128 | types]     about 5 minutes in all on one core
#include "virtual_training.hpp"

#include "copipe/balance/balanced.hpp"
#include "copipe/observe/table.hpp"

#include <cstdio>
#include <exception>
#include <string_view>

namespace {

using namespace bench;

/// The best partition for true costs of a step, noise left out.
partition best_for(scenario const& of, int step) {
    copipe::measurements truth{.where = copipe::placement::single(of.ranks)};
    for (int layer = 0; layer < of.layers; ++layer) truth.layers.push_back(of.cost(step, layer));
    for (int rank = 0; rank < of.ranks; ++rank) truth.slowness.push_back(of.slowness(step, rank));
    auto const plan = copipe::solve_partition(copipe::problem_of(truth, truth.layers));
    return partition::given(plan->bounds, of.layers);
}

/// Always where it is best to be.
struct oracle {
    scenario const* of;
    static int check_every() { return 1; }
    [[nodiscard]] auto propose(copipe::measurements const& seen, partition const& now) const -> std::optional<partition> {
        auto const next = best_for(*of, std::min(static_cast<int>(seen.step), of->steps - 1));
        return next == now ? std::nullopt : std::optional{next};
    }
};

/// Goes where the last measurements were best, every 100 steps.
struct every_100 {
    static int check_every() { return 100; }
    [[nodiscard]] static auto propose(copipe::measurements const& seen, partition const& now) -> std::optional<partition> {
        auto const plan = copipe::solve_partition(copipe::problem_of(seen, seen.layers));
        auto const next = partition::given(plan->bounds, now.layers());
        return next == now ? std::nullopt : std::optional{next};
    }
};

template <class Balancer>
outcome train(scenario const& of, Balancer decide, bool free_moves = false) {
    auto const even = partition::even(of.layers, of.ranks);
    return virtual_training<Balancer>(of, decide, free_moves ? best_for(of, 0) : even, free_moves).run();
}

void row_of(copipe::text_table& table, scenario const& of) {
    auto const best = train(of, oracle{&of}, true), still = train(of, copipe::static_partition{}),
               often = train(of, every_100{}), ours = train(of, copipe::balanced{{.check_every = 10}});
    auto const over = [&](outcome const& each) { return copipe::decimal(each.seconds / best.seconds, 4); };
    table.row({of.name, std::to_string(of.ranks), std::to_string(of.steps), over(still), over(often), over(ours),
               std::to_string(often.moves), std::to_string(ours.moves), copipe::decimal(still.last_step / ours.last_step, 3),
               copipe::percent(ours.utilisation)});
    std::fprintf(stderr, "%d devices, %s\n", of.ranks, of.name.c_str());
}

} // namespace

int main(int count, char** arguments) {
    try {
        std::string_view const which = count > 1 ? arguments[1] : "all";
        copipe::text_table table;
        table.row({"scenario", "devices", "steps", "static", "every 100", "balanced", "moves of every 100",
                   "moves of balanced", "last step, static / balanced", "utilisation in it"});
        if (which == "all" || which == "8")
            for (auto const& each : changing(8, 61, 32, 1500)) row_of(table, each);
        if (which == "all" || which == "128")
            for (auto const& each : changing(128, 512, 16, 300)) row_of(table, each);
        if (which == "all" || which == "types") row_of(table, two_types(128, 768, 2048, 12));
        std::printf("%s", table.text().c_str());
    } catch (std::exception const& failure) {
        std::fprintf(stderr, "balance: %s\n", failure.what());
        return 1;
    }
}
