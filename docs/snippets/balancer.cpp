// SPDX-License-Identifier: Apache-2.0
// The examples of docs/balance.md: what a balancer sees, what `balanced` makes of it, and a balancer of one's own.
#include "copipe/balance/balanced.hpp"

#include <cstdio>
#include <exception>
#include <optional>
#include <stdexcept>

namespace {

void expect(bool holds, char const* what) {
    if (!holds) throw std::logic_error(what);
}

/// Hands one layer of the busiest stage to its neighbour. For schedules with one stage per rank.
class one_at_a_time {
public:
    [[nodiscard]] static auto check_every() -> int { return 50; }

    [[nodiscard]] auto propose(copipe::measurements const& seen, copipe::partition const& now) const
        -> std::optional<copipe::partition> {
        int busiest = 0;
        for (int stage = 1; stage < now.stages(); ++stage)
            if (seconds(seen, now, stage) > seconds(seen, now, busiest)) busiest = stage;
        bool const down = busiest + 1 < now.stages();
        auto bounds = now.bounds();
        bounds[static_cast<std::size_t>(down ? busiest + 1 : busiest)] += down ? -1 : 1;
        if (now.last(busiest) - now.first(busiest) == 1) return {}; // a stage needs a layer
        auto const next = copipe::partition::given(bounds, now.layers());
        int const receiver = down ? busiest + 1 : busiest - 1;
        if (seconds(seen, next, receiver) >= 0.95 * seconds(seen, now, busiest)) return {};
        return next;
    }

private:
    static auto seconds(copipe::measurements const& seen, copipe::partition const& cut, int stage) -> double {
        double sum = 0;
        for (int layer = cut.first(stage); layer < cut.last(stage); ++layer) sum += seen.layers[layer].total();
        return sum * seen.slowness[seen.where.rank_of(stage)];
    }
};
static_assert(copipe::balancer<one_at_a_time>);

/// Ten steps of two ranks, the second twice as slow, as an engine reports them.
auto measured(copipe::partition const& cut) -> copipe::measurements {
    copipe::stage_map const where{.ranks = 2};
    int const micro_batches = 4;
    copipe::measurement_window window(cut.layers(), where, micro_batches, 10);
    for (std::uint64_t step = 1; step <= 10; ++step) {
        for (int rank = 0; rank < 2; ++rank) {
            for (int layer = cut.first(rank); layer < cut.last(rank); ++layer) {
                for (int m = 0; m < micro_batches; ++m) { // one call per layer, pass and micro-batch
                    window.record(rank, layer, copipe::pass::forward, 0.010 * (rank + 1));
                    window.record(rank, layer, copipe::pass::backward_input, 0.010 * (rank + 1));
                    window.record(rank, layer, copipe::pass::backward_weight, 0.010 * (rank + 1));
                }
            }
            window.probe(rank, 0.001 * (rank + 1)); // a job that is the same on both
        }
        window.end_step(step, 1.2);
    }
    auto seen = window.summary().value();
    seen.bytes.assign(static_cast<std::size_t>(cut.layers()), 1'000'000'000);
    seen.bytes_per_second = 10e9;
    return seen;
}

} // namespace

auto main() -> int {
    try {
        auto const even = copipe::partition::even(9, 2);
        auto const seen = measured(even);
        expect(seen.slowness == copipe::row<double>{1, 2}, "the second rank is slow, its layers are not dear");

        copipe::balanced exact{{.check_every = 10}};
        auto const best = exact.propose(seen, even);
        std::printf("%s\n", exact.last_decision().text().c_str());
        expect(best && best->bounds() == std::vector{0, 6, 9}, "the slow rank gets half of the layers");

        one_at_a_time own;
        expect(own.propose(seen, even)->bounds() == std::vector{0, 6, 9}, "one layer moves");

        copipe::static_partition const given{"Et*3|tttmL"}; // the embedding and three layers, then the others
        expect(given.start(9, 2).bounds() == std::vector{0, 4, 9}, "as written");
    } catch (std::exception const& failure) {
        std::fprintf(stderr, "%s\n", failure.what());
        return 1;
    }
}
