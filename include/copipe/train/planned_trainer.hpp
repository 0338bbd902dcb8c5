// SPDX-License-Identifier: Apache-2.0
// Everything of a trainer that does not depend on its policy, and that is all but the making of its plan: one
// instantiation trains under every policy.
#pragma once

#include "copipe/balance/balancer.hpp"
#include "copipe/balance/measured_problem.hpp"
#include "copipe/observe/atomic_file.hpp"
#include "copipe/observe/recorder.hpp"
#include "copipe/pipeline/exchange_order.hpp"
#include "copipe/pipeline/gradient_reduction.hpp"
#include "copipe/pipeline/migration.hpp"
#include "copipe/pipeline/rank_pipeline.hpp"
#include "copipe/pipeline/rank_team.hpp"
#include "copipe/pipeline/step_plan.hpp"
#include "copipe/train/adamw.hpp"
#include "copipe/train/checkpoint.hpp"
#include "copipe/train/fingerprint.hpp"
#include "copipe/train/layer_times.hpp"
#include "copipe/train/run_measurements.hpp"
#include "copipe/train/safetensors_writer.hpp"
#include "copipe/train/trainer_options.hpp"
#include "copipe/transport/in_process.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
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
    /// partition_error, memory_error or model_error before anything runs.
    planned_trainer(step_plan plan, model<Device> const& layers, trainer_options<Device> options = {},
                    Balancer decides = {}, Optimizer update = {})
        : model_(layers),
          options_(std::move(options)),
          balancer_(std::move(decides)),
          update_(std::move(update)),
          plan_(std::move(plan)),
          memory_(memory_problem()),
          cut_(first_cut(static_cast<int>(layers.size()))),
          groups_(parameter_groups(layers, cut_, plan_.where)),
          spans_(ranks()),
          transport_(make_transport()),
          team_(options_.exec ? rank_team{local_ranks(), *options_.exec}
                              : rank_team{local_ranks(), options_.threads}) {
        if constexpr (requires(endpoint& e) { e.follow(std::span<exchange_order const>{}); })
            orders_ = orders_of(plan_);
        for (int const layer : recomputed_) model_.recompute(static_cast<std::size_t>(layer));
        for (int rank = first_rank(); rank < first_rank() + local_ranks(); ++rank) {
            members_.emplace_back(*this, model_, rank);
            for (parameter_group const& group : groups_) {
                for (parameter_use const& use : group.uses) {
                    if (use.rank == rank) give_state(members_.back(), use);
                }
            }
        }
        if (balancer_.check_every() > 0) begin_measuring();
    }

    /// Trains on the next micro-batches of the dataset; before that, layers move if the balancer says so. Throws
    /// chunk_error, not_finite, deadlock_error (in virtual time), or what the balancer throws.
    template <dataset Data>
    auto step(Data const& data) -> step_report {
        batch const from{dataset_ref{data}, position_};
        step_report const asked{.step = step_, .learning_rate = options_.learning_rate(step_)};
        step_report report;
        std::optional<move_report> moved = rebalance();
        double const started = now();
        spans_.clear();
        if (moved) tell_move(started - moved->seconds, started);
        timing const layers = is_measured() ? timing::on : timing::off;
        run([&](member& each) { return train(each, from, asked, report, layers); });
        position_ += static_cast<std::uint64_t>(plan_.micro_batches);
        ++step_;
        report.seconds = now() - started;
        report.measured = summarize(spans_);
        report.moved = std::move(moved);
        if (measured_ && layers == timing::on) note(report);
        if (measured_) watch(report.measured);
        return report;
    }

    /// The mean loss over `batches` batches of the dataset from micro-batch `first` on, forwards only.
    template <dataset Data>
    auto evaluate(Data const& data, std::uint64_t batches = 1, std::uint64_t first = 0) -> double {
        dataset_ref const from{data};
        auto const micro_batches = static_cast<std::uint64_t>(plan_.micro_batches);
        auto const weight = [&](std::uint64_t begin, std::uint64_t count) {
            double sum = 0;
            for (std::uint64_t m = 0; m < count; ++m) sum += from.weight(begin + m);
            return sum;
        };
        double const all = weight(first, batches * micro_batches);
        double mean = 0;
        for (std::uint64_t b = 0; b < batches; ++b) {
            batch const next{from, first + b * micro_batches};
            spans_.clear();
            run([&](member& each) { return forward(each, next); });
            double loss = 0;
            for (std::size_t m = 0; m < micro_batches; ++m) loss += members_.front().totals[m];
            mean += weight(next.first, micro_batches) / all * loss;
        }
        return mean;
    }

    /// Trains for a number of steps; returns how many were done (fewer when stopped).
    template <dataset Data>
    auto fit(Data const& data, steps until, fit_options const& options = {}) -> std::uint64_t {
        if (!options.checkpoint.empty() && first_rank() == 0)
            require_writable(options.checkpoint); // now, not after hours
        std::uint64_t done = 0;
        while (done < until.count && !is_stopped(options.stop)) {
            step_report const report = step(data);
            ++done;
            if (options.on_step) options.on_step(report);
            bool const due = options.checkpoint_every != 0 && step_ % options.checkpoint_every == 0;
            if (due && done < until.count && !options.checkpoint.empty()) save(options.checkpoint);
        }
        if (!options.checkpoint.empty()) save(options.checkpoint);
        return done;
    }
    template <dataset Data>
    auto fit(Data const& data, epochs until, fit_options const& options = {}) -> std::uint64_t {
        if (data.size() == 0) throw dataset_error("the dataset has no micro-batches, so an epoch of it has no end");
        double const total = until.count * static_cast<double>(data.size()) / plan_.micro_batches;
        return fit(data, steps{static_cast<std::uint64_t>(std::ceil(total))}, options);
    }

    /// Writes parameters, optimizer state, step and data position to a safetensors file, which appears whole or not at
    /// all. Throws file_error.
    void save(std::string const& file) {
        std::vector<tensor_entry> entries;
        for_each_state([&](stored const& each) {
            entries.push_back({.name = each.name,
                               .dtype = std::string(name_of(dtype::f32)),
                               .shape = {each.sizes.begin(), each.sizes.end()}});
        });
        std::optional<safetensors_writer> writer;
        if (first_rank() == 0)
            writer.emplace(file, std::move(entries), training_position{step_, position_}.metadata());
        std::vector<float> values;
        for_each_state([&](stored const& each) {
            fetch(each, values, 0);
            if (writer) writer->write(each.name, std::as_bytes(std::span{values}));
        });
        if (writer) writer->commit();
    }

    /// Continues from a file that save() wrote at any number of ranks and under any policy. Throws file_error,
    /// safetensors_error or checkpoint_error, naming file and tensor; a file that does not fit is refused before
    /// anything is changed.
    void load(std::string const& file) {
        safetensors_reader const reader{file};
        training_position const where = training_position::in(reader);
        std::size_t known = 0;
        for_each_state([&](stored const& each) {
            static_cast<void>(require_tensor(reader, each.name, each.sizes));
            ++known;
        });
        if (known != reader.entries().size()) {
            throw checkpoint_error(file, "has " + std::to_string(reader.entries().size()) + " tensors, the model " +
                                             std::to_string(known) + ": it belongs to another model");
        }
        std::vector<float> values;
        for_each_state([&](stored const& each) {
            values.resize(static_cast<std::size_t>(each.sizes.count()));
            reader.read(reader.at(each.name), std::as_writable_bytes(std::span{values}));
            for (parameter_use const& use : each.group->uses) {
                if (!is_here(use.rank)) continue;
                tensor const copy = held(use, each.state);
                auto& stream = member_of(use.rank).pipeline.compute_stream();
                stream.copy(copy.data(), values.data(), copy.bytes());
                stream.synchronize();
            }
        });
        step_ = where.step;
        position_ = where.position;
    }

    /// Moves layers to another partition, with parameters and optimizer state: on all ranks, or, if it throws, on none.
    /// Training goes on as if nothing had moved. Returns the bytes that crossed ranks. Throws partition_error, and
    /// memory_error where ranks may not hold as much.
    auto repartition(partition const& to) -> std::size_t {
        partition const next = cut(to, cut_.layers());
        row<int> const again = memory_ ? require_recompute(*memory_, next) : row<int>{};
        model<Device> placed = model_;
        for (int const layer : recomputed_) placed.recompute(static_cast<std::size_t>(layer), false);
        for (int const layer : again) placed.recompute(static_cast<std::size_t>(layer));
        double const started = now();
        std::deque<migration<Device, endpoint>> moves;
        for (member& each : members_) moves.emplace_back(each.pipeline, placed, cut_, next);
        run([&](member& each) {
            return moves[static_cast<std::size_t>(each.pipeline.rank() - first_rank())].transfer();
        });
        std::size_t bytes = 0, most = 0;
        for (auto& each : moves) {
            each.commit();
            bytes += each.bytes();
            most = std::max(most, each.bytes());
        }
        cut_ = next;
        model_ = std::move(placed);
        recomputed_ = again;
        groups_ = parameter_groups(model_, cut_, plan_.where);
        if (measured_) measured_->moved(now() - started, most);
        return bytes;
    }

    /// Copies a parameter, by its name in checkpoints ("layers.3.attention.weight"), to host memory. Throws
    /// model_error.
    [[nodiscard]] auto values(std::string const& name) -> std::vector<float> {
        for (parameter_group const& group : groups_) {
            if (group.name != name) continue;
            std::vector<float> to;
            fetch(stored{name, sizes_of(group), &group, 0}, to, everyone);
            return to;
        }
        throw model_error("the model has no parameter named " + name);
    }

    /// Steps trained, and micro-batches of the dataset consumed, so far.
    [[nodiscard]] auto steps_done() const noexcept -> std::uint64_t { return step_; }
    [[nodiscard]] auto position() const noexcept -> std::uint64_t { return position_; }
    [[nodiscard]] auto plan() const noexcept -> step_plan const& { return plan_; }
    [[nodiscard]] auto layers() const noexcept -> partition const& { return cut_; }
    /// The layers that are recomputed for want of memory, besides those that the model says.
    [[nodiscard]] auto recomputed() const noexcept -> row<int> const& { return recomputed_; }
    [[nodiscard]] auto balancer() noexcept -> Balancer& { return balancer_; }
    /// What the devices can do, by rank, where the balancer is asked at all: measured when the trainer was made, or
    /// read from the file of earlier runs.
    [[nodiscard]] auto fingerprints() const noexcept -> std::vector<fingerprint> {
        return measured_ ? measured_->fingerprints() : std::vector<fingerprint>{};
    }
    [[nodiscard]] auto parameters() const noexcept -> std::vector<parameter_group> const& { return groups_; }
    /// What the ranks reported of the last step or evaluation.
    [[nodiscard]] auto spans() const noexcept -> recorder const& { return spans_; }
    /// Bytes of a rank's device memory: in use between steps (parameters, gradients, optimizer state), and the highest
    /// so far; 0 for a rank of another process.
    [[nodiscard]] auto memory_in_use(int rank) const -> std::size_t {
        return is_here(rank) ? members_.at(static_cast<std::size_t>(rank - first_rank())).dev->memory_in_use() : 0;
    }
    [[nodiscard]] auto peak_memory(int rank) const -> std::size_t {
        return is_here(rank) ? members_.at(static_cast<std::size_t>(rank - first_rank())).dev->peak_memory() : 0;
    }

