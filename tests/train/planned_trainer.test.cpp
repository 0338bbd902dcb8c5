// SPDX-License-Identifier: Apache-2.0
// What a trainer promises of a move of layers: on all ranks or on none, and not a bit of training changes.
#include "copipe/train/planned_trainer.hpp"
#include "catch.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/interleaved.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "pipeline/toy.hpp"
#include "temporary_folder.hpp"
#include "train/compiled.hpp"

#include <array>
#include <atomic>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

using namespace copipe;

namespace {

/// A layer that cannot be copied once `copies_left` has come down to zero.
struct brittle : toy::dense {
    static inline std::atomic<int> copies_left{-1};

    explicit brittle(std::string tie) : dense(std::move(tie)) {}
    brittle(brittle const& other) : dense(other) {
        if (copies_left >= 0 && copies_left-- == 0) throw std::runtime_error("no memory for a layer");
    }
    brittle(brittle&&) = default;
};

/// Eight layers, of which the first and the last are tied and two recomputed, and the distance.
auto brittle_network() -> model<host_device> {
    model<host_device> layers;
    for (int i = 0; i < 8; ++i) layers.add(brittle{i % 7 == 0 ? "ends" : ""});
    layers.add(toy::distance{}).recompute(2).recompute(6);
    return layers;
}

/// Counts the micro-batches of its life in a parameter that has no gradient.
struct counting : toy::dense {
    parameter seen{.name = "seen", .sizes = {1}};
    counting() = default;
    auto parameters() { return std::array{&w, &seen}; }
    auto forward(context<host_device>& c, tensor x, saved& s) -> tensor {
        c.stream.launch([count = seen.value.data()] { *count += 1; });
        return dense::forward(c, x, s);
    }
};

} // namespace

TEST_CASE("what a layer keeps from step to step in a parameter without a gradient moves with it") {
    model<host_device> layers;
    for (int i = 0; i < 4; ++i) layers.add(counting{});
    layers.add(toy::distance{});
    planned_trainer<> moving{plan_step(one_f_one_b{}, {2, 8}), layers, {.ranks = 2, .micro_batches = 8}};
    for (auto const& bounds : {std::vector{0, 1, 5}, {0, 4, 5}, {0, 2, 5}}) {
        moving.fit(toy::numbers{}, steps{3});
        moving.repartition(partition::given(bounds, 5));
    }
    moving.fit(toy::numbers{}, steps{1});
    for (int i = 0; i < 4; ++i) CHECK(moving.values("layers." + std::to_string(i) + ".seen") == std::vector{80.0F});
}

TEST_CASE("wherever a move of layers fails it has happened on no rank, and the next one leaves training as it was") {
    temporary_folder const folder;
    auto const checkpoint = [&](planned_trainer<>& of) { // parameters and optimizer state
        of.save(folder / "checkpoint");
        return contents(folder / "checkpoint");
    };
    auto const check = [&](auto policy, int ranks, std::vector<int> const& bounds, rank_threads threads) {
        trainer_options<> options{.ranks = ranks, .micro_batches = 8};
        options.threads = threads;
        planned_trainer<> still{plan_step(policy, {ranks, 8}), brittle_network(), options};
        planned_trainer<> moving{plan_step(policy, {ranks, 8}), brittle_network(), options};
        still.fit(toy::numbers{}, steps{2});
        moving.fit(toy::numbers{}, steps{2});
        partition const from = moving.layers(), to = partition::given(bounds, 9);
        std::string const before = checkpoint(moving);
        auto const in_use = [&] {
            std::vector<std::size_t> bytes;
            for (int rank = 0; rank < ranks; ++rank) bytes.push_back(moving.memory_in_use(rank));
            return bytes;
        };
        auto const held = in_use();
        int copies = 0;
        for (bool failed = true; failed; ++copies) {
            brittle::copies_left = copies;
            try {
                moving.repartition(to);
                failed = false;
            } catch (std::runtime_error const&) {
            }
            brittle::copies_left = -1;
            CAPTURE(policy.name, copies);
            REQUIRE(moving.layers() == (failed ? from : to));
            if (failed) REQUIRE(in_use() == held);
            REQUIRE(checkpoint(moving) == before);
        }
        CHECK(copies > 8); // every layer is copied at least once
        still.fit(toy::numbers{}, steps{2});
        moving.fit(toy::numbers{}, steps{2});
        CHECK(checkpoint(moving) == checkpoint(still));
    };
    check(one_f_one_b{}, 4, {0, 1, 2, 3, 9}, rank_threads::one_each);
    check(dualpipe{}, 4, {0, 6, 7, 8, 9}, rank_threads::one_each);
    check(dualpipe_v{}, 2, {0, 1, 2, 3, 9}, rank_threads::calling_thread);
    check(interleaved<>{}, 2, {0, 1, 2, 3, 9}, rank_threads::one_each);
}
