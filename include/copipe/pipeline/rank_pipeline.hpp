// SPDX-License-Identifier: Apache-2.0
// The engine: runs one rank's program. One coroutine issues its actions, one runs them, each chunk, message and lane of
// receives is a coroutine of its own. Knows the order from the schedule and nothing else of it.
#pragma once

#include "copipe/async/scope.hpp"
#include "copipe/model/partition.hpp"
#include "copipe/model/stage.hpp"
#include "copipe/pipeline/chunk_error.hpp"
#include "copipe/pipeline/chunk_reporter.hpp"
#include "copipe/pipeline/dataset.hpp"
#include "copipe/pipeline/in_flight.hpp"
#include "copipe/pipeline/outbox.hpp"
#include "copipe/pipeline/step_plan.hpp"
#include "copipe/transport/transport.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <utility>
#include <vector>

namespace copipe {

struct pipeline_options {
    std::size_t lookahead = 4; ///< how many actions the host may be ahead of the device; at least 1
    std::uint64_t seed = 0;    ///< of the parameters' first values
    observer_ref listener{};   ///< told of every span, if there is one
};

/// One rank of a pipeline: its stages on its device, its end of the transport.
///
/// All coroutines run on the executor that awaits `run`. Everything passed by reference outlives the object.
template <device Device, transport_endpoint<Device> Endpoint>
class rank_pipeline {
public:
    using stream = typename Device::stream;
    using event = typename Device::event;

    rank_pipeline(step_plan const& plan, partition const& cut, model<Device> const& layers, int rank, Device& dev,
                  Endpoint endpoint, pipeline_options const& options)
        : plan_(&plan),
          rank_(rank),
          device_(&dev),
          endpoint_(std::move(endpoint)),
          reporter_(options.listener, rank),
          outbox_(dev, endpoint_, reporter_),
          compute_(&dev.open_stream("compute")),
          links_(static_cast<std::size_t>(plan.where.ranks)),
          flights_(std::max<std::size_t>(std::min(options.lookahead, plan.training[own()].actions.size()), 1)),
          posted_(std::max(plan.training[own()].incoming.size(), plan.evaluation[own()].incoming.size())),
          slots_(std::max(slots_of(plan.training[own()]), slots_of(plan.evaluation[own()]))),
          losses_(static_cast<std::size_t>(plan.micro_batches)),
          weights_(losses_.size()) {
        for (int number : plan.where.stages_of(rank)) {
            int const part = plan.where.model_stage(number);
            stages_.push_back(local{
                .number = number,
                .layers = stage<Device>(layers, cut.first(part), cut.last(part), slots_, options.seed, *compute_),
                .slots = std::vector<micro_batch_slot<Device>>(slots_),
                .losses = std::vector<float>(plan.where.is_last(number) ? per_stage() : 0)});
        }
    }

    rank_pipeline(rank_pipeline const&) = delete;
    auto operator=(rank_pipeline const&) -> rank_pipeline& = delete;
    /// Waits for the device: after a failed step, launched work still reads and writes what the pipeline holds.
    ~rank_pipeline() { settle(); }

    /// Runs one step over the batch: accumulates gradients when training, forwards only in evaluation. Afterwards
    /// `losses()` are known. With `layers` timed, a listener that wants to know is told of each layer's passes. Throws
    /// chunk_error, or peer_failed when another rank did; `recover` must then be called, on all ranks, before the next
    /// step.
    [[nodiscard]] auto run(batch const& from, bool training, timing layers = timing::off) -> task<> {
        times_layers_ = layers == timing::on && listener().wants_layers();
        try {
            begin(from, training);
        } catch (...) { // from the dataset's weights
            endpoint_.abort();
            throw;
        }
        rank_program const& steps = training ? plan_->training[own()] : plan_->evaluation[own()];
        scope chunks{co_await this_environment{}};
        for (std::size_t i = 0; i < steps.incoming.size(); ++i)
            chunks.spawn(receive_all(steps.incoming[i], posted_[i]));
        chunks.spawn(issue(steps));
        chunks.spawn(run_all(steps.actions.size(), chunks));
        std::exception_ptr failure;
        try {
            co_await chunks.join();
        } catch (...) {
            failure = std::current_exception();
        }
        co_await outbox_.all_read();
        if (failure) std::rethrow_exception(failure);
        for (local& each : stages_) collect_losses(each);
    }

