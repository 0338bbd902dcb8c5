// SPDX-License-Identifier: Apache-2.0
#include "brute_force.hpp"
#include "catch.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/gpipe.hpp"
#include "copipe/schedule/interleaved.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/v_half.hpp"
#include "copipe/schedule/verify.hpp"
#include "copipe/schedule/zb_h2.hpp"

#include <random>

using namespace copipe;

namespace {

/// Rank 1 wants gradients before rank 0 has anything to give, and rank 0 wants them first: no program can go on.
struct crossed {
    static constexpr std::string_view name = "crossed";
    constexpr std::string_view refusal(shape) const { return ""; }
    constexpr placement placed(shape) const { return placement::single(2); }
    constexpr copipe::program program(shape, int rank) const {
        if (rank == 0) return {{op::forward, 0, 0}, {op::backward, 0, 0}, {op::forward, 0, 1}, {op::backward, 0, 1}};
        return {{op::forward, 1, 0}, {op::forward, 1, 1}, {op::backward, 1, 0}, {op::backward, 1, 1}};
    }
};
static_assert(!verify(crossed{}, shape{2, 2}));
static_assert(verify(crossed{}, shape{2, 2}).cycle.size() == 2);

verdict of_single(std::vector<program> const& all, int micro_batches) {
    return verify(all, placement::single(static_cast<int>(all.size())), micro_batches);
}

} // namespace

TEST_CASE("a deadlock is told as its cycle") {
    CHECK(verify(crossed{}, shape{2, 2}).why() ==
          "Rank 0, action 1, 0B0: deadlock: rank 0 (action 1) waits for the gradient of stage 1 for micro-batch 0, "
          "rank 1 (action 1) waits for the output of stage 0 for micro-batch 1.");
    CHECK_THROWS_AS(verified_programs(crossed{}, {2, 2}), schedule_error);
}

TEST_CASE("the first wrong action is named with its rank, its place and the broken rule") {
    auto all = programs(one_f_one_b{}, {2, 3});
    auto const broken_by = [&](auto change) {
        auto copy = all;
        change(copy);
        return of_single(copy, 3).why();
    };
    CHECK(of_single(all, 3).why() == "");
    CHECK(broken_by([](auto& p) { p[1][1] = p[1][0]; }) == "Rank 1, action 1, 1F0: this was done before.");
    CHECK(broken_by([](auto& p) { std::swap(p[1][0], p[1][1]); }) ==
          "Rank 1, action 0, 1B0: the forward has not been run before.");
    CHECK(broken_by([](auto& p) { p[1].pop_back(); }) ==
          "Rank 1 lacks 1I2: every micro-batch needs all of its work on every stage.");
    CHECK(broken_by([](auto& p) { p[1].back() = {op::backward_input, 1, 2}; }) ==
          "Rank 1 lacks 1W2: every micro-batch needs all of its work on every stage.");
    CHECK(broken_by([](auto& p) { p[0][0] = {op::forward, 1, 0}; }) ==
          "Rank 0, action 0, 1F0: the stage belongs to rank 1.");
    CHECK(broken_by([](auto& p) { p[0][0] = {op::forward, 2, 0}; }) ==
          "Rank 0, action 0, 2F0: there is no such stage, the last is 1.");
    CHECK(broken_by([](auto& p) { p[0][0] = {op::forward, 0, 3}; }) ==
          "Rank 0, action 0, 0F3: there is no such micro-batch, the last is 2.");
    CHECK(broken_by([](auto& p) { p[0][0] = {op::forward, 0, -1}; }) ==
          "Rank 0, action 0, 0F-1: there is no such micro-batch, the last is 2.");
    CHECK(broken_by([](auto& p) { p[0][1] = {op::backward_weight, 0, 0}; }) ==
          "Rank 0, action 1, 0W0: the input gradient has not been computed before.");
    CHECK(verify(all, placement::single(3), 3).why() == "there must be one program for each rank, as many as 3.");
    CHECK(verify(all, placement::single(2), 0).why() ==
          "a schedule has at least one rank, one stage and one micro-batch.");
    CHECK(verify(programs(dualpipe{}, {2, 4}), placement::bidirectional(2), 5).why() ==
          "two directions need two stages on each rank and an even number of micro-batches.");
}

TEST_CASE("weight gradients must accumulate in the order of micro-batches") {
    std::vector<program> const all{
        {{op::forward, 0, 0}, {op::forward, 0, 1}, {op::backward, 0, 1}, {op::backward, 0, 0}}};
    CHECK(of_single(all, 2).why() ==
          "Rank 0, action 2, 0B1: weight gradients accumulate in the order of micro-batches, next on this stage is 0.");
}

