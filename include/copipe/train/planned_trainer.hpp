// SPDX-License-Identifier: Apache-2.0
// Everything of a trainer that does not depend on its policy, and that is all but the making of its plan: one
// instantiation trains under every policy.
#pragma once

#include "copipe/observe/atomic_file.hpp"
#include "copipe/pipeline/migration.hpp"
#include "copipe/train/adamw.hpp"
#include "copipe/train/balancing.hpp"
#include "copipe/train/local_ranks.hpp"
#include "copipe/train/stored_state.hpp"
#include "copipe/transport/in_process.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

namespace copipe {

/// What every `trainer` is beneath its policy: it trains by a step plan, which any policy can have made. To be used
/// itself where the policy is known at run time only: `planned_trainer<> all{plan_step(dualpipe{}, {2, 8}), layers}`.
template <device Device = host_device, balancer Balancer = static_partition,
          optimizer<typename Device::stream> Optimizer = adamw, template <class> class Transport = in_process>
class planned_trainer {
public:
    /// Places the model on the plan's ranks; ranks and micro-batches among the options count for nothing. Throws
    /// partition_error, memory_error, model_error or launch_error before anything runs.
    planned_trainer(step_plan plan, model<Device> const& layers, trainer_options<Device> options = {},
                    Balancer decides = {}, Optimizer update = {})
        : model_(layers),
          balancing_(std::move(decides)),
          shared_{std::move(plan), std::move(options), std::move(update)},
          cut_(shared_.plan, static_cast<int>(model_.size()), first_cut(), shared_.options.layers.has_value(),
               shared_.options.memory, Optimizer::state_names.size(), shared_.options.lookahead),
          ranks_(adopt_cut(), model_, cut_.now(), balancing_.is_asked()) {
        if constexpr (balances)
            if (balancing_.is_asked()) begin_balancing();
    }

    /// Trains on the next micro-batches of the dataset; before that, layers move if the balancer says so. Throws
    /// chunk_error, not_finite, update_error, deadlock_error (in virtual time), or what the balancer throws.
    template <dataset Data>
    auto step(Data const& data) -> step_report {
        return train_on({dataset_ref{data}, position_});
    }

    /// The mean loss over `batches` batches of the dataset from micro-batch `first` on, forwards only.
    template <dataset Data>
    auto evaluate(Data const& data, std::uint64_t batches = 1, std::uint64_t first = 0) -> double {
        return mean_loss(dataset_ref{data}, batches, first);
    }

    /// Trains for a number of steps; returns how many were done (fewer when stopped).
    template <dataset Data>
    auto fit(Data const& data, steps until, fit_options const& options = {}) -> std::uint64_t {
        return fit_to(dataset_ref{data}, until.count, options);
    }
    template <dataset Data>
    auto fit(Data const& data, epochs until, fit_options const& options = {}) -> std::uint64_t {
        if (data.size() == 0) throw dataset_error("the dataset has no micro-batches, so an epoch of it has no end");
        double const total = until.count * static_cast<double>(data.size()) / plan().micro_batches;
        return fit(data, steps{static_cast<std::uint64_t>(std::ceil(total))}, options);
    }

    /// Writes parameters, optimizer state, step and data position to a safetensors file, which appears whole or not at
    /// all. Throws file_error, and checkpoint_error if a parameter is not finite.
    void save(std::string const& file) {
        write_checkpoint(file, ranks_.first() == 0, {step_, position_}, stored(parameters()),
                         [this](stored_tensor const& each, std::vector<float>& into) { state_.read(each, into, 0); });
    }

    /// Continues from a file that save() wrote at any number of ranks and under any policy. Throws file_error,
    /// safetensors_error or checkpoint_error, naming file and tensor; a file that does not fit is refused before
    /// anything is changed.
    void load(std::string const& file) {
        auto const write = [this](stored_tensor const& each, std::vector<float> const& from) {
            state_.write(each, from);
        };
        training_position const where = read_checkpoint(file, stored(parameters()), write);
        step_ = where.step;
        position_ = where.position;
    }