    /// This rank's share of the step's loss, by micro-batch of the step: weighted loss where this rank computed it,
    /// else 0.
    [[nodiscard]] auto losses() noexcept -> std::vector<double>& { return losses_; }

    /// Makes the rank ready for another step after a failed one. Waits for the device. All ranks have ended their step.
    void recover() {
        settle();
        for (in_flight& each : flights_) each.halves = {};
        for (local& each : stages_) {
            each.layers.drop_all(slots_);
            for (auto& place : each.slots) place.clear();
        }
        endpoint_.reset();
    }

    /// What the oldest unfinished action of a step under way waits for, in a sentence: for whoever finds that nothing
    /// moves any more. Empty when the rank waits for nothing but its own device. On the rank's thread, or while it
    /// rests.
    [[nodiscard]] auto blocked() -> std::string {
        if (enqueued_.value() >= issued_.value()) return {};
        in_flight& own = flights_[enqueued_.value() % flights_.size()];
        action const& held = own.what;
        auto const waits = [this](chunk const& c) {
            return "rank " + std::to_string(rank_) + " waits with the " + std::string(name(kind_of(c.what))) +
                   " of stage " + std::to_string(c.stage) + ", micro-batch " + std::to_string(step_micro_batch(c)) +
                   ", for ";
        };
        for (std::size_t i = 0; i < held.chunks().size(); ++i) {
            chunk const& each = held.chunks()[i];
            auto const input = input_of(each, plan_->where);
            if (!input || own.halves[i].from->handed_over.is_set()) continue;
            return waits(each) + "stage " + std::to_string(input->from_stage) + " of rank " +
                   std::to_string(plan_->where.rank_of(input->from_stage));
        }
        return waits(held.front()) + "what its layers await";
    }

    [[nodiscard]] auto rank() const noexcept -> int { return rank_; }
    [[nodiscard]] auto dev() const noexcept -> Device& { return *device_; }
    [[nodiscard]] auto endpoint() noexcept -> Endpoint& { return endpoint_; }
    [[nodiscard]] auto compute_stream() const noexcept -> stream& { return *compute_; }
    /// The stream on which messages of a rank arrive.
    [[nodiscard]] auto link_from(int peer) -> stream& {
        stream*& link = links_[static_cast<std::size_t>(peer)];
        if (!link) link = &device_->open_link(peer);
        return *link;
    }
    /// Takes a message of a rank between steps into memory of the compute stream, whose later work finds it there.
    [[nodiscard]] auto receive(int from, std::uint64_t identity, void* to) -> task<envelope> {
        auto arrived = co_await endpoint_.arrival(from, identity);
        stream& link = link_from(from);
        link.wait(compute_->record()); // the block may still be in use by earlier work there
        try {
            compute_->wait(endpoint_.accept(arrived, to, link, timing::off).end);
        } catch (...) {
            endpoint_.abort();
            link.synchronize(); // it may still write to the block
            throw;
        }
        co_return arrived.what;
    }
    [[nodiscard]] auto plan() const noexcept -> step_plan const& { return *plan_; }
    [[nodiscard]] auto listener() const noexcept -> observer_ref { return reporter_.listener(); }

    /// The layers of schedule stage `number`, which must be one of this rank's. Between steps they may be replaced.
    [[nodiscard]] auto layers_of(int number) -> stage<Device>& { return stage_at(number).layers; }
    /// How many micro-batches each stage has a place for at once.
    [[nodiscard]] auto slots() const noexcept -> std::size_t { return slots_; }

private:
    using local = local_stage<Device>;
    using half = chunk_in_flight<Device>;
    using in_flight = action_in_flight<Device>;