TEST_CASE("an overlapped pair is a forward and a full backward whose forward has ended") {
    chunk const f0{op::forward, 0, 0}, f1{op::forward, 0, 1}, b0{op::backward, 0, 0}, b1{op::backward, 0, 1};
    CHECK(of_single({{f0, {f1, b0}, b1}}, 2).why() == "");
    CHECK(of_single({{{f0, b0}, f1, b1}}, 2).why() ==
          "Rank 0, action 0, (0F0;0B0)OVERLAP_F_B: the forward has not been run before.");
    CHECK(of_single({{f0, {b0, f1}, b1}}, 2).why() ==
          "Rank 0, action 1, (0B0;0F1)OVERLAP_F_B: an overlapped pair is a forward and then a full backward.");
    CHECK(of_single({{f0, {f1, {op::backward_input, 0, 0}}, {op::backward_weight, 0, 0}, b1}}, 2).rule ==
          "an overlapped pair is a forward and then a full backward");
}

TEST_CASE("peak memory counts what each half of a backward frees") {
    std::vector<chunk_memory> const sizes{{.until_input = 5, .until_weight = 10},
                                          {.until_input = 0, .until_weight = 100}};
    auto const peak = [&](program const& own) {
        return peak_memory(own, [&](int stage) { return sizes[static_cast<std::size_t>(stage)]; });
    };
    chunk const f0{op::forward, 0, 0}, f1{op::forward, 0, 1}, g0{op::forward, 1, 0};
    chunk const i0{op::backward_input, 0, 0}, w0{op::backward_weight, 0, 0}, b0{op::backward, 0, 0};
    CHECK(peak({f0, i0, w0, f1}) == 15);
    CHECK(peak({f0, i0, f1, w0}) == 25);
    CHECK(peak({f0, f1, i0, w0}) == 30);
    CHECK(peak({f0, b0, f1}) == 15);
    CHECK(peak({f0, {f1, b0}}) == 30);
    CHECK(peak({f0, g0, b0}) == 115);
}

TEST_CASE("verifier and brute-force replay agree on thousands of mutants") {
    unsigned const seed = 20240601;
    CAPTURE(seed);
    std::mt19937 random(seed);
    auto const below = [&](std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n - 1)(random); };
    struct example {
        std::vector<program> all;
        placement where;
        int micro_batches;
    };
    std::vector<example> const sound{
        {programs(gpipe{}, {3, 4}), placement::single(3), 4},
        {programs(one_f_one_b{}, {3, 5}), placement::single(3), 5},
        {programs(dualpipe{}, {4, 8}), placement::bidirectional(4), 8},
        {programs(dualpipe_v{}, {2, 5}), placement::v(2), 5},
        {programs(dualpipe_v{}, {1, 3}), placement::v(1), 3},
        {programs(interleaved<2>{}, {3, 6}), placement::loop(3, 2), 6},
        {programs(interleaved_overlapped<3>{}, {2, 4}), placement::loop(2, 3), 4},
        {programs(zb_h2{}, {3, 5}), placement::single(3), 5},
        {programs(v_half{}, {3, 6}), placement::v(3), 6},
    };
    int rejected = 0, accepted = 0;
    for (int i = 0; i < 9000; ++i) {
        auto [all, where, m] = sound[below(sound.size())];
        auto& own = all[below(all.size())];
        std::size_t const at = below(own.size());
        switch (below(7)) {
        case 0: std::swap(own[at], own[below(own.size())]); break;
        case 1: std::swap(own[at], own[at + 1 < own.size() ? at + 1 : at]); break;
        case 2: own.erase(own.begin() + static_cast<std::ptrdiff_t>(at)); break;
        case 3: own.insert(own.begin() + static_cast<std::ptrdiff_t>(below(own.size())), own[at]); break;
        case 4: {
            auto& other = all[below(all.size())];
            action const moved = own[at];
            own.erase(own.begin() + static_cast<std::ptrdiff_t>(at));
            other.insert(other.begin() + static_cast<std::ptrdiff_t>(below(other.size() + 1)), moved);
            break;
        }
        case 5: {
            chunk const one = own[at].front();
            own[at] = {one.what, one.stage, one.micro_batch + (below(2) ? 1 : -1)};
            break;
        }
        default: {
            action const moved = own[at];
            own.erase(own.begin() + static_cast<std::ptrdiff_t>(at));
            own.insert(own.begin() + static_cast<std::ptrdiff_t>(below(own.size() + 1)), moved);
        }
        }
        auto const slow = brute_force::replay(all, where, m);
        auto const found = verify(all, where, m);
        INFO("mutant " << i << ": " << found.why() << "\n" << brute_force::rows(all));
        REQUIRE(static_cast<bool>(found) == slow.sound);
        REQUIRE(found.why().empty() == slow.sound);
        if (slow.sound) REQUIRE(found.peak == slow.peak);
        ++(slow.sound ? accepted : rejected);
    }
    CHECK(rejected > 1000);
    CHECK(accepted > 500);
}
