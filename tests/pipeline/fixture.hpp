// SPDX-License-Identifier: Apache-2.0
// All ranks of a pipeline in this process, as the tests of the engine set them up: train, evaluate, look at gradients.
#pragma once

#include "pipeline/toy.hpp"

#include "copipe/pipeline/gradient_reduction.hpp"
#include "copipe/pipeline/rank_team.hpp"
#include "copipe/transport/in_process.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

namespace toy {

using endpoint = copipe::in_process<host_device>::endpoint;

struct setup {
    copipe::rank_threads threads = copipe::rank_threads::one_each;
    copipe::host_execution execution = copipe::host_execution::worker_thread;
    copipe::pipeline_options options{.lookahead = 4, .seed = 3, .listener = {}};
    std::optional<copipe::partition> cut{};
    copipe::timing layers = copipe::timing::off; ///< whether training steps time each layer
};

/// What a training step came to, for comparison to the bit.
struct outcome {
    std::vector<double> losses;               ///< by micro-batch
    std::vector<std::vector<float>> gradients; ///< by parameter
    bool copies_agree = true;                 ///< all copies of each parameter have the same gradient

    [[nodiscard]] auto loss() const -> double {
        double sum = 0;
        for (double each : losses) sum += each;
        return sum;
    }
    [[nodiscard]] auto same_bits(outcome const& other) const -> bool {
        if (losses.size() != other.losses.size() || gradients.size() != other.gradients.size()) return false;
        if (std::memcmp(losses.data(), other.losses.data(), losses.size() * sizeof(double)) != 0) return false;
        for (std::size_t i = 0; i < gradients.size(); ++i) {
            auto const& a = gradients[i];
            auto const& b = other.gradients[i];
            if (a.size() != b.size() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) != 0) return false;
        }
        return copies_agree && other.copies_agree;
    }
    /// Largest difference of a gradient's element, relative to the largest element of all.
    [[nodiscard]] auto distance_to(outcome const& other) const -> double {
        double most = 0, largest = 0;
        for (std::size_t i = 0; i < gradients.size(); ++i) {
            for (std::size_t j = 0; j < gradients[i].size(); ++j) {
                most = std::max(most, std::abs(static_cast<double>(gradients[i][j]) - other.gradients[i].at(j)));
                largest = std::max(largest, std::abs(static_cast<double>(gradients[i][j])));
            }
        }
        return most / largest;
    }
};

class pipeline {
public:
    template <copipe::schedule_policy Policy>
    pipeline(Policy const& policy, copipe::shape size, copipe::model<host_device> const& layers, setup const& how = {})
        : plan(copipe::plan_step(policy, size)),
          cut(how.cut ? *how.cut
                      : copipe::partition::even(static_cast<int>(layers.size()), plan.where.model_stages())),
          groups(copipe::parameter_groups(layers, cut, plan.where)), net(size.ranks), team(size.ranks, how.threads),
          layers_(how.layers) {
        for (int r = 0; r < size.ranks; ++r) {
            devices.emplace_back(how.execution);
            ranks.emplace_back(plan, cut, layers, r, devices.back(), net.connect(r), how.options);
            reductions.emplace_back(ranks.back(), groups);
        }
    }

    /// One training step on micro-batches `first` and on. Throws what a rank threw; then `recover` before the next.
    template <copipe::dataset Data>
    auto train(Data const& data, std::uint64_t first = 0) -> outcome {
        run_step(data, first);
        outcome result{.losses = losses(), .gradients = {}};
        for (copipe::parameter_group const& group : groups) {
            result.gradients.push_back(gradient(group.uses.front()));
            for (copipe::parameter_use const& use : group.uses) {
                auto const copy = gradient(use);
                auto const& front = result.gradients.back();
                result.copies_agree = result.copies_agree && copy.size() == front.size() &&
                                      std::memcmp(copy.data(), front.data(), copy.size() * sizeof(float)) == 0;
            }
        }
        return result;
    }
    template <copipe::dataset Data>
    void run_step(Data const& data, std::uint64_t first = 0) {
        copipe::batch const from{copipe::dataset_ref{data}, first};
        team.run([&](int r) { return step_of(static_cast<std::size_t>(r), from); });
    }
    /// Losses by micro-batch, forwards only.
    template <copipe::dataset Data>
    auto evaluate(Data const& data, std::uint64_t first = 0) -> std::vector<double> {
        copipe::batch const from{copipe::dataset_ref{data}, first};
        team.run([&](int r) { return ranks[static_cast<std::size_t>(r)].run(from, false); });
        return losses();
    }
    void recover() {
        team.run([&](int r) { return recover_one(static_cast<std::size_t>(r)); });
    }
    [[nodiscard]] auto losses() -> std::vector<double> {
        std::vector<double> sum(static_cast<std::size_t>(plan.micro_batches));
        for (auto& each : ranks) {
            for (std::size_t m = 0; m < sum.size(); ++m) sum[m] += each.losses()[m];
        }
        return sum;
    }
    [[nodiscard]] auto memory_in_use() const -> std::vector<std::size_t> {
        std::vector<std::size_t> bytes;
        for (auto const& each : devices) bytes.push_back(each.memory_in_use());
        return bytes;
    }
    /// All values of a parameter.
    [[nodiscard]] auto value(copipe::parameter_use const& use) const -> std::vector<float> {
        copipe::parameter const& p = reductions[static_cast<std::size_t>(use.rank)].local(use);
        return {p.value.data(), p.value.data() + p.count()};
    }

    copipe::step_plan plan;
    copipe::partition cut;
    std::vector<copipe::parameter_group> groups;
    copipe::in_process<host_device> net;
    copipe::rank_team team;
    std::deque<host_device> devices{};
    std::deque<copipe::rank_pipeline<host_device, endpoint>> ranks{};
    std::deque<copipe::gradient_reduction<host_device, endpoint>> reductions{};

private:
    [[nodiscard]] auto gradient(copipe::parameter_use const& use) const -> std::vector<float> {
        copipe::parameter const& p = reductions[static_cast<std::size_t>(use.rank)].local(use);
        return {p.gradient.data(), p.gradient.data() + p.count()};
    }
    auto step_of(std::size_t r, copipe::batch const& from) -> copipe::task<> {
        co_await ranks[r].run(from, true, layers_);
        co_await reductions[r].sum();
        ranks[r].compute_stream().synchronize();
    }
    auto recover_one(std::size_t r) -> copipe::task<> {
        ranks[r].recover();
        co_return;
    }

    copipe::timing layers_;
};

} // namespace toy
