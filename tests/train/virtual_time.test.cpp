// SPDX-License-Identifier: Apache-2.0
// A trainer in virtual time: what takes real training minutes takes it no time, and what would hang says so.
#include "catch.hpp"
#include "says.hpp"

#include "copipe/async/wait_queue.hpp"
#include "copipe/device/simulated.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/train/simulated_update.hpp"
#include "copipe/train/trainer.hpp"

#include <array>
#include <cstdint>
#include <memory>

using namespace copipe;

namespace {

/// One second forward and two backward; the forward of one micro-batch waits for an event, if there is one.
struct minute {
    one_shot_event* event = nullptr;
    parameter w{.name = "w", .sizes = {4}};
    struct saved {};
    auto parameters() { return std::array{&w}; }
    auto forward(context<simulated_device>& c, tensor, saved&) const -> task<tensor> {
        if (event && c.micro_batch == 2) co_await event->wait();
        c.stream.launch(1);
        co_return c.make({1});
    }
    static auto backward_input(context<simulated_device>& c, tensor, saved&) -> tensor {
        c.stream.launch(1);
        return c.make({1});
    }
    static void backward_weight(context<simulated_device>& c, saved&) { c.stream.launch(1); }
};

struct nothing {
    static auto size() -> std::uint64_t { return 1; }
    static void load(std::uint64_t, host_array& input, host_array&) { input.resize<float>({1}, dtype::f32); }
};

auto options(simulation& clock) -> trainer_options<simulated_device> {
    return {.ranks = 2, .micro_batches = 4, .exec = &clock, .make_device = [&clock](int) {
                return std::make_unique<simulated_device>(clock);
            }};
}

} // namespace

TEST_CASE("a trainer in virtual time takes the seconds that its schedule needs") {
    simulation clock;
    model<simulated_device> layers;
    trainer<one_f_one_b, simulated_device> train{layers.add(minute{}).add(minute{}), options(clock)};
    CHECK(train.step(nothing{}).seconds == 4 * 3 + 3); // and the bubble of (P-1)(F+B)
    CHECK(train.step(nothing{}).seconds == 4 * 3 + 3);
    CHECK(clock.now() == 30);
}

TEST_CASE("a step that can make no progress throws at once, says who waits for whom, and the next one runs") {
    simulation clock;
    one_shot_event awaited;
    model<simulated_device> layers;
    trainer<one_f_one_b, simulated_device> train{layers.add(minute{}).add(minute{&awaited}), options(clock)};
    for (int i = 0; i < 2; ++i) {
        CHECK_THROWS_WITH(train.step(nothing{}),
                          says("rank 1 waits with the forward of stage 1, micro-batch 2, for what its layers await") &&
                              says("rank 0 waits with the backward of stage 0, micro-batch 2, for stage 1 of rank 1"));
        CHECK(train.steps_done() == 0);
    }
    awaited.set();
    CHECK(train.step(nothing{}).step == 0);
    CHECK(train.steps_done() == 1);
}
