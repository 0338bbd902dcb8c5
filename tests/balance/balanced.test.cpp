// SPDX-License-Identifier: Apache-2.0
// When layers move and where to, against every partition there is and against knowing the future.
#include "copipe/balance/balanced.hpp"

#include "cases.hpp"
#include "catch.hpp"
#include "says.hpp"

#include <functional>
#include <random>

using namespace copipe;
using enum stage_order;

namespace {

/// A training run that takes no time: what its layers cost and how slow its ranks are, step by step.
struct world {
    stage_map where;
    int layers, micro_batches;
    std::function<double(int step, int layer)> cost;
    std::function<double(int step, int rank)> slow = [](int, int) { return 1.0; };
    double noise = 0; ///< standard deviation of each measured time
    double pause = 0; ///< what a move takes
    unsigned seed = 1;

    /// One micro-batch on each rank.
    [[nodiscard]] row<double> ranks(int step, partition const& cut) const {
        row<double> times(where.ranks);
        for (int copy = 0; copy < where.copies(); ++copy)
            for (int stage = 0; stage < where.stages(); ++stage)
                for (int i = cut.first(stage), rank = where.rank_of(stage, copy); i < cut.last(stage); ++i)
                    times[rank] += cost(step, i) * slow(step, rank);
        return times;
    }
    [[nodiscard]] double slowest(int step, partition const& cut) const {
        return std::ranges::max(ranks(step, cut));
    }
    [[nodiscard]] double seconds(int step, partition const& cut) const {
        auto const times = ranks(step, cut);
        double const first = where.order == single ? std::accumulate(times.begin(), times.end(), 0.0)
                                                          : slowest(step, cut);
        return first + (micro_batches - 1) * slowest(step, cut);
    }
    [[nodiscard]] std::vector<partition> partitions() const {
        std::vector<partition> all;
        std::vector<int> bounds{0};
        auto const extend = [&](auto const& self) -> void {
            int const left = where.stages() - static_cast<int>(bounds.size()) + 1;
            if (left == 0) {
                if (bounds.back() == layers) all.push_back(partition::given(bounds, layers));
                return;
            }
            for (int end = bounds.back() + 1; end <= layers - left + 1; ++end) {
                bounds.push_back(end);
                self(self);
                bounds.pop_back();
            }
        };
        extend(extend);
        return all;
    }
};

struct outcome {
    double seconds = 0;
    std::vector<int> moves{}; ///< steps after which layers moved
    partition last;
};

template <balancer Balancer>
outcome train(world const& w, Balancer& decide, partition start, int steps, int window = 10) {
    outcome done{.last = std::move(start)};
    measurement_window seen(w.layers, w.where, w.micro_batches, window);
    std::mt19937_64 random(w.seed);
    std::normal_distribution<double> normal;
    for (int step = 0; step < steps; ++step) {
        for (int at = 0; at < w.where.copies() * w.where.stages(); ++at) {
            int const stage = at % w.where.stages(), rank = w.where.rank_of(stage, at / w.where.stages());
            for (int i = done.last.first(stage); i < done.last.last(stage); ++i)
                for (pass const what : {pass::forward, pass::backward_input, pass::backward_weight})
                    seen.record(rank, i, what,
                                w.cost(step, i) * w.slow(step, rank) / 3 * (1 + w.noise * normal(random)));
        }
        for (int rank = 0; rank < w.where.ranks; ++rank) seen.probe(rank, w.slow(step, rank));
        double const seconds = w.seconds(step, done.last);
        done.seconds += seconds;
        seen.end_step(static_cast<std::uint64_t>(step) + 1, seconds);
        if ((step + 1) % decide.check_every() != 0) continue;
        auto facts = seen.summary();
        if (!facts) continue;
        facts->bytes.assign(static_cast<std::size_t>(w.layers), 100);
        facts->move_seconds = w.pause;
        if (auto const to = decide.propose(*facts, done.last)) {
            done.seconds += w.pause;
            done.moves.push_back(step + 1);
            done.last = *to;
            seen.moved();
        }
    }
    return done;
}

double draw(std::mt19937_64& random, double least, double most) {
    return std::uniform_real_distribution<double>(least, most)(random);
}

/// Costs that stay as they are.
auto steady(std::vector<double> costs) {
    return [costs = std::move(costs)](int, int at) { return costs[static_cast<std::size_t>(at)]; };
}
std::vector<double> any_costs(std::mt19937_64& random, int count, double least, double most) {
    std::vector<double> costs;
    for (int i = 0; i < count; ++i) costs.push_back(draw(random, least, most));
    return costs;
}

auto const equal = [](int, int) { return 1.0; };

} // namespace