    [[nodiscard]] auto own() const noexcept -> std::size_t { return static_cast<std::size_t>(rank_); }
    [[nodiscard]] auto stage_at(int number) -> local& {
        return *std::find_if(stages_.begin(), stages_.end(), [&](local const& s) { return s.number == number; });
    }
    [[nodiscard]] auto per_stage() const noexcept -> std::size_t {
        return static_cast<std::size_t>(plan_->where.micro_batches_per_stage(plan_->micro_batches));
    }
    [[nodiscard]] auto slots_of(rank_program const& steps) const -> std::size_t {
        return slots_needed(steps, plan_->where, rank_, static_cast<int>(per_stage()), flights_.size());
    }
    [[nodiscard]] auto slot_number(int micro_batch) const noexcept -> std::size_t {
        return static_cast<std::size_t>(micro_batch) % slots_;
    }
    [[nodiscard]] auto step_micro_batch(chunk const& c) const -> int {
        return plan_->where.global_micro_batch(c.stage, c.micro_batch, plan_->micro_batches);
    }
    [[nodiscard]] auto input_at(message const& m) -> chunk_input<Device>& {
        auto& to = stage_at(m.to_stage).slots[slot_number(m.micro_batch)];
        return m.direction == flow::forward ? to.input : to.gradient;
    }

    void settle() {
        auto const wait = [](stream* each) {
            try {
                if (each) each->synchronize();
            } catch (...) { // reported already, as the failure of the step
            }
        };
        wait(compute_);
        std::for_each(links_.begin(), links_.end(), wait);
    }

    void begin(batch const& from, bool training) {
        batch_ = &from;
        training_ = training;
        ++runs_;
        retired_ = 0;
        issued_.reset();
        enqueued_.reset();
        for (progress_counter& each : posted_) each.reset();
        reporter_.begin(device_->now());
        weigh(from, weights_);
        std::fill(losses_.begin(), losses_.end(), 0.0);
        for (local& each : stages_) {
            for (auto& place : each.slots) place.clear();
            if (!training) continue;
            for (auto& layer : each.layers.layers()) {
                for (parameter* p : layer.parameters()) compute_->zero(p->gradient.data(), p->gradient.bytes());
            }
        }
    }

    void collect_losses(local const& last) {
        if (!plan_->where.is_last(last.number)) return;
        for (std::size_t m = 0; m < last.losses.size(); ++m) {
            auto const of = static_cast<std::size_t>(
                plan_->where.global_micro_batch(last.number, static_cast<int>(m), plan_->micro_batches));
            losses_[of] = weights_[of] * static_cast<double>(last.losses[m]);
        }
    }

    /// Begins the actions in order, at most `lookahead` ahead of the device: posts their receives, loads their samples.
    auto issue(rank_program const& steps) -> task<> {
        std::uint64_t const count = steps.actions.size();
        std::uint64_t const window = flights_.size();
        try {
            for (std::uint64_t i = 0; i < count; ++i) {
                in_flight& next = flights_[i % window];
                bool const full = i - retired_ == window;
                if (full) co_await retire((window + 1) / 2);
                next.what = steps.actions[i];
                next.held_by_window = full;
                for (posted_receives const& need : steps.needs[i]) {
                    if (need.count == 0) continue;
                    progress_counter& posted = posted_[need.lane];
                    if (need.count > posted.value()) posted.advance(need.count - posted.value());
                }
                auto const pieces = next.what.chunks();
                for (std::size_t k = 0; k < pieces.size(); ++k) prepare(pieces[k], next.halves[k]);
                issued_.advance();
            }
            co_await retire(count - retired_);
        } catch (...) {
            endpoint_.abort();
            throw;
        }
    }

    /// Enqueues the issued actions in order, each as soon as its inputs are there, and hands on what they make.
    auto run_all(std::uint64_t count, scope& chunks) -> task<> {
        try {
            for (std::uint64_t i = 0; i < count; ++i) {
                co_await issued_.reached(i + 1);
                in_flight& own = flights_[i % flights_.size()];
                auto const pieces = own.what.chunks();
                for (half& each : own.halves) // a pair starts with both its inputs
                    if (each.awaits) co_await each.from->handed_over.wait();
                for (half& each : own.halves)
                    if (each.awaits) compute_->wait(each.from->moved.end);
                if (own.what.overlapped()) {
                    co_await alternate(compute(pieces[0], own.halves[0], chunks),
                                       compute(pieces[1], own.halves[1], chunks));
                } else {
                    co_await compute(pieces[0], own.halves[0], chunks);
                }
                for (std::size_t k = 0; k < pieces.size(); ++k) hand_over(pieces[k], own.halves[k], chunks);
                enqueued_.advance();
            }
        } catch (...) {
            endpoint_.abort();
            throw;
        }
    }

