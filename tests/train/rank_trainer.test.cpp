// SPDX-License-Identifier: Apache-2.0
#include "copipe/train/rank_trainer.hpp"
#include "catch.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/train/trainer.hpp"
#include "pipeline/toy.hpp"
#include "says.hpp"

#include <array>
#include <memory>
#include <stdexcept>
#include <string_view>

using namespace copipe;

namespace {

/// Plain descent that fails, on the host or in its launch, at the parameter of a value that it is told.
struct brittle_descent {
    enum class in { nothing, host, launch };
    static constexpr std::array<std::string_view, 0> state_names{};
    std::shared_ptr<in> fails = std::make_shared<in>(in::nothing);

    void update(host_stream& stream, parameter& p, std::uint64_t, double, double) const {
        bool const here = p.name == "last";
        if (here && *fails == in::host) throw std::runtime_error("no rate");
        stream.launch([here, fail = *fails == in::launch, n = p.count(), w = p.value.data(), g = p.gradient.data()] {
            if (here && fail) throw std::runtime_error("broken kernel");
            for (std::size_t i = 0; i < n; ++i) w[i] -= 0.01F * g[i];
        });
    }
};

} // namespace

TEST_CASE("an optimizer that fails is named with rank and step, and all ranks end") {
    model<host_device> layers;
    layers.add(toy::dense{}).add(toy::dense{}).add(toy::dense{});
    toy::dense last;
    last.w.name = "last";
    layers.add(last).add(toy::distance{});
    brittle_descent const update;
    trainer<dualpipe, host_device, static_partition, brittle_descent> with{
        layers, {.ranks = 2, .micro_batches = 4}, {}, {}, update};
    toy::numbers const data;
    with.step(data);
    for (auto const how : {brittle_descent::in::host, brittle_descent::in::launch}) {
        *update.fails = how;
        try {
            with.step(data);
            FAIL("no exception");
        } catch (update_error const& failed) {
            CHECK(failed.rank == 0); // both ranks hold a copy
            CHECK(failed.step == 1);
            CHECK_THAT(failed.what(), says(how == brittle_descent::in::host ? "no rate" : "broken kernel") &&
                                          says("load a checkpoint"));
        }
        *update.fails = brittle_descent::in::nothing;
        CHECK(with.steps_done() == 1);
    }
    with.step(data);
    CHECK(with.steps_done() == 2);
}