TEST_CASE("layers move to the best partition of all there are, on every placement") {
    std::mt19937_64 random(5);
    for (int round = 0; round < 60; ++round) {
        row<stage_map> const ways{{single, 2}, {loop, 2, 2}, {v, 2}, {bidirectional, 4}, {single, 4}};
        stage_map const where = ways[round % 5];
        int const layers = 4 + static_cast<int>(random() % 5);
        world const w{where, layers, 8, steady(any_costs(random, layers, 0.1, 2)),
                      steady(any_costs(random, where.ranks, 1, 3))};
        double least = 1e9;
        for (auto const& each : w.partitions()) least = std::min(least, w.slowest(0, each));
        balanced decide{{.check_every = 10, .slack = 0, .caution = 0}};
        auto const done = train(w, decide, partition::even(layers, where.stages()), 200);
        INFO("round " << round << ", " << layers << " layers: " << decide.last_decision().text());
        CHECK(w.slowest(0, done.last) == Approx(least).epsilon(1e-3)); // slowness is known in thousandths
        CHECK(done.moves.size() <= 1);
    }
}

TEST_CASE("of partitions near the best, layers move to the one that moves the fewest bytes") {
    std::mt19937_64 random(6);
    for (int round = 0; round < 40; ++round) {
        world const w{{single, 3}, 12, 8, steady(any_costs(random, 12, 0.5, 1.5))};
        auto const start = partition::given({0, 2, 4, 12}, 12);
        auto const moving = [&](partition const& to) {
            int count = 0;
            for (int layer = 0; layer < 12; ++layer) {
                auto const on = [&](partition const& cut) { return (layer >= cut.last(0)) + (layer >= cut.last(1)); };
                count += on(start) != on(to);
            }
            return count;
        };
        balanced decide{{.check_every = 10, .slack = 0.1, .caution = 0}};
        auto const done = train(w, decide, start, 10);
        REQUIRE(done.moves.size() == 1);
        double least = 1e9;
        for (auto const& each : w.partitions()) least = std::min(least, w.slowest(0, each));
        INFO("round " << round);
        CHECK(w.slowest(0, done.last) <= 1.1 * least * (1 + 1e-6));
        CHECK(decide.last_decision().bytes == 100 * moving(done.last));
        for (auto const& each : w.partitions())
            if (w.slowest(0, each) <= 1.1 * least * (1 - 1e-6)) CHECK(moving(done.last) <= moving(each));
    }
}

