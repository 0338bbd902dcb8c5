// SPDX-License-Identifier: Apache-2.0
// All policies side by side on one model and one shape: what a step was predicted to take, what it takes, and whether
// all of them learn the same. They take turns, a step each, so that what else the machine does falls on all alike.
#pragma once

#include "gpt/plan.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace gpt {

/// The value of which `part` of all are smaller; `values` must not be empty.
[[nodiscard]] inline auto quantile(std::vector<double> values, double part) -> double {
    std::ranges::sort(values);
    double const at = part * static_cast<double>(values.size() - 1);
    auto const below = static_cast<std::size_t>(at);
    std::size_t const above = std::min(below + 1, values.size() - 1);
    return values[below] + (at - static_cast<double>(below)) * (values[above] - values[below]);
}

/// One who takes turns: a policy, or as many sequential trainers at once as there are cores for the ranks, each for
/// itself. These tell what so many cores give at most.
struct contender {
    std::string name;
    copipe::shape size;
    std::optional<run_plan> plan{};                        ///< nothing for many trainers, or where it cannot run
    std::vector<std::unique_ptr<any_trainer>> trainers{}; ///< none where it cannot run
    std::string refusal{};                                 ///< why it cannot

    std::vector<double> seconds{}; ///< of each step; of many at once, over how many
    std::vector<double> bubbles{}; ///< of each step, mean of ranks
    double loss = 0;               ///< of the last step

    [[nodiscard]] auto runs() const -> bool { return !trainers.empty(); }

    /// A step of each of the trainers, at once.
    void step(micro_batches const& data) {
        std::vector<copipe::step_report> reports(trainers.size());
        std::vector<std::exception_ptr> failures(trainers.size());
        {
            std::vector<std::jthread> others;
            auto const one = [&](std::size_t at) {
                try {
                    reports[at] = trainers[at]->step(data);
                } catch (...) { failures[at] = std::current_exception(); }
            };
            for (std::size_t at = 1; at < trainers.size(); ++at) others.emplace_back(one, at);
            one(0);
        }
        for (std::exception_ptr const& failure : failures)
            if (failure) std::rethrow_exception(failure);
        double slowest = 0;
        for (copipe::step_report const& report : reports) slowest = std::max(slowest, report.seconds);
        seconds.push_back(slowest / static_cast<double>(trainers.size()));
        bubbles.push_back(reports.front().measured.mean_bubble_ratio());
        loss = reports.front().loss;
    }
    /// Bytes that a rank held at most besides parameters and their state; the largest rank's.
    [[nodiscard]] auto activations() const -> std::size_t {
        std::size_t most = 0;
        for (int rank = 0; rank < size.ranks; ++rank)
            most = std::max(most, trainers.front()->peak_memory(rank) - trainers.front()->memory_in_use(rank));
        return most;
    }
};

/// A policy as predicted best, or why it cannot run.
[[nodiscard]] inline auto contender_under(std::string_view policy, copipe::shape size,
                                          copipe::model<host_device> const& model,
                                          std::vector<copipe::layer_profile> const& layers,
                                          copipe::trainer_options<host_device> options) -> contender {
    contender made{.name = std::string(policy), .size = size};
    try {
        made.plan.emplace(workload{schedule_of(policy, size, static_cast<int>(layers.size())), layers});
        options.ranks = size.ranks;
        options.layers = made.plan->cut;
        made.trainers.push_back(make_trainer(policy, model, std::move(options)));
    } catch (copipe::shape_error const& refused) {
        made.refusal = refused.what();
    } catch (copipe::partition_error const& refused) {
        made.refusal = made.name + " " + refused.what();
    }
    return made;
}

/// Every policy, with `sequential` first, and sequential trainers at once where ranks have cores of their own.
[[nodiscard]] inline auto contenders(copipe::shape size, copipe::model<host_device> const& model,
                                     std::vector<copipe::layer_profile> const& layers,
                                     copipe::trainer_options<host_device> const& options) -> std::vector<contender> {
    std::vector<contender> all;
    for (auto const policy : policy_names) {
        bool const alone = policy == copipe::sequential::name;
        all.push_back(contender_under(policy, {alone ? 1 : size.ranks, size.micro_batches}, model, layers, options));
        int const apart = std::min(size.ranks, static_cast<int>(std::thread::hardware_concurrency()));
        if (!alone || apart < 2) continue;
        contender many{.name = std::to_string(apart) + " apart", .size = {1, size.micro_batches}};
        for (int made = 0; made < apart; ++made)
            many.trainers.push_back(std::move(
                contender_under(policy, many.size, model, layers, options).trainers.front()));
        all.push_back(std::move(many));
    }
    return all;
}

/// Trains `steps` steps under each policy and returns the table. A policy that cannot run the shape says why. `done` is
/// told how many steps all have done, after each.
[[nodiscard]] inline auto compare(copipe::shape size, copipe::model<host_device> const& model,
                                  std::vector<copipe::layer_profile> const& layers,
                                  copipe::trainer_options<host_device> const& options, micro_batches const& data,
                                  std::uint64_t steps, std::function<void(std::uint64_t)> const& done) -> std::string {
    std::vector<contender> all = contenders(size, model, layers, options);
    for (std::uint64_t step = 0; step < steps; ++step) {
        for (std::size_t turn = 0; turn < all.size(); ++turn) // nobody always runs after the same other
            if (contender& now = all[(turn + step) % all.size()]; now.runs()) now.step(data);
        done(step + 1);
    }
    copipe::text_table rows;
    std::string refusals;
    rows.row({"policy", "ranks", "step", "speed-up", "its quartiles", "predicted step", "predicted bubble",
              "measured bubble", "peak activations", "loss"});
    auto const counted = [](std::vector<double> const& each) { // not the very first step, which allocates
        return std::vector<double>(each.begin() + (each.size() > 1 ? 1 : 0), each.end());
    };
    std::vector<double> const reference = counted(all.front().seconds);
    for (contender const& each : all) {
        if (!each.runs()) {
            rows.row({each.name, std::to_string(each.size.ranks), "-", "-", "-", "-", "-", "-", "-", "-"});
            refusals += each.refusal + '\n';
            continue;
        }
        std::vector<double> const seconds = counted(each.seconds);
        std::vector<double> gains;
        std::ranges::transform(reference, seconds, std::back_inserter(gains), std::divides{});
        rows.row({each.name, std::to_string(each.size.ranks), milliseconds(quantile(seconds, 0.5)),
                  copipe::decimal(quantile(gains, 0.5), 2),
                  copipe::decimal(quantile(gains, 0.25), 2) + " to " + copipe::decimal(quantile(gains, 0.75), 2),
                  each.plan ? milliseconds(each.plan->step_seconds()) : "-",
                  each.plan ? copipe::percent(each.plan->mean_bubble_ratio()) : "-",
                  copipe::percent(quantile(counted(each.bubbles), 0.5)),
                  copipe::byte_count(each.activations()), copipe::decimal(each.loss, 8)});
    }
    return rows.text() + refusals;
}

} // namespace gpt
