// SPDX-License-Identifier: Apache-2.0
// Sums the gradients of parameters that exist more than once: DualPipe's two copies of a stage, and tied weights. Every
// holder adds the same numbers in the same order, so all copies stay equal bit for bit.
#pragma once

#include "copipe/async/scope.hpp"
#include "copipe/pipeline/rank_pipeline.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace copipe {

/// One copy of a parameter: parameter `index` of layer `layer` in schedule stage `stage` on `rank`.
struct parameter_use {
    int rank, stage, layer;
    std::size_t index;
};

/// A distinct parameter of the model and all its copies, in the order in which their gradients are added: direction 0
/// before direction 1, and layer by layer within one.
struct parameter_group {
    std::string name; ///< "layers.<layer>.<parameter>" of the first use: its name in checkpoints
    std::vector<parameter_use> uses;
};

/// All distinct parameters of a model, in layer order. Equal on every rank. Throws model_error.
template <device Device>
[[nodiscard]] auto parameter_groups(model<Device> const& layers, partition const& cut, placement const& where)
    -> std::vector<parameter_group> {
    std::vector<parameter_group> groups;
    std::map<std::string, std::pair<std::size_t, extents>> known;
    int const copies = where.stages() / where.model_stages();
    for (int direction = 0; direction < copies; ++direction) {
        for (int part = 0; part < where.model_stages(); ++part) {
            int const stage = direction * where.model_stages() + part;
            for (int layer = cut.first(part); layer < cut.last(part); ++layer) {
                any_layer<Device> const declared = layers.make(static_cast<std::size_t>(layer));
                std::size_t index = 0;
                for (parameter const* p : declared.parameters()) {
                    std::string name = "layers." + std::to_string(layer) + "." + p->name;
                    auto const [found, added] =
                        known.try_emplace(p->tie.empty() ? name : "tie." + p->tie, groups.size(), p->sizes);
                    if (added) groups.push_back({name, {}});
                    auto& uses = groups[found->second.first].uses;
                    bool const twice = std::any_of(uses.begin(), uses.end(), [&](parameter_use const& use) {
                        return p->tie.empty() && use.stage == stage && use.layer == layer;
                    });
                    if (twice)
                        throw model_error(name +
                                          " is declared twice by its layer: give each parameter a name of its own");
                    if (found->second.second != p->sizes) {
                        throw model_error(name + " " + to_string(p->sizes) + " is tied as '" + p->tie + "' to " +
                                          groups[found->second.first].name + " " + to_string(found->second.second) +
                                          ": tied parameters have equal sizes");
                    }
                    uses.push_back({where.rank_of(stage), stage, layer, index++});
                }
            }
        }
    }
    return groups;
}

/// The sums of one rank. Built once, used after every training step.
template <device Device, transport_endpoint<Device> Endpoint>
class gradient_reduction {
public:
    gradient_reduction(rank_pipeline<Device, Endpoint>& pipeline, std::vector<parameter_group> const& groups)
        : pipeline_(&pipeline), groups_(&groups), taken_(groups.size()), sends_(groups.size()), read_(groups.size()) {}

    /// The parameter behind one of this rank's uses.
    [[nodiscard]] auto local(parameter_use const& use) const -> parameter& {
        return *pipeline_->layers_of(use.stage).layer_at(use.layer).parameters()[use.index];
    }
    [[nodiscard]] auto is_local(parameter_use const& use) const noexcept -> bool {
        return use.rank == pipeline_->rank();
    }

    /// Makes every copy's gradient the sum over all copies. Host-ordered only in that messages are handed over; the
    /// sums themselves are enqueued on the compute stream.
    [[nodiscard]] auto sum() -> task<> {
        for (progress_counter& each : taken_) each.reset();
        std::fill(sends_.begin(), sends_.end(), 0);
        scope sends{co_await this_environment{}};
        sends.spawn(sum_all(sends));
        std::exception_ptr failure;
        try {
            co_await sends.join();
        } catch (...) {
            failure = std::current_exception();
        }
        for (auto& group : read_) { // what has failed may still be read by others
            for (auto const& each : group)
                if (failure) co_await each.completion();
            group.clear();
        }
        if (failure) std::rethrow_exception(failure);
    }

private:
    [[nodiscard]] static auto identity(std::size_t group, std::size_t use) noexcept -> std::uint64_t {
        return (std::uint64_t{0xffff} << 48U) | (group << 16U) | use;
    }
    [[nodiscard]] auto holds(parameter_group const& group) const -> bool {
        return std::any_of(group.uses.begin(), group.uses.end(), [&](auto const& use) { return is_local(use); });
    }