    /// Moves layers to another partition, with parameters and optimizer state: on all ranks, or, if it throws, on none.
    /// Training goes on as if nothing had moved. Returns the bytes that crossed ranks. Throws partition_error, and
    /// memory_error where ranks may not hold as much.
    auto repartition(partition const& to) -> std::size_t {
        layer_cut next = cut_.moved(to);
        model<Device> placed = model_;
        for (int const layer : cut_.recomputed()) placed.recompute(static_cast<std::size_t>(layer), false);
        for (int const layer : next.recomputed()) placed.recompute(static_cast<std::size_t>(layer));
        auto groups = parameter_groups(placed, next.now(), plan().where);
        double const started = now();
        std::deque<migration<Device, typename ranks::endpoint>> moves;
        for (member& each : ranks_) moves.emplace_back(each.pipeline(), placed, cut_.now(), next.now());
        ranks_.run([&](member& each) {
            return moves[static_cast<std::size_t>(each.rank() - ranks_.first())].transfer();
        });
        std::size_t bytes = 0, most = 0;
        for (auto& each : moves) {
            each.commit();
            bytes += each.bytes();
            most = std::max(most, each.bytes());
        }
        cut_ = std::move(next);
        model_ = std::move(placed);
        shared_.groups = std::move(groups);
        if constexpr (balances)
            if (auto& seen = balancing_.seen()) seen->moved(now() - started, most);
        return bytes;
    }

    /// Copies a parameter, by its name in checkpoints ("layers.3.attention.weight"), to host memory. Throws
    /// model_error.
    [[nodiscard]] auto values(std::string const& name) -> std::vector<float> {
        for (parameter_group const& group : parameters()) {
            if (group.name != name) continue;
            std::vector<float> to;
            state_.read(stored({group}).front(), to);
            return to;
        }
        throw model_error("the model has no parameter named " + name);
    }

    /// Steps trained, and micro-batches of the dataset consumed, so far.
    [[nodiscard]] auto steps_done() const noexcept -> std::uint64_t { return step_; }
    [[nodiscard]] auto position() const noexcept -> std::uint64_t { return position_; }
    [[nodiscard]] auto plan() const noexcept -> step_plan const& { return shared_.plan; }
    [[nodiscard]] auto layers() const noexcept -> partition const& { return cut_.now(); }
    /// The layers that are recomputed for want of memory, besides those that the model says.
    [[nodiscard]] auto recomputed() const noexcept -> row<int> const& { return cut_.recomputed(); }
    [[nodiscard]] auto balancer() noexcept -> Balancer& { return balancing_.balancer(); }
    /// What the devices can do, by rank, where the balancer is asked at all: measured when the trainer was made, or
    /// read from the file of earlier runs.
    [[nodiscard]] auto fingerprints() const noexcept -> std::vector<fingerprint> {
        auto const& seen = balancing_.seen();
        return seen ? seen->fingerprints() : std::vector<fingerprint>{};
    }
    [[nodiscard]] auto parameters() const noexcept -> std::vector<parameter_group> const& { return shared_.groups; }
    /// What the ranks reported of the last step or evaluation.
    [[nodiscard]] auto spans() const noexcept -> recorder const& { return shared_.spans; }
    /// Bytes of a rank's device memory: in use between steps (parameters, gradients, optimizer state), and the highest
    /// so far; 0 for a rank of another process.
    [[nodiscard]] auto memory_in_use(int rank) const -> std::size_t {
        return ranks_.has(rank) ? ranks_.at(rank).dev().memory_in_use() : 0;
    }
    [[nodiscard]] auto peak_memory(int rank) const -> std::size_t {
        return ranks_.has(rank) ? ranks_.at(rank).dev().peak_memory() : 0;
    }

private:
    using ranks = local_ranks<Device, Optimizer, Transport>;
    using member = typename ranks::member;
    static constexpr bool balances = !idle_balancer<Balancer>;

    /// As asked for; else the balancer's, or even.
    [[nodiscard]] auto first_cut() const -> partition {
        auto const layers = static_cast<int>(model_.size());
        int const stages = plan().where.model_stages();
        if (shared_.options.layers) return *shared_.options.layers;
        if constexpr (requires { balancing_.balancer().start(layers, stages); })
            return balancing_.balancer().start(layers, stages);
        else
            return partition::even(layers, stages);
    }
    auto adopt_cut() -> shared_training<Device, Optimizer>& {
        for (int const layer : cut_.recomputed()) model_.recompute(static_cast<std::size_t>(layer));
        shared_.groups = parameter_groups(model_, cut_.now(), plan().where);
        return shared_;
    }

    [[nodiscard]] auto now() -> double { return ranks_.begin()->dev().now(); }
    [[nodiscard]] auto stored(std::vector<parameter_group> const& groups) const -> std::vector<stored_tensor> {
        return stored_tensors(model_, groups, Optimizer::state_names);
    }

    auto train_on(batch const& from) -> step_report {
        step_report const asked{.step = step_, .learning_rate = shared_.options.learning_rate(step_)};
        shared_.spans.clear();
        std::optional<move_report> moved = rebalance();
        double const started = now();
        timing const layers = is_measured() ? timing::on : timing::off;
        ranks_.run([&](member& each) { return each.train(from, asked, layers); });
        position_ += static_cast<std::uint64_t>(plan().micro_batches);
        ++step_;
        step_report report = ranks_.begin()->report();
        report.seconds = now() - started;
        report.measured = summarize(spans());
        report.moved = std::move(moved);
        note(report, layers);
        return report;
    }