    /// Finds a chunk's place, and reads the dataset for a first or last stage.
    void prepare(chunk const& c, half& own) {
        own.home = &stage_at(c.stage);
        own.place = &own.home->slots[slot_number(c.micro_batch)];
        own.from = c.what == op::forward ? &own.place->input : &own.place->gradient;
        own.awaits = input_of(c, plan_->where).has_value();
        if (c.what != op::forward || !(plan_->where.is_first(c.stage) || plan_->where.is_last(c.stage))) return;
        try {
            auto& [input, target] = own.place->sample;
            batch_->data.load(batch_->first + static_cast<std::uint64_t>(step_micro_batch(c)), input, target);
        } catch (...) {
            fail(c);
        }
    }

    /// Enqueues a chunk's work. If it fails, all that the scope's others await ends, a partner's awaits too.
    auto compute(chunk c, half& own, scope& chunks) -> task<> {
        auto const micro_batch = static_cast<std::size_t>(step_micro_batch(c));
        context<Device> work{.stream = *compute_,
                             .micro_batch = static_cast<std::int64_t>(micro_batch),
                             .training = training_,
                             .target = {},
                             .scale = static_cast<float>(weights_[micro_batch]),
                             .rank = rank_,
                             .run = runs_,
                             .marks = times_layers_ ? &own.marks : nullptr};
        try {
            std::size_t const number = slot_number(c.micro_batch);
            stage<Device>& layers = own.home->layers;
            auto const& [input, target] = own.place->sample;
            bool const last = plan_->where.is_last(c.stage);
            auto& from = *own.from;
            [[maybe_unused]] auto const shown = range_on(
                *device_, {rank_, c.stage, static_cast<int>(micro_batch), name(kind_of(c.what))});
            own.start = compute_->record(reporter_.timed());
            if (c.what == op::forward) {
                if (plan_->where.is_first(c.stage)) from.value = upload(input);
                if (last) work.target = upload(target);
                own.output = co_await layers.forward(work, number, from.value);
                if (last) keep_loss(own.output, own.home->losses[static_cast<std::size_t>(c.micro_batch)]);
            } else if (c.what == op::backward_weight) {
                co_await layers.backward_weight(work, number);
            } else {
                own.output = co_await layers.backward(work, number, from.value, c.what == op::backward);
            }
            if (!own.output && output_of(c, plan_->where)) {
                throw model_error("its layers returned an empty tensor, but a neighbouring stage needs their output");
            }
            own.end = compute_->record(reporter_.timed());
        } catch (...) {
            try {
                fail(c, work.layer);
            } catch (...) {
                chunks.cancel(std::current_exception());
                throw;
            }
        }
    }

    void keep_loss(tensor const& loss, float& kept) {
        if (loss.bytes() < sizeof kept || loss.type() != dtype::f32) {
            throw model_error("its last layer did not return the loss, a 32-bit float");
        }
        compute_->copy(&kept, loss.data(), sizeof kept);
    }

    [[nodiscard]] auto upload(host_array const& from) -> tensor {
        tensor to{*compute_->memory(), from.sizes(), from.type()};
        if (from.bytes() != 0) compute_->copy(to.data(), from.data(), from.bytes());
        return to;
    }

    /// Gives a chunk's output to the next stage: directly on this rank, as a message to another.
    void hand_over(chunk const& c, half& own, scope& chunks) {
        tensor value = std::move(own.output);
        auto const out = output_of(c, plan_->where);
        if (!out) return;
        if (crosses_ranks(*out, plan_->where)) {
            chunks.spawn(outbox_.send(plan_->where.rank_of(out->to_stage), identity_of(*out), c, std::move(value),
                                      compute_->record(reporter_.timed())));
        } else {
            auto& to = input_at(*out);
            to.value = std::move(value);
            to.handed_over.set();
        }
    }