    /// Sends every shared gradient of this rank to the other holders, then adds up group by group.
    auto sum_all(scope& sends) -> task<> {
        try {
            for (std::size_t g = 0; g < groups_->size(); ++g) {
                for (std::size_t u = 0; u < (*groups_)[g].uses.size(); ++u) {
                    if (is_local((*groups_)[g].uses[u])) send_to_holders(sends, g, u);
                }
            }
            for (std::size_t g = 0; g < groups_->size(); ++g) {
                parameter_group const& group = (*groups_)[g];
                if (group.uses.size() > 1 && holds(group)) co_await add_up(group, g);
            }
        } catch (...) {
            pipeline_->endpoint().abort();
            throw;
        }
    }

    /// One message to each other rank that holds the parameter, however many uses it has there.
    void send_to_holders(scope& sends, std::size_t g, std::size_t u) {
        auto const& uses = (*groups_)[g].uses;
        for (std::size_t other = 0; other < uses.size(); ++other) {
            bool const told = std::any_of(uses.begin(), uses.begin() + static_cast<std::ptrdiff_t>(other),
                                          [&](auto const& earlier) { return earlier.rank == uses[other].rank; });
            if (is_local(uses[other]) || told) continue;
            ++sends_[g];
            sends.spawn(send(uses[other].rank, g, u));
        }
    }

    auto send(int to, std::size_t g, std::size_t u) -> task<> {
        tensor const held = local((*groups_)[g].uses[u]).gradient;
        typename Device::event const ready = pipeline_->compute_stream().record();
        typename Device::event read = co_await pipeline_->endpoint().send(
            to, {.identity = identity(g, u), .bytes = held.bytes()}, held.data(), ready);
        read_[g].push_back(std::move(read));
        taken_[g].advance();
    }

    /// Adds up all copies of one gradient; writes the sum back once every peer has read what it needs of the old value.
    auto add_up(parameter_group const& group, std::size_t g) -> task<> {
        auto& compute = pipeline_->compute_stream();
        tensor const& any_local = local(*std::find_if(group.uses.begin(), group.uses.end(), [&](auto const& use) {
                                      return is_local(use);
                                  })).gradient;
        tensor const total{*compute.memory(), any_local.sizes()};
        for (std::size_t u = 0; u < group.uses.size(); ++u) {
            parameter_use const& use = group.uses[u];
            tensor addend;
            if (is_local(use)) {
                addend = local(use).gradient;
            } else {
                auto arrived = co_await pipeline_->endpoint().arrival(use.rank, identity(g, u));
                addend = tensor{*compute.memory(), total.sizes()};
                auto& link = pipeline_->link_from(use.rank);
                link.wait(compute.record()); // the block may still be in use by earlier work of the compute stream
                auto const moved = pipeline_->endpoint().accept(arrived, addend.data(), link, timing::off);
                try {
                    compute.wait(moved.end);
                } catch (...) {
                    link.synchronize(); // it still writes to the block
                    throw;
                }
            }
            if (u == 0)
                compute.copy(total.data(), addend.data(), total.bytes());
            else
                compute.add(total.data(), addend.data(), total.count());
        }
        co_await taken_[g].reached(sends_[g]);
        for (auto const& each : read_[g]) compute.wait(each);
        for (parameter_use const& use : group.uses) {
            if (is_local(use)) compute.copy(local(use).gradient.data(), total.data(), total.bytes());
        }
    }

    rank_pipeline<Device, Endpoint>* pipeline_;
    std::vector<parameter_group> const* groups_;
    std::vector<progress_counter> taken_; ///< per group: how many sends have been taken over
    std::vector<std::uint64_t> sends_;    ///< per group: how many there are
    std::vector<std::vector<typename Device::event>> read_; ///< per group: when each send's reader has read
};

} // namespace copipe
