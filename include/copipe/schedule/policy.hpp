// SPDX-License-Identifier: Apache-2.0
// What a schedule policy is, and the one checked way from a policy and a shape to the programs of all ranks.
#pragma once

#include "copipe/error.hpp"
#include "copipe/schedule/action.hpp"
#include "copipe/schedule/placement.hpp"
#include "copipe/schedule/shape.hpp"

#include <concepts>
#include <cstddef>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace copipe {

/// A rank's actions in the order in which they take its compute stream.
using program = std::vector<action>;

/// A schedule policy decides the order of work; it is a value that knows neither devices nor coroutines.
///
/// - `Policy::name`: the name users type.
/// - `policy.refusal(shape)`: empty if the policy can run the shape, else one sentence that names the rule.
/// - `policy.placed(shape)`: which rank holds which stage.
/// - `policy.program(shape, rank)`: what the rank runs; or, for policies that plan all ranks together,
///   `policy.programs(shape)`, index = rank. Called only with shapes that are not refused.
///
/// All are pure: the same arguments give the same answer, at compile time too. See `gpipe` for a conforming example.
template <class Policy>
concept schedule_policy = std::is_copy_constructible_v<Policy> && requires(Policy const policy, shape size) {
    { Policy::name } -> std::convertible_to<std::string_view>;
    { policy.refusal(size) } -> std::same_as<std::string_view>;
    { policy.placed(size) } -> std::same_as<placement>;
} && (requires(Policy const policy, shape size, int rank) {
    { policy.program(size, rank) } -> std::same_as<program>;
} || requires(Policy const policy, shape size) {
    { policy.programs(size) } -> std::same_as<std::vector<program>>;
});

/// A policy was asked for a shape that it cannot run.
class shape_error : public error {
public:
    shape_error(std::string_view policy, std::string_view broken_rule, shape asked)
        : error(std::string(policy) + " cannot run " + std::to_string(asked.micro_batches) + " micro-batches on " +
                std::to_string(asked.ranks) + (asked.ranks == 1 ? " rank: " : " ranks: ") + std::string(broken_rule)),
          rule(broken_rule), size(asked) {}

    std::string rule; ///< the policy's own sentence
    shape size;
};

/// Why the policy cannot run the shape, in one sentence; empty if it can.
template <schedule_policy Policy>
[[nodiscard]] constexpr std::string_view refusal(Policy const& policy, shape size) {
    if (size.ranks < 1) return "There must be at least one rank.";
    if (size.micro_batches < 1) return "There must be at least one micro-batch.";
    if (auto const rule = policy.refusal(size); !rule.empty()) return rule;
    return policy.placed(size).stages() > 65535 ? "A schedule has at most 65535 stages." : "";
}

/// Throws `shape_error` unless the rule is empty.
constexpr void require_no(std::string_view rule, std::string_view policy, shape size) {
    if (!rule.empty()) throw shape_error(policy, rule, size);
}

/// Throws `shape_error` if the policy cannot run the shape; in a constant expression that is a compile error.
template <schedule_policy Policy>
constexpr void require_shape(Policy const& policy, shape size) {
    require_no(refusal(policy, size), Policy::name, size);
}

/// A sentence as a template argument, so that compilers print it.
template <std::size_t Length>
struct sentence {
    char text[Length + 1] = {};

    constexpr explicit sentence(std::string_view words) {
        for (std::size_t i = 0; i < Length; ++i) text[i] = words[i];
    }
};

template <sentence Rule>
constexpr void refuse_shape() {
    static_assert(sizeof(Rule.text) == 1, "the policy cannot run this shape: refuse_shape<...> quotes its rule");
}

/// The same where policy and shape are constants, as a compile error that quotes the policy's sentence.
template <auto Policy, shape Size>
    requires schedule_policy<std::remove_const_t<decltype(Policy)>>
constexpr void require_shape() {
    constexpr std::string_view rule = refusal(Policy, Size);
    refuse_shape<sentence<rule.size()>(rule)>();
}

/// The programs of all ranks, index = rank. Throws `shape_error` if the policy cannot run the shape.
template <schedule_policy Policy>
[[nodiscard]] constexpr std::vector<program> programs(Policy const& policy, shape size) {
    require_shape(policy, size);
    if constexpr (requires { policy.programs(size); }) {
        return policy.programs(size);
    } else {
        std::vector<program> all;
        for (int rank = 0; rank < size.ranks; ++rank) all.push_back(policy.program(size, rank));
        return all;
    }
}

/// The same walk for evaluation: only forwards remain, an overlapped pair becomes its forward.
template <class = void> [[nodiscard]] constexpr program forward_only(program const& trained) {
    program kept;
    for (action const& each : trained)
        if (each.front().what == op::forward) kept.push_back(each.front());
    return kept;
}

} // namespace copipe
