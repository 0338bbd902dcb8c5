// SPDX-License-Identifier: Apache-2.0
// Data parallelism: several replicas of one pipeline, each with its own ranks and its share of the micro-batches. To
// the engine they are further copies of the model's stages, as DualPipe's second direction is.
#pragma once

#include "copipe/schedule/policy.hpp"

#include <cstdint>
#include <string_view>
#include <vector>

namespace copipe {

/// `replicas` pipelines under `Policy`, each on as many of the ranks: rank = replica * ranks per replica + rank in its
/// pipeline. Replica r takes the r-th share of the step's micro-batches; gradients are summed over replicas in their
/// order, so that all hold the same parameters, bit for bit.
template <schedule_policy Policy>
struct data_parallel {
    static constexpr std::string_view name = Policy::name;

    int replicas = 2;
    Policy each{};

    [[nodiscard]] constexpr std::string_view refusal(shape size) const {
        if (replicas < 1) return "There must be at least one replica.";
        if (size.ranks % replicas != 0) return "The ranks must be a multiple of the replicas.";
        if (size.micro_batches % replicas != 0) return "The micro-batches must be a multiple of the replicas.";
        return copipe::refusal(each, share(size));
    }
    [[nodiscard]] constexpr placement placed(shape size) const {
        placement where = each.placed(share(size));
        where.ranks *= replicas;
        where.replicas = replicas;
        return where;
    }
    [[nodiscard]] constexpr std::vector<copipe::program> programs(shape size) const {
        auto const one = copipe::programs(each, share(size));
        int const stages = each.placed(share(size)).stages();
        std::vector<copipe::program> all;
        for (int replica = 0; replica < replicas; ++replica)
            for (copipe::program const& own : one) all.push_back(moved(own, replica * stages));
        return all;
    }

private:
    [[nodiscard]] constexpr shape share(shape size) const {
        return {size.ranks / replicas, size.micro_batches / replicas};
    }
    /// The same on stages that are numbered `by` higher.
    [[nodiscard]] static constexpr copipe::program moved(copipe::program const& own, int by) {
        copipe::program there;
        for (action const& work : own) {
            chunk first = work.chunks().front(), last = work.chunks().back();
            first.stage = static_cast<std::uint16_t>(first.stage + by);
            last.stage = static_cast<std::uint16_t>(last.stage + by);
            there.emplace_back(first, last);
        }
        return there;
    }
};

} // namespace copipe
