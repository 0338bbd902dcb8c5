// SPDX-License-Identifier: Apache-2.0
// Parameters and optimizer state between the ranks that hold them and host memory: for checkpoints and for whoever
// looks at a model.
#pragma once

#include "copipe/train/checkpoint.hpp"
#include "copipe/train/local_ranks.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace copipe {

/// What a checkpoint holds of these parameters of the model, with optimizer state of these names, in its order. Points
/// into `groups`.
template <device Device, class Names>
[[nodiscard]] auto stored_tensors(model<Device> const& layers, std::vector<parameter_group> const& groups,
                                  Names const& state_names) -> std::vector<stored_tensor> {
    std::vector<stored_tensor> all;
    for (parameter_group const& group : groups) {
        parameter_use const& use = group.uses.front();
        any_layer<Device> const declared = layers.make(static_cast<std::size_t>(use.layer));
        extents const sizes = declared.parameters()[use.index]->sizes;
        all.push_back({group.name, sizes, &group, 0});
        for (std::size_t i = 0; i < state_names.size(); ++i)
            all.push_back({group.name + "." + std::string(state_names[i]), sizes, &group, i + 1});
    }
    return all;
}

/// Copies them between local_ranks and the host, one after the other. All processes of a job make the same calls.
template <class Ranks>
class stored_state {
public:
    explicit stored_state(Ranks& all) : ranks_(&all) {}

    static constexpr int everyone = -1;

    /// To the host memory of the process with rank `to`, or of every process.
    void read(stored_tensor const& what, std::vector<float>& values, int to = everyone) {
        values.resize(static_cast<std::size_t>(what.sizes.count()));
        parameter_use const& from = what.group->uses.front();
        if (ranks_->has(from.rank)) {
            member& owner = ranks_->at(from.rank);
            download(owner, owner.held(from, what.state), values);
        }
        if (ranks_->has_all()) return;
        std::uint64_t const identity = (std::uint64_t{0xfffd} << 48U) | count_++;
        ranks_->run([&](member& each) {
            return each.rank() == from.rank ? send(each, each.held(from, what.state), identity, to)
                                            : receive(each, what.sizes, from.rank, identity, to, values);
        });
    }

    /// From host memory to all copies on the ranks of this process.
    void write(stored_tensor const& what, std::vector<float> const& values) {
        for (parameter_use const& use : what.group->uses) {
            if (!ranks_->has(use.rank)) continue;
            tensor const copy = ranks_->at(use.rank).held(use, what.state);
            auto& stream = ranks_->at(use.rank).pipeline().compute_stream();
            stream.copy(copy.data(), values.data(), copy.bytes());
            stream.synchronize();
        }
    }

private:
    using member = typename Ranks::member;

    auto send(member& own, tensor const value, std::uint64_t identity, int to) -> task<> {
        for (int rank = 0; rank < own.pipeline().plan().where.ranks; ++rank) {
            if (rank == own.rank() || (to != everyone && to != rank)) continue;
            auto const ready = own.pipeline().compute_stream().record();
            auto const read = co_await own.pipeline().endpoint().send(
                rank, {.identity = identity, .bytes = value.bytes()}, value.data(), ready);
            co_await read.completion();
        }
    }
    auto receive(member& own, extents const sizes, int from, std::uint64_t identity, int to,
                 std::vector<float>& values) -> task<> {
        if (to != everyone && to != own.rank()) co_return;
        auto& link = own.pipeline().link_from(from);
        tensor const landed{*link.memory(), sizes};
        auto arrived = co_await own.pipeline().endpoint().arrival(from, identity);
        own.pipeline().compute_stream().wait(
            own.pipeline().endpoint().accept(arrived, landed.data(), link, timing::off).end);
        download(own, landed, values);
    }
    static void download(member& owner, tensor const& held, std::vector<float>& to) {
        owner.pipeline().compute_stream().copy(to.data(), held.data(), held.bytes());
        owner.pipeline().compute_stream().synchronize();
    }

    Ranks* ranks_;
    std::uint64_t count_ = 0; ///< of tensors copied so far: the same in all processes
};

} // namespace copipe
