// SPDX-License-Identifier: Apache-2.0
// Moves layers between ranks at a step boundary: parameters and optimizer state travel over the transport into new
// memory, and only when all ranks have everything does any of them let go of the old.
#pragma once

#include "copipe/async/scope.hpp"
#include "copipe/pipeline/rank_pipeline.hpp"

#include <cstddef>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

namespace copipe {

/// One rank's part in a change of partition, and of which layers are recomputed: as the model says. `transfer` on all
/// ranks, then `commit` on all: if any transfer throws, destroying the object leaves the rank as it was.
template <device Device, transport_endpoint<Device> Endpoint>
class migration {
public:
    migration(rank_pipeline<Device, Endpoint>& pipeline, model<Device> const& layers, partition const& from,
              partition const& to)
        : pipeline_(&pipeline), model_(&layers), from_(&from), to_(&to) {}

    /// Sends what leaves this rank, receives what comes. Ends when every rank has ended.
    [[nodiscard]] auto transfer() -> task<> {
        try {
            scope sends{co_await this_environment{}};
            sends.spawn(transfer_all(sends));
            co_await sends.join();
            typename Device::event const arrived = pipeline_->compute_stream().record();
            co_await arrived.completion();
            arrived.check();
            make_room();
            double nothing = 0;
            co_await pipeline_->endpoint().all_reduce({&nothing, 1});
        } catch (...) {
            pipeline_->endpoint().abort();
            throw;
        }
    }

    /// Puts the new stages in place. Between steps; every rank's transfer must have ended well. Allocates nothing for
    /// layers, so that no rank is left behind.
    void commit() {
        for (auto& [stage, layers] : next_) {
            int const part = pipeline_->plan().where.model_stage(stage);
            int const direction = pipeline_->plan().where.direction(stage);
            for (int number = to_->first(part); number < to_->last(part); ++number) {
                auto const arrived = incoming_.find({direction, number});
                layers.push_back(std::move(
                    arrived != incoming_.end()
                        ? arrived->second
                        : pipeline_->layers_of(stage_of(*from_, direction, number)).layer_at(number)));
                layers.back().recompute(model_->is_recomputed(static_cast<std::size_t>(number)));
            }
        }
        for (auto& [stage, layers] : next_) {
            int const part = pipeline_->plan().where.model_stage(stage);
            pipeline_->layers_of(stage) = copipe::stage<Device>{to_->first(part), std::move(layers)};
        }
    }

    /// Bytes that this rank received.
    [[nodiscard]] auto bytes() const noexcept -> std::size_t { return bytes_; }

private:
    void make_room() {
        placement const& where = pipeline_->plan().where;
        for (int stage : where.stages_of(pipeline_->rank())) {
            int const part = where.model_stage(stage);
            next_.emplace_back(stage, std::vector<any_layer<Device>>{});
            next_.back().second.reserve(static_cast<std::size_t>(to_->last(part) - to_->first(part)));
        }
    }

    /// The stage that holds a layer under a partition, in one direction.
    [[nodiscard]] auto stage_of(partition const& cut, int direction, int layer) const -> int {
        int part = 0;
        while (cut.last(part) <= layer) ++part;
        return direction * pipeline_->plan().where.model_stages() + part;
    }

    /// All ranks walk through all layers in one order, so that sends and receives of each pair of ranks match.
    auto transfer_all(scope& sends) -> task<> {
        placement const& where = pipeline_->plan().where;
        int const own = pipeline_->rank();
        std::uint64_t number = std::uint64_t{0xfffe} << 48U;
        for (int direction = 0; direction < where.stages() / where.model_stages(); ++direction) {
            for (int layer = 0; layer < from_->layers(); ++layer) {
                int const before = stage_of(*from_, direction, layer);
                int const giver = where.rank_of(before);
                int const taker = where.rank_of(stage_of(*to_, direction, layer));
                std::uint64_t const identity = number;
                number += 1024;
                if (giver == taker) continue;
                if (giver == own) send_layer(sends, pipeline_->layers_of(before).layer_at(layer), taker, identity);
                if (taker == own) co_await receive_layer({direction, layer}, giver, identity);
            }
        }
    }

    void send_layer(scope& sends, any_layer<Device> const& layer, int to, std::uint64_t identity) {
        for (parameter const* p : layer.parameters()) {
            sends.spawn(send(to, identity++, p->value, p->state.size()));
            for (tensor const& each : p->state) sends.spawn(send(to, identity++, each, 0));
        }
    }
    auto send(int to, std::uint64_t identity, tensor held, std::size_t states) -> task<> {
        typename Device::event const ready = pipeline_->compute_stream().record();
        envelope what{.identity = identity, .bytes = held.bytes()};
        what.header[0] = static_cast<std::int64_t>(states);
        typename Device::event const over = co_await pipeline_->endpoint().send(to, what, held.data(), ready);
        co_await over.completion();
    }

    auto receive_layer(std::pair<int, int> key, int from, std::uint64_t identity) -> task<> {
        auto& compute = pipeline_->compute_stream();
        any_layer<Device> arriving = place_layer(*model_, key.second, pipeline_->slots(), compute);
        for (parameter* p : arriving.parameters()) {
            std::size_t const states = co_await receive(p->value, from, identity++);
            for (std::size_t i = 0; i < states; ++i) {
                tensor state{*compute.memory(), p->sizes};
                co_await receive(state, from, identity++);
                p->state.push_back(std::move(state));
            }
        }
        incoming_.emplace(key, std::move(arriving));
    }
    auto receive(tensor const& into, int from, std::uint64_t identity) -> task<std::size_t> {
        envelope const what = co_await pipeline_->receive(from, identity, into.data());
        bytes_ += into.bytes();
        co_return static_cast<std::size_t>(what.header[0]);
    }

    rank_pipeline<Device, Endpoint>* pipeline_;
    model<Device> const* model_;
    partition const* from_;
    partition const* to_;
    std::map<std::pair<int, int>, any_layer<Device>> incoming_{}; ///< by direction and layer
    std::vector<std::pair<int, std::vector<any_layer<Device>>>> next_{}; ///< layers of each of this rank's stages
    std::size_t bytes_ = 0;
};

} // namespace copipe