    /// Receives all messages of one peer, each as soon as it has been posted.
    auto receive_all(lane const& from, progress_counter& posted) -> task<> {
        try {
            stream& link = link_from(from.peer);
            std::uint64_t count = 0;
            for (message const& m : from.messages) {
                co_await posted.reached(++count);
                auto arrived = co_await endpoint_.arrival(from.peer, identity_of(m));
                auto& to = input_at(m);
                to.value = tensor{*link.memory(), sizes_in(arrived.what), static_cast<dtype>(arrived.what.header[0])};
                to.moved = endpoint_.accept(arrived, to.value.data(), link, reporter_.timed());
                to.handed_over.set();
            }
        } catch (...) {
            endpoint_.abort();
            throw;
        }
    }

    [[nodiscard]] static auto sizes_in(envelope const& what) -> extents {
        return extents{what.header.data() + 2, static_cast<std::size_t>(what.header[1])};
    }

    /// Waits until the `count` oldest actions in flight have ended on the device, then measures and frees them.
    auto retire(std::uint64_t count) -> task<> {
        if (count == 0) co_return;
        std::uint64_t const until = retired_ + count;
        co_await enqueued_.reached(until);
        in_flight& newest = flights_[(until - 1) % flights_.size()];
        for (half& each : newest.halves) co_await each.end.completion();
        for (; retired_ < until; ++retired_) retire(flights_[retired_ % flights_.size()]);
        outbox_.let_go();
    }

    void retire(in_flight& done) {
        auto const pieces = done.what.chunks();
        if (listener()) reporter_.ended(done);
        for (std::size_t i = 0; i < pieces.size(); ++i) {
            try {
                done.halves[i].end.check();
            } catch (...) {
                fail(pieces[i], -1, i + 1 < pieces.size() ? &pieces[1] : nullptr);
            }
            done.halves[i].clear();
            op const what = pieces[i].what;
            if (!training_ || what == op::backward || what == op::backward_weight)
                done.halves[i].place->clear();
        }
    }

    /// Rethrows the exception in flight with the place where it happened. Launched work of a chunk and of the `partner`
    /// that overlaps it lies mixed on the stream: then both are named.
    [[noreturn]] void fail(chunk const& c, int layer = -1, chunk const* partner = nullptr) const {
        std::string const also = !partner ? ""
                                          : " (or it failed in the overlapped stage " + std::to_string(partner->stage) +
                                                ", micro-batch " + std::to_string(step_micro_batch(*partner)) + ", " +
                                                std::string(name(kind_of(partner->what))) + ")";
        try {
            throw;
        } catch (cancelled const&) {
            throw;
        } catch (peer_failed const&) {
            throw;
        } catch (std::exception const& reason) {
            throw chunk_error(rank_, c, step_micro_batch(c), layer, std::current_exception(), reason.what() + also);
        } catch (...) {
            throw chunk_error(rank_, c, step_micro_batch(c), layer, std::current_exception(),
                              "an unknown exception" + also);
        }
    }

    step_plan const* plan_;
    int rank_;
    Device* device_;
    Endpoint endpoint_;
    chunk_reporter<Device> reporter_;
    outbox<Device, Endpoint> outbox_;
    stream* compute_;
    std::vector<stream*> links_;          ///< by peer, opened when first used
    std::vector<local> stages_{};
    std::vector<in_flight> flights_;
    std::vector<progress_counter> posted_;
    std::size_t slots_;
    progress_counter issued_{};   ///< how many actions have begun, ...
    progress_counter enqueued_{}; ///< ... have been enqueued with all their work, ...
    std::uint64_t retired_ = 0;   ///< ... and have ended on the device
    batch const* batch_ = nullptr;
    bool training_ = true;
    std::uint64_t runs_ = 0;
    bool times_layers_ = false;
    std::vector<double> losses_;
    std::vector<double> weights_;
};

} // namespace copipe
