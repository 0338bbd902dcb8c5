// SPDX-License-Identifier: Apache-2.0
// Sums the gradients of parameters that exist more than once: DualPipe's two copies of a stage, replicas, and tied
// weights. All are added in one order, by the transport where it can or from messages, so all copies stay equal bit for
// bit.
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

    /// Of its uses.
    [[nodiscard]] auto ranks() const -> std::vector<int> {
        std::vector<int> all;
        for (parameter_use const& use : uses) all.push_back(use.rank);
        return all;
    }
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
                    if (!uses.empty() && p->tie.empty() && uses.back().stage == stage)
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
        : pipeline_(&pipeline), groups_(&groups), sent_(groups.size()) {}

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
        for (messages& each : sent_) each.taken.reset();
        scope sends{co_await this_environment{}};
        sends.spawn(sum_all(sends));
        std::exception_ptr failure;
        try {
            co_await sends.join();
        } catch (...) {
            failure = std::current_exception();
        }
        for (messages& group : sent_) { // what has failed may still be read by others
            for (auto const& each : group.read)
                if (failure) co_await each.completion();
            group.read.clear();
            group.count = 0;
        }
        if (failure) std::rethrow_exception(failure);
    }

private:
    /// Of one group, from this rank to others.
    struct messages {
        std::uint64_t count = 0;
        progress_counter taken{};                   ///< how many have been taken over
        std::vector<typename Device::event> read{}; ///< when each has been read
    };

    [[nodiscard]] static auto identity(std::size_t group, std::size_t use) noexcept -> std::uint64_t {
        return (std::uint64_t{0xffff} << 48U) | (group << 16U) | use;
    }
    /// This rank's first gradient of a group; none if it holds none.
    [[nodiscard]] auto gradient_of(std::size_t group) const -> tensor {
        for (parameter_use const& use : (*groups_)[group].uses)
            if (is_local(use)) return local(use).gradient;
        return {};
    }

    /// Leaves to the transport what it can sum. Sends the rest to the other holders, then adds up group by group.
    auto sum_all(scope& sends) -> task<> {
        try {
            left_.clear();
            for (std::size_t g = 0; g < groups_->size(); ++g)
                if ((*groups_)[g].uses.size() > 1 && gradient_of(g)) left_.push_back(g);
            if constexpr (summing_endpoint<Endpoint, Device>) sum_by_transport();
            for (std::size_t const g : left_) send_all(sends, g);
            for (std::size_t const g : left_) co_await add_up(g);
        } catch (...) {
            pipeline_->endpoint().abort();
            throw;
        }
    }

    void sum_by_transport() {
        std::map<std::vector<int>, std::vector<summand>> together; // by holders: in one order on all ranks
        for (std::size_t const g : left_)
            together[(*groups_)[g].ranks()].push_back({gradient_of(g).data(), gradient_of(g).count()});
        std::erase_if(together, [this](auto const& some) {
            return !pipeline_->endpoint().sum(some.first, some.second, pipeline_->compute_stream());
        });
        std::erase_if(left_, [&](std::size_t g) { return together.contains((*groups_)[g].ranks()); });
    }

    /// One message of each local use to each other holder, however many uses it has there.
    void send_all(scope& sends, std::size_t g) {
        auto const& uses = (*groups_)[g].uses;
        for (std::size_t u = 0; u < uses.size(); ++u) {
            for (auto to = uses.begin(); is_local(uses[u]) && to != uses.end(); ++to) {
                auto const known = [to](parameter_use const& use) { return use.rank == to->rank; };
                if (is_local(*to) || std::any_of(uses.begin(), to, known)) continue;
                ++sent_[g].count;
                sends.spawn(send(to->rank, g, u));
            }
        }
    }

    auto send(int to, std::size_t g, std::size_t u) -> task<> {
        tensor const held = local((*groups_)[g].uses[u]).gradient;
        typename Device::event const ready = pipeline_->compute_stream().record();
        typename Device::event read = co_await pipeline_->endpoint().send(
            to, {.identity = identity(g, u), .bytes = held.bytes()}, held.data(), ready);
        sent_[g].read.push_back(std::move(read));
        sent_[g].taken.advance();
    }

    /// Adds up all copies of one gradient; writes the sum back once every peer has read what it needs of the old value.
    auto add_up(std::size_t g) -> task<> {
        auto const& uses = (*groups_)[g].uses;
        auto& compute = pipeline_->compute_stream();
        tensor const total{*compute.memory(), gradient_of(g).sizes()};
        for (std::size_t u = 0; u < uses.size(); ++u) {
            tensor addend;
            if (is_local(uses[u])) {
                addend = local(uses[u]).gradient;
            } else {
                addend = tensor{*compute.memory(), total.sizes()};
                static_cast<void>(co_await pipeline_->receive(uses[u].rank, identity(g, u), addend.data()));
            }
            u == 0 ? compute.copy(total.data(), addend.data(), total.bytes())
                   : compute.add(total.data(), addend.data(), total.count());
        }
        co_await sent_[g].taken.reached(sent_[g].count);
        for (auto const& each : sent_[g].read) compute.wait(each);
        for (parameter_use const& use : uses)
            if (is_local(use)) compute.copy(local(use).gradient.data(), total.data(), total.bytes());
    }

    rank_pipeline<Device, Endpoint>* pipeline_;
    std::vector<parameter_group> const* groups_;
    std::vector<messages> sent_;      ///< by group
    std::vector<std::size_t> left_{}; ///< groups that are summed from messages
};

} // namespace copipe