private:
    using endpoint = typename Transport<Device>::endpoint;

    /// Passes spans to the trainer's own recorder and to the user's listener.
    struct relay {
        recorder* spans;
        observer_ref listener;
        layer_times layers;
        void record(span const& measured) const noexcept {
            spans->record(measured);
            listener.record(measured);
        }
        void record(layer_span const& measured) noexcept {
            layers.record(measured);
            listener.record(measured);
        }
    };

    struct member {
        std::unique_ptr<Device> dev;
        relay heard;
        rank_pipeline<Device, endpoint> pipeline;
        gradient_reduction<Device, endpoint> reduction;
        std::vector<double> totals; ///< losses by micro-batch, then squared gradient norms by parameter group
        std::optional<device_probe<Device>> probe{};

        member(planned_trainer& all, model<Device> const& layers, int rank)
            : dev(all.options_.make_device(rank)),
              heard{&all.spans_, all.options_.listener, layer_times{layers.size()}},
              pipeline(
                  all.plan_, all.cut_, layers, rank, *dev, all.connect(rank, *dev),
                  {.lookahead = all.options_.lookahead, .seed = all.options_.seed, .listener = observer_ref{heard}}),
              reduction(pipeline, all.groups_),
              totals(static_cast<std::size_t>(all.plan_.micro_batches) + all.groups_.size()) {}
    };

    [[nodiscard]] auto ranks() const noexcept -> int { return plan_.where.ranks; }
    /// The ranks of this process.
    [[nodiscard]] auto first_rank() const noexcept -> int { return options_.process.rank; }
    [[nodiscard]] auto local_ranks() const noexcept -> int { return options_.process.size > 1 ? 1 : ranks(); }
    [[nodiscard]] auto is_here(int rank) const noexcept -> bool {
        return first_rank() <= rank && rank < first_rank() + local_ranks();
    }

    [[nodiscard]] auto make_transport() const -> Transport<Device> {
        int const processes = options_.process.size;
        constexpr bool by_launch = !std::constructible_from<Transport<Device>, int> &&
                                   !std::constructible_from<Transport<Device>, int, traffic>;
        if (!by_launch && processes > 1)
            throw launch_error("this is one of " + std::to_string(processes) +
                               " processes, but the trainer's transport connects threads: take tcp, or "
                               "nccl_processes, or start one process");
        if (by_launch && processes != ranks())
            throw launch_error("the pipeline has " + std::to_string(ranks()) + " ranks, the job " +
                               std::to_string(processes) + " processes: start one process per rank");
        if (processes > 1 && balancer_.check_every() > 0)
            throw launch_error("a balancer needs all ranks in one process: it measures them all");
        if constexpr (std::constructible_from<Transport<Device>, int>)
            return Transport<Device>(ranks());
        else if constexpr (std::constructible_from<Transport<Device>, int, traffic>)
            return Transport<Device>(ranks(), traffic_of(plan_.where, groups_));
        else if constexpr (std::constructible_from<Transport<Device>, launch, traffic>)
            return Transport<Device>(options_.process, traffic_of(plan_.where, groups_));
        else
            return Transport<Device>(options_.process);
    }
    [[nodiscard]] auto connect(int rank, [[maybe_unused]] Device& dev) -> endpoint {
        if constexpr (requires { transport_.connect(rank, dev); })
            return transport_.connect(rank, dev);
        else
            return transport_.connect(rank);
    }
    /// Tells a transport that asks for it in which order this rank and its neighbours exchange a step's messages.
    void announce([[maybe_unused]] member& own, [[maybe_unused]] bool training) {
        if constexpr (requires { own.pipeline.endpoint().follow(std::span<exchange_order const>{}); }) {
            step_orders const& order = orders_[static_cast<std::size_t>(own.pipeline.rank())];
            own.pipeline.endpoint().follow(training ? order.training : order.evaluation);
        }
    }

    [[nodiscard]] auto memory_problem() const -> std::optional<partition_problem> {
        if (!options_.memory) return {};
        std::vector<program> programs;
        for (rank_program const& each : plan_.training) programs.push_back(each.actions);
        return copipe::memory_problem(*options_.memory, programs, plan_.where, Optimizer::state_names.size(),
                                      options_.lookahead);
    }

    /// As asked for; where the even cut does not fit into memory, one that does.
    [[nodiscard]] auto first_cut(int layers) -> partition {
        int const stages = plan_.where.model_stages();
        auto first = [&] {
            if (options_.layers) return cut(*options_.layers, layers);
            if constexpr (requires { balancer_.start(layers, stages); })
                return cut(balancer_.start(layers, stages), layers);
            else
                return partition::even(layers, stages);
        }();
        if (!memory_) return first;
        if (!options_.layers && first == partition::even(layers, stages) && !recompute_for(*memory_, first.bounds()))
            if (auto const fits = solve_partition(*memory_)) first = partition::given(fits->bounds, layers);
        recomputed_ = require_recompute(*memory_, first);
        return first;
    }
    [[nodiscard]] auto cut(partition const& given, int layers) const -> partition {
        int const stages = plan_.where.model_stages();
        if (given.stages() != stages) {
            throw partition_error("the partition has " + std::to_string(given.stages()) + " stages, but " +
                                  std::string(plan_.policy) + " cuts the model into " + std::to_string(stages));
        }
        return partition::given(given.bounds(), layers);
    }

    [[nodiscard]] auto now() const -> double { return members_.front().dev->now(); }

    void begin_measuring() {
        std::vector<std::size_t> bytes;
        for (std::size_t layer = 0; layer < model_.size(); ++layer) {
            any_layer<Device> const declared = model_.make(layer);
            bytes.push_back(0);
            for (parameter const* p : declared.parameters())
                bytes.back() += p->count() * sizeof(float) * (1 + Optimizer::state_names.size());
        }
        measured_.emplace(std::move(bytes), plan_.where, plan_.micro_batches,
                          static_cast<std::uint64_t>(balancer_.check_every()), options_.measure_every);
        for (member& each : members_) {
            auto& compute = each.pipeline.compute_stream();
            int const peer = (each.pipeline.rank() + 1) % ranks();
            auto& link = ranks() > 1 ? each.pipeline.link_from(peer) : compute;
            measured_->know(known_fingerprint(options_.fingerprints, *each.dev, compute, link));
            if constexpr (device_probe<Device>::possible) each.probe.emplace(compute, 48);
        }
    }

    [[nodiscard]] auto is_measured() const -> bool {
        if (measured_) return measured_->is_due(step_);
        return options_.measure_every != 0 && (step_ + 1) % options_.measure_every == 0;
    }

    /// What a measured step has shown.
    void note(step_report const& report) {
        for (member const& each : members_) {
            each.heard.layers.tell(measured_->window(), each.pipeline.rank(), recomputed_);
            if (each.probe) measured_->window().probe(each.pipeline.rank(), each.probe->seconds());
        }
        measured_->end_step(step_, report.seconds, spans_, report.measured);
    }

    /// Tells a balancer that wants to know how long the ranks worked; if it notices a change, what comes is measured.
    void watch([[maybe_unused]] step_summary const& measured) {
        if constexpr (requires(row<double> const& work) { balancer_.notices(work, step_); }) {
            row<double> work;
            for (rank_summary const& each : measured.ranks) work.push_back(each.busy);
            if (balancer_.notices(work, step_)) measured_->hurry();
        }
    }

    /// Asks the balancer every so many steps, or when it has noticed something and that is measured; moves layers if it
    /// says so.
    auto rebalance() -> std::optional<move_report> {
        auto seen = measured_ ? measured_->question(step_) : std::nullopt;
        if (!seen) return {};
        if (memory_) seen->memory = *memory_;
        std::optional<partition> const to = balancer_.propose(*seen, cut_);
        if (!to || *to == cut_) return {};
        move_report moved{.from = cut_, .to = *to};
        if (memory_) memory_ = problem_of(*seen, seen->layers);
        double const started = now();
        moved.bytes = repartition(*to);
        moved.seconds = now() - started;
        moved.recomputed = recomputed_;
        if constexpr (requires { balancer_.last_decision().text(); }) {
            auto const& decided = balancer_.last_decision();
            moved.gain = decided.now > 0 ? 1 - decided.best / decided.now : 0;
            moved.why = decided.text();
        }
        return moved;
    }

    void tell_move(double start, double end) const {
        for (member const& each : members_) tell(each, span_kind::move, wait_reason::none, start, end);
    }

    [[nodiscard]] auto member_of(int rank) -> member& {
        return members_[static_cast<std::size_t>(rank - first_rank())];
    }

    void give_state(member& owner, parameter_use const& use) {
        parameter& p = owner.reduction.local(use);
        auto& stream = owner.pipeline.compute_stream();
        for (std::size_t i = 0; i < Optimizer::state_names.size(); ++i) {
            p.state.emplace_back(*stream.memory(), p.sizes);
            stream.zero(p.state.back().data(), p.state.back().bytes());
        }
        stream.synchronize();
    }

    /// Runs a coroutine on every rank; after a failure, makes all ranks ready again before it is thrown on.
    template <class Make>
    void run(Make make) {
        std::string stuck;
        if (options_.exec) options_.exec->on_deadlock([&] { stuck = give_up(); });
        try {
            team_.run([&](int number) { return make(members_[static_cast<std::size_t>(number)]); });
        } catch (...) {
            team_.run([&](int number) { return recover(members_[static_cast<std::size_t>(number)]); });
            if (stuck.empty()) throw;
        }
        if (options_.exec) options_.exec->on_deadlock({});
        if (!stuck.empty()) throw deadlock_error("everything waits and no work is under way" + stuck);
    }
    /// Nothing moves any more: ends every await, and says who waited for what.
    auto give_up() -> std::string {
        std::string waits;
        for (member& each : members_) {
            std::string const one = each.pipeline.blocked();
            if (!one.empty()) waits += (waits.empty() ? ": " : "; ") + one;
        }
        team_.cancel();
        return waits.empty() ? "." : waits;
    }
    static auto recover(member& each) -> task<> {
        each.pipeline.recover();
        co_return;
    }

    /// One rank's training step. Every rank comes to the same totals, and so to the same decision.
    auto train(member& own, batch const& from, step_report const& asked, step_report& report, timing layers)
        -> task<> {
        if (layers == timing::on) own.heard.layers.clear();
        announce(own, true);
        co_await own.pipeline.run(from, true, layers);
        double const ended = own.dev->now();
        try {
            co_await own.reduction.sum();
            co_await add_totals(own);
            double const reduced = own.dev->now();
            tell(own, span_kind::wait, wait_reason::reduction, ended, reduced);
            step_report const agreed = judge(own.totals, asked);
            if (own.pipeline.rank() == first_rank()) report = agreed;
            co_await update(own, agreed);
            tell(own, span_kind::optimizer, wait_reason::none, reduced, own.dev->now());
            if (layers == timing::on && own.probe) {
                own.probe->start();
                co_await own.probe->ended().completion();
            }
        } catch (...) {
            own.pipeline.endpoint().abort();
            throw;
        }
    }

    /// Whether any process was asked to stop: so all end after the same step.
    [[nodiscard]] auto is_stopped(std::stop_token const& here) -> bool {
        if (options_.process.size == 1) return here.stop_requested();
        std::array<double, 1> asked{here.stop_requested() ? 1.0 : 0.0};
        run([&](member& each) { return sum_up(each, asked); });
        return asked[0] > 0;
    }
    static auto sum_up(member& own, std::span<double> values) -> task<> {
        co_await own.pipeline.endpoint().all_reduce(values);
    }

    /// One rank's evaluation of a batch: its first totals become the losses of all ranks.
    auto forward(member& own, batch const& from) -> task<> {
        announce(own, false);
        co_await own.pipeline.run(from, false);
        try {
            auto const& losses = own.pipeline.losses();
            std::copy(losses.begin(), losses.end(), own.totals.begin());
            co_await own.pipeline.endpoint().all_reduce(std::span{own.totals}.first(losses.size()));
        } catch (...) {
            own.pipeline.endpoint().abort();
            throw;
        }
    }

    /// Sums losses and squared norms over the ranks. Each number comes from one rank only, so the sums are exact.
    auto add_totals(member& own) -> task<> {
        auto const& losses = own.pipeline.losses();
        std::fill(std::copy(losses.begin(), losses.end(), own.totals.begin()), own.totals.end(), 0.0);
        auto& stream = own.pipeline.compute_stream();
        for (std::size_t g = 0; g < groups_.size(); ++g) {
            parameter_use const& use = groups_[g].uses.front();
            if (own.reduction.is_local(use))
                square_sum(stream, own.reduction.local(use), &own.totals[losses.size() + g]);
        }
        typename Device::event const summed = stream.record();
        co_await summed.completion();
        summed.check();
        co_await own.pipeline.endpoint().all_reduce(own.totals);
    }

    /// Loss and norm in a fixed order of addition. Throws not_finite.
    [[nodiscard]] auto judge(std::vector<double> const& totals, step_report report) const -> step_report {
        auto const losses = static_cast<std::size_t>(plan_.micro_batches);
        double squares = 0;
        for (std::size_t i = 0; i < totals.size(); ++i) {
            if (i < losses && !std::isfinite(totals[i])) throw not_finite(step_, static_cast<int>(i));
            (i < losses ? report.loss : squares) += totals[i];
        }
        report.gradient_norm = std::sqrt(squares);
        if (!std::isfinite(report.gradient_norm)) throw not_finite(step_, -1);
        return report;
    }

    auto update(member& own, step_report const& report) -> task<> {
        bool const clipped = options_.clip_norm > 0 && report.gradient_norm > options_.clip_norm;
        double const scale = clipped ? options_.clip_norm / report.gradient_norm : 1;
        auto& stream = own.pipeline.compute_stream();
        for (parameter_group const& group : groups_) {
            for (parameter_use const& use : group.uses) {
                if (own.reduction.is_local(use)) {
                    update_.update(stream, own.reduction.local(use), step_ + 1, report.learning_rate, scale);
                }
            }
        }
        typename Device::event const updated = stream.record();
        co_await updated.completion();
        updated.check();
    }

    void tell(member const& own, span_kind kind, wait_reason why, double start, double end) const {
        own.heard.record(
            span{.start = start, .end = end, .what = {}, .rank = own.pipeline.rank(), .kind = kind, .reason = why});
    }

    /// A parameter (state 0) or a part of its optimizer state (from 1), as it lies in checkpoints.
    struct stored {
        std::string name;
        extents sizes;
        parameter_group const* group;
        std::size_t state;
    };
    /// Calls `visit(stored)` in checkpoint order.
    template <class Visit>
    void for_each_state(Visit visit) {
        for (parameter_group const& group : groups_) {
            extents const sizes = sizes_of(group);
            visit(stored{group.name, sizes, &group, 0});
            for (std::size_t i = 0; i < Optimizer::state_names.size(); ++i)
                visit(stored{group.name + "." + std::string(Optimizer::state_names[i]), sizes, &group, i + 1});
        }
    }
    [[nodiscard]] auto sizes_of(parameter_group const& group) const -> extents {
        parameter_use const& use = group.uses.front();
        any_layer<Device> const declared = model_.make(static_cast<std::size_t>(use.layer));
        return declared.parameters()[use.index]->sizes;
    }
    /// Of a rank of this process.
    [[nodiscard]] auto held(parameter_use const& use, std::size_t state) -> tensor {
        parameter const& p = member_of(use.rank).reduction.local(use);
        return state == 0 ? p.value : p.state[state - 1];
    }

    static constexpr int everyone = -1;

    /// Copies a tensor to the host memory of the process with rank `to`, or of every process.
    void fetch(stored const& what, std::vector<float>& values, int to) {
        values.resize(static_cast<std::size_t>(what.sizes.count()));
        parameter_use const& from = what.group->uses.front();
        if (is_here(from.rank)) download(member_of(from.rank), held(from, what.state), values);
        if (options_.process.size == 1) return;
        std::uint64_t const identity = (std::uint64_t{0xfffd} << 48U) | fetched_++;
        run([&](member& each) {
            return each.pipeline.rank() == from.rank ? hand_out(each, held(from, what.state), identity, to)
                                                     : take_in(each, what.sizes, from.rank, identity, to, values);
        });
    }
    auto hand_out(member& own, tensor const value, std::uint64_t identity, int to) -> task<> {
        for (int rank = 0; rank < ranks(); ++rank) {
            if (rank == own.pipeline.rank() || (to != everyone && to != rank)) continue;
            typename Device::event const ready = own.pipeline.compute_stream().record();
            typename Device::event const read = co_await own.pipeline.endpoint().send(
                rank, {.identity = identity, .bytes = value.bytes()}, value.data(), ready);
            co_await read.completion();
        }
    }
    auto take_in(member& own, extents const sizes, int from, std::uint64_t identity, int to, std::vector<float>& values)
        -> task<> {
        if (to != everyone && to != own.pipeline.rank()) co_return;
        auto& link = own.pipeline.link_from(from);
        tensor const landed{*link.memory(), sizes};
        auto arrived = co_await own.pipeline.endpoint().arrival(from, identity);
        own.pipeline.compute_stream().wait(
            own.pipeline.endpoint().accept(arrived, landed.data(), link, timing::off).end);
        download(own, landed, values);
    }
    static void download(member const& owner, tensor const& held, std::span<float> to) {
        owner.pipeline.compute_stream().copy(to.data(), held.data(), held.bytes());
        owner.pipeline.compute_stream().synchronize();
    }

    model<Device> model_;
    trainer_options<Device> options_;
    Balancer balancer_;
    Optimizer update_;
    step_plan plan_;
    row<int> recomputed_{};
    std::optional<partition_problem> memory_; ///< if there are limits
    partition cut_;
    std::vector<parameter_group> groups_;
    recorder spans_;
    Transport<Device> transport_;
    rank_team team_;
    std::deque<member> members_{};
    std::uint64_t step_ = 0;
    std::uint64_t position_ = 0;
    std::vector<step_orders> orders_{}; ///< by rank, where the transport wants to know
    std::uint64_t fetched_ = 0;

    // For the balancer, if it is asked.
    std::optional<run_measurements> measured_{};
};

} // namespace copipe
