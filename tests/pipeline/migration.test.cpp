// SPDX-License-Identifier: Apache-2.0
#include "copipe/pipeline/migration.hpp"
#include "catch.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "pipeline/fixture.hpp"

#include <deque>

using namespace copipe;

TEST_CASE("a move of layers that is cancelled while a rank has yet to come leaves every rank as it was") {
    toy::setup how;
    how.threads = rank_threads::calling_thread;
    how.execution = host_execution::inline_;
    auto const layers = toy::network(8);
    toy::numbers const data;
    toy::pipeline still{dualpipe_v{}, {3, 6}, layers, how}, moving{dualpipe_v{}, {3, 6}, layers, how};
    auto const expected = still.train(data);
    auto const held = moving.memory_in_use();
    auto const to = partition::given({0, 2, 3, 4, 5, 6, 9}, 9);
    REQUIRE(to != moving.cut);
    for (int late = 0; late < 3; ++late) {
        std::deque<migration<host_device, toy::endpoint>> moves;
        for (auto& each : moving.ranks) moves.emplace_back(each, layers, moving.cut, to);
        auto const never_comes = [&]() -> task<> {
            moving.team.cancel();
            co_return;
        };
        CHECK_THROWS_AS(moving.team.run([&](int rank) {
            return rank == late ? never_comes() : moves[static_cast<std::size_t>(rank)].transfer();
        }),
                        cancelled);
        moving.recover();
        moves.clear();
        CHECK(moving.memory_in_use() == held);
    }
    CHECK(moving.train(data).same_bits(expected));
}