    auto mean_loss(dataset_ref const& from, std::uint64_t batches, std::uint64_t first) -> double {
        auto const micro_batches = static_cast<std::uint64_t>(plan().micro_batches);
        auto const weight = [&](std::uint64_t begin, std::uint64_t count) {
            double sum = 0;
            for (std::uint64_t m = 0; m < count; ++m) sum += from.weight(begin + m);
            return sum;
        };
        double const all = weight(first, batches * micro_batches);
        double mean = 0;
        for (std::uint64_t b = 0; b < batches; ++b) {
            batch const next{from, first + b * micro_batches};
            shared_.spans.clear();
            ranks_.run([&](member& each) { return each.evaluate(next); });
            double loss = 0;
            for (std::size_t m = 0; m < micro_batches; ++m) loss += ranks_.begin()->totals()[m];
            mean += weight(next.first, micro_batches) / all * loss;
        }
        return mean;
    }

    auto fit_to(dataset_ref const& data, std::uint64_t count, fit_options const& options) -> std::uint64_t {
        if (!options.checkpoint.empty() && ranks_.first() == 0)
            require_writable(options.checkpoint); // now, not after hours
        std::uint64_t done = 0;
        while (done < count && !is_stopped(options.stop)) {
            step_report const report = train_on({data, position_});
            ++done;
            try {
                if (options.on_step) options.on_step(report);
            } catch (...) { // other processes would have to save, too, and know nothing of it
                if (!options.checkpoint.empty() && ranks_.has_all()) save(options.checkpoint);
                throw;
            }
            bool const due = options.checkpoint_every != 0 && step_ % options.checkpoint_every == 0;
            if (due && done < count && !options.checkpoint.empty()) save(options.checkpoint);
        }
        if (!options.checkpoint.empty()) save(options.checkpoint);
        return done;
    }

    /// Whether any process was asked to stop: so all end after the same step.
    [[nodiscard]] auto is_stopped(std::stop_token const& here) -> bool {
        if (ranks_.has_all()) return here.stop_requested();
        std::array<double, 1> asked{here.stop_requested() ? 1.0 : 0.0};
        ranks_.run([&](member& each) { return sum_up(each, asked); });
        return asked[0] > 0;
    }
    static auto sum_up(member& own, std::span<double> values) -> task<> {
        co_await own.pipeline().endpoint().all_reduce(values);
    }

    void begin_balancing() {
        std::vector<std::size_t> bytes;
        for (std::size_t layer = 0; layer < model_.size(); ++layer) {
            any_layer<Device> const declared = model_.make(layer);
            bytes.push_back(0);
            for (parameter const* p : declared.parameters())
                bytes.back() += p->count() * sizeof(float) * (1 + Optimizer::state_names.size());
        }
        balancing_.begin(std::move(bytes), plan(), shared_.options.measure_every);
        for (member& each : ranks_) balancing_.seen()->know(each.begin_measuring());
    }

    [[nodiscard]] auto is_measured() const -> bool {
        if constexpr (balances)
            if (auto const& seen = balancing_.seen()) return seen->is_due(step_);
        std::uint64_t const every = shared_.options.measure_every;
        return every != 0 && (step_ + 1) % every == 0;
    }

    /// Moves layers if it is time to ask the balancer and it says so.
    auto rebalance() -> std::optional<move_report> {
        if constexpr (!balances) return {};
        else {
            auto moved = balancing_.ask(step_, cut_);
            if (!moved) return {};
            double const started = now();
            moved->bytes = repartition(moved->to);
            moved->seconds = now() - started;
            moved->recomputed = recomputed();
            for (member const& each : ranks_)
                each.tell(span_kind::move, wait_reason::none, started, started + moved->seconds);
            return moved;
        }
    }

    void note([[maybe_unused]] step_report const& report, [[maybe_unused]] timing layers) {
        if constexpr (balances) {
            auto& seen = balancing_.seen();
            if (!seen) return;
            if (layers == timing::on) {
                for (member const& each : ranks_) each.tell_times(seen->window(), recomputed());
                seen->end_step(step_, report.seconds, spans(), report.measured);
            }
            balancing_.watch(report);
        }
    }

    model<Device> model_;
    balancing<Balancer> balancing_;
    shared_training<Device, Optimizer> shared_;
    layer_cut cut_;
    ranks ranks_;
    stored_state<ranks> state_{ranks_};
    std::uint64_t step_ = 0;
    std::uint64_t position_ = 0;
};

} // namespace copipe
