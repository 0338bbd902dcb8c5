// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "copipe/schedule/dualpipe.hpp"
#include "copipe/schedule/dualpipe_v.hpp"
#include "copipe/schedule/gpipe.hpp"
#include "copipe/schedule/one_f_one_b.hpp"
#include "copipe/schedule/sequential.hpp"

using namespace copipe;

namespace {

template <class Policy>
void refuses(Policy policy, shape size, std::string const& rule) {
    try {
        static_cast<void>(programs(policy, size));
        FAIL(Policy::name << " accepted " << size.ranks << " ranks, " << size.micro_batches << " micro-batches");
    } catch (shape_error const& refused) {
        CHECK(refused.rule == rule);
        CHECK(refused.size == size);
        CHECK(std::string(refused.what()).find(rule) != std::string::npos);
    }
}

struct lacks_program {
    static constexpr std::string_view name = "incomplete";
    constexpr std::string_view refusal(shape) const { return ""; }
    constexpr placement placed(shape size) const { return placement::single(size.ranks); }
};
static_assert(!schedule_policy<lacks_program>);

template <auto Policy, shape Size>
concept quotable = requires { require_shape<Policy, Size>(); };
static_assert(quotable<dualpipe{}, shape{4, 8}>);

// As a constant, a refused shape does not compile.
template <auto Policy, shape Size>
concept compiles = requires { typename std::bool_constant<(programs(Policy, Size).size() > 0)>; };
static_assert(compiles<dualpipe{}, shape{4, 8}> && compiles<dualpipe_v{}, shape{3, 6}>);
static_assert(!compiles<dualpipe{}, shape{3, 8}> && !compiles<dualpipe{}, shape{4, 6}>);
static_assert(!compiles<dualpipe_v{}, shape{3, 5}> && !compiles<sequential{}, shape{2, 5}>);
static_assert(!compiles<gpipe{}, shape{0, 1}> && !compiles<one_f_one_b{}, shape{2, 0}>);

} // namespace

TEST_CASE("a policy refuses the shapes that it cannot run and names the rule") {
    refuses(dualpipe{}, {3, 8}, "DualPipe needs an even number of ranks.");
    refuses(dualpipe{}, {4, 9}, "DualPipe needs an even number of micro-batches, half each way.");
    refuses(dualpipe{}, {4, 6}, "DualPipe needs at least twice as many micro-batches as ranks.");
    refuses(dualpipe_v{}, {3, 5}, "DualPipeV needs at least twice as many micro-batches as ranks.");
    refuses(sequential{}, {2, 5}, "The sequential policy runs on exactly one rank.");
    refuses(gpipe{}, {0, 5}, "There must be at least one rank.");
    refuses(one_f_one_b{}, {-1, 5}, "There must be at least one rank.");
    refuses(one_f_one_b{}, {2, 0}, "There must be at least one micro-batch.");
    refuses(gpipe{}, {70000, 1}, "A schedule has at most 65535 stages.");
}

TEST_CASE("a refusal tells policy, size and rule in one sentence") {
    CHECK_THROWS_WITH(programs(dualpipe{}, {3, 8}),
                      "dualpipe cannot run 8 micro-batches on 3 ranks: DualPipe needs an even number of ranks.");
}

TEST_CASE("an evaluation keeps the forwards of every program in their order") {
    for (auto const& own : programs(dualpipe{}, {4, 12})) {
        std::vector<action> forwards;
        for (action const& each : own)
            for (chunk const& one : each.chunks())
                if (one.what == op::forward) forwards.emplace_back(one);
        CHECK(forwards.size() == 12);
        CHECK(forward_only(own) == forwards);
    }
}