TEST_CASE("no plan needs more memory than a rank has, and where none fits nothing moves") {
    measurements seen{.step = 10, .where = {single, 2}, .micro_batches = 4};
    seen.layers = seen.held_out = {{1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {9, 9, 9}};
    seen.slowness = {1, 1};
    seen.step_seconds = 1;
    seen.bytes = {10, 10, 10, 10};
    seen.memory.activations = {1, 1, 1, 1};
    seen.memory.in_flight = {2, 1};
    seen.memory.capacity = {24, 30};
    auto const even = partition::even(4, 2);
    balanced decide{{.check_every = 10}};
    CHECK_FALSE(decide.propose(seen, even)); // three layers would need 36 bytes on rank 0
    seen.memory.capacity = {36, 30};
    seen.step = 20;
    auto const to = decide.propose(seen, even);
    REQUIRE(to);
    CHECK(to->bounds() == std::vector{0, 3, 4});
    seen.memory.capacity = {5, 5};
    CHECK_FALSE(decide.propose(seen, even));
    CHECK_THAT(decide.last_decision().text(), says("no partition fits into memory"));
}

TEST_CASE("for one change, at most the cost of a move is lost against knowing the future") {
    for (int seed = 0; seed < cases(300); ++seed) {
        std::mt19937_64 random(static_cast<unsigned>(seed));
        auto const before = any_costs(random, 9, 0.5, 1.5), after = any_costs(random, 9, 0.2, 2);
        int const change = 20 + static_cast<int>(random() % 40), steps = change + static_cast<int>(random() % 400);
        int const every = 1 + static_cast<int>(random() % 10);
        world w{{single, 3}, 9, 4,
                [&](int step, int at) { return (step < change ? before : after)[static_cast<std::size_t>(at)]; }};
        auto const all = w.partitions();
        auto const at_first = *std::ranges::min_element(all, {}, [&](auto const& each) { return w.slowest(0, each); });
        w.pause = w.seconds(0, at_first) * draw(random, 1, 60);
        // Knowing the future: stay, or move right at the change. The new costs are the median after 3 of 5 steps of
        // each half of the window, and the next look may be `every` steps off.
        double stay = 0, moved = 1e18, unseen = 0;
        for (int step = 0; step < steps; ++step) stay += w.seconds(step, at_first);
        for (auto const& each : all) {
            double sum = w.pause;
            for (int step = 0; step < steps; ++step) sum += w.seconds(step, step < change ? at_first : each);
            moved = std::min(moved, sum);
            unseen = std::max(unseen, (6 + every) * (w.seconds(steps, at_first) - w.seconds(steps, each)));
        }
        balanced decide{{.check_every = every, .slack = 0, .caution = 0}};
        auto const done = train(w, decide, at_first, steps);
        INFO("seed " << seed << ", change after " << change << " of " << steps << ", looks every " << every
                     << ", a move takes " << w.pause << ", moves " << done.moves.size());
        CHECK(done.seconds <= std::min(stay, moved) + w.pause + unseen + 1e-6);
        CHECK(done.moves.size() <= 1);
    }
}

TEST_CASE("a dearer move waits until staying has cost as much, however long all was well") {
    world w{{single, 2}, 8, 4, [](int step, int layer) { return step >= 1000 && layer < 2 ? 3.0 : 1.0; }};
    w.noise = 0.02;
    for (double const pause : {200, 400, 1000}) {
        w.pause = pause;
        balanced decide{{.check_every = 10}};
        auto const done = train(w, decide, partition::even(8, 2), 3000);
        REQUIRE(done.moves.size() == 1);
        double const lost = w.seconds(1000, partition::even(8, 2)) - w.seconds(1000, done.last);
        INFO("a move takes " << pause << ", came after step " << done.moves[0] << ", each step lost " << lost);
        CHECK((done.moves[0] - 1000) * lost > pause - 11 * lost);
        CHECK((done.moves[0] - 1000) * lost < 1.2 * pause + 11 * lost);
    }
}

TEST_CASE("on a stable noisy run nothing moves in thousands of looks") {
    std::mt19937_64 random(11);
    std::vector<double> uneven(61, 1);
    uneven[0] = 1.7;
    uneven[60] = 2.3;
    std::vector<world> const worlds{
        {{single, 8}, 61, 32, steady(uneven), equal, 0.05},
        {{single, 2}, 24, 8, steady(any_costs(random, 24, 0.5, 1.5)), equal, 0.02},
        {{bidirectional, 4}, 16, 16, equal, equal, 0.1},
        {{v, 3}, 20, 8, equal, steady({1, 2, 1.3}), 0.03},
    };
    for (world const& w : worlds) {
        balanced settle{{.check_every = 10, .slack = 0, .caution = 0}}, decide{{.check_every = 5}};
        world exact = w;
        exact.noise = 0;
        auto const start = train(exact, settle, partition::even(w.layers, w.where.stages()), 100).last;
        auto const done = train(w, decide, start, cases(15'000)); // 3,000 looks
        INFO(w.layers << " layers on " << w.where.ranks << " ranks, last: " << decide.last_decision().text());
        CHECK(done.moves.empty());
    }
}

TEST_CASE("expert loads that jitter from step to step cost less than 1 % of what staying costs") {
    for (unsigned seed = 1; seed <= static_cast<unsigned>(cases(5)); ++seed) {
        std::mt19937_64 random(seed);
        std::vector<std::vector<double>> loads;
        for (int step = 0; step < 3000; ++step) loads.push_back(any_costs(random, 32, 0.4, 1.6));
        world const w{{single, 8}, 64, 32, [&](int step, int layer) {
                          return layer % 2 ? loads[static_cast<std::size_t>(step)][static_cast<std::size_t>(layer / 2)]
                                           : 1;
                      }};
        balanced decide{{.check_every = 10}};
        balanced still{{.check_every = 1'000'000}};
        auto const start = partition::even(64, 8);
        double const stayed = train(w, still, start, 3000).seconds;
        auto const done = train(w, decide, start, 3000);
        INFO("seed " << seed << ", moves " << done.moves.size());
        CHECK(done.seconds <= 1.01 * stayed);
    }
}

TEST_CASE("a rank that throttles and recovers again and again makes layers move ever more rarely") {
    for (int const period : {4, 20, 50, 120}) {
        world w{{single, 8}, 64, 32, equal, [&](int step, int rank) {
                    return rank == 3 && step / period % 2 == 1 ? 2.0 : 1.0;
                }};
        w.pause = 2 * w.seconds(0, partition::even(64, 8));
        balanced decide{{.check_every = 10}};
        balanced still{{.check_every = 1'000'000}};
        double const stayed = train(w, still, partition::even(64, 8), 3000).seconds;
        auto const done = train(w, decide, partition::even(64, 8), 3000);
        INFO("period " << period << ", moves " << done.moves.size() << ", " << done.seconds / stayed);
        CHECK(done.seconds < stayed);
        CHECK(static_cast<int>(done.moves.size()) <= 3000 / period);
        if (period <= 20) CHECK(done.moves.size() <= 40); // of 75 times or more
    }
}

TEST_CASE("steps that take far too long, on any number of ranks, move nothing") {
    world const w{{single, 4}, 16, 8, equal,
                  [](int step, int rank) { return step % 9 == 4 ? (rank == step % 4 ? 1000.0 : 40.0) : 1.0; }};
    balanced decide{{.check_every = 5}};
    CHECK(train(w, decide, partition::even(16, 4), 1000).moves.empty());
}

TEST_CASE("a plan that wins only on the measurements that it was fitted to is not taken") {
    measurements seen{.step = 100, .where = {single, 2}, .micro_batches = 4};
    seen.layers = {{4, 4, 4}, {4, 4, 4}, {1, 1, 1}, {1, 1, 1}};
    seen.held_out = {{1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}};
    seen.slowness = {1, 1};
    seen.step_seconds = 1;
    seen.bytes = {1, 1, 1, 1};
    balanced decide{{.caution = 0}};
    CHECK_FALSE(decide.propose(seen, partition::even(4, 2)));
    CHECK_THAT(decide.last_decision().text(), says("does not hold on other measurements"));
    seen.held_out = seen.layers;
    seen.step = 200;
    CHECK(decide.propose(seen, partition::even(4, 2)).has_value());
    CHECK_THAT(decide.last_decision().text(), says("step 200: layers move"));
}

TEST_CASE("the bytes of a move are those of the busiest rank, both copies of a layer counted") {
    row<std::size_t> const bytes{1, 2, 4, 8};
    CHECK(busiest_transfer(stage_map{single, 2}, {0, 2, 4}, {0, 2, 4}, bytes) == 0);
    CHECK(busiest_transfer(stage_map{single, 2}, {0, 2, 4}, {0, 3, 4}, bytes) == 4);
    CHECK(busiest_transfer(stage_map{single, 3}, {0, 1, 2, 4}, {0, 2, 3, 4}, bytes) == 4); // each passes one on
    CHECK(busiest_transfer(stage_map{v, 2}, {0, 1, 2, 3, 4}, {0, 1, 2, 3, 4}, bytes) == 0);
    // DualPipe on two ranks: layer 2 goes from stage 1 to 0, so from rank 1 to 0 and from rank 0 to 1
    CHECK(busiest_transfer(stage_map{bidirectional, 2}, {0, 2, 4}, {0, 3, 4}, bytes) == 4);
}
