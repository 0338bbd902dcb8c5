// SPDX-License-Identifier: Apache-2.0
// A better expert placement than the published one, by local search: never a busier GPU, and no two copies of one
// expert on the same GPU where that is possible.
#pragma once

#include "copipe/balance/experts.hpp"

#include <cstdint>

namespace copipe {

/// The copies of some experts on some GPUs while a search moves them. A GPU never holds more copies of one expert than
/// it must: one, unless it has more slots than there are experts.
template <class = void> class expert_search {
public:
    /// `loads` of the experts. Starts from copies dealt out like cards, which keeps those of one expert apart.
    expert_search(row<double> loads, int gpus, int slots)
        : loads_(std::move(loads)), shares_(loads_), sums_(gpus), copies_(loads_.count()), held_(gpus * slots),
          slots_(slots), most_((slots + loads_.count() - 1) / loads_.count()) {
        for (int copy = 0; copy < held_.count(); ++copy) {
            int neediest = copy; // each expert needs one copy before any needs two
            for (int e = 0; copy >= loads_.count() && e < loads_.count(); ++e)
                if (copies_[e] < most_ * gpus && (neediest == copy || shares_[e] > shares_[neediest])) neediest = e;
            recount(neediest, 1);
        }
        for (int expert = 0, copy = 0; expert < loads_.count(); ++expert)
            for (int k = 0; k < copies_[expert]; ++k, ++copy) held_[copy % gpus * slots + copy / gpus] = expert;
        weigh();
    }

    /// The expert of each slot, GPU by GPU.
    [[nodiscard]] row<int> const& held() const noexcept { return held_; }

    /// Descends, then again and again from a few random changes of the best so far.
    void improve(int attempts) {
        descend();
        std::uint64_t random = 1;
        double const ideal = std::accumulate(loads_.begin(), loads_.end(), 0.0) / sums_.count() * (1 + 1e-9);
        for (expert_search trial = *this; attempts > 0 && peak() > ideal; --attempts) {
            for (int k = 0; k < 4; ++k) trial.kick(random);
            trial.descend();
            if (trial.peak() <= peak()) *this = trial;
            trial = *this;
        }
    }

private:
    [[nodiscard]] double peak() const { return sums_.max(); }
    /// Whether the GPU of a slot may hold one more copy of an expert.
    [[nodiscard]] bool takes(int slot, int expert) const {
        auto const gpu = held_.begin() + slot / slots_ * slots_;
        return std::count(gpu, gpu + slots_, expert) < most_;
    }
    void recount(int expert, int more) {
        copies_[expert] += more;
        shares_[expert] = loads_[expert] / copies_[expert];
    }
    void weigh() {
        sums_.assign(sums_.size(), 0);
        for (int slot = 0; slot < held_.count(); ++slot) sums_[slot / slots_] += shares_[held_[slot]];
    }

    /// While a swap relieves the busiest GPU without making another as busy, makes the one that relieves it most.
    void descend() {
        for (int slot = 0, other = 0; other >= 0; weigh()) {
            int const busiest = static_cast<int>(std::max_element(sums_.begin(), sums_.end()) - sums_.begin());
            double best = sums_[busiest] * (1 - 1e-12);
            other = -1;
            for (int from = busiest * slots_; from < (busiest + 1) * slots_; ++from)
                for (int to = 0; to < held_.count(); ++to) {
                    double const shift = shares_[held_[from]] - shares_[held_[to]];
                    double const worst = std::max(sums_[busiest] - shift, sums_[to / slots_] + shift);
                    if (shift <= 0 || worst >= best || !takes(from, held_[to]) || !takes(to, held_[from])) continue;
                    best = worst;
                    slot = from;
                    other = to;
                }
            if (other >= 0) std::swap(held_[slot], held_[other]);
        }
    }

    /// Swaps two copies, and makes one of an expert that has several a copy of another expert.
    void kick(std::uint64_t& random) {
        auto const any = [&](int below) { // Park and Miller's generator
            random = random * 48271 % 0x7fffffff;
            return static_cast<int>(random % static_cast<std::uint64_t>(below));
        };
        int const slot = any(held_.count()), other = any(held_.count()), expert = any(loads_.count());
        if (takes(slot, held_[other]) && takes(other, held_[slot])) std::swap(held_[slot], held_[other]);
        if (copies_[held_[slot]] > 1 && takes(slot, expert)) {
            recount(held_[slot], -1);
            recount(held_[slot] = expert, 1);
        }
        weigh();
    }

    row<double> loads_, shares_, sums_; ///< of each expert, of one copy of it, of each GPU
    row<int> copies_, held_;            ///< of each expert; the expert of each slot
    int slots_, most_;
};

/// The placement that a search finds when node k is to hold the experts `nodes[k]`.
template <class = void>
expert_map search_experts(row<double> const& loads, row<row<int>> const& nodes, expert_shape const& shape) {
    row<int> phy2log;
    for (auto const& experts : nodes) {
        row<double> here;
        for (int const expert : experts) here.push_back(loads[expert]);
        expert_search search(std::move(here), shape.gpus / nodes.count(), shape.replicas / shape.gpus);
        search.improve(1 + 8'000 / shape.replicas);
        for (int const expert : search.held()) phy2log.push_back(experts[expert]);
    }
    return numbered(std::move(phy2log), loads.count());
}

/// Places the copies of one layer's experts by search, with three promises. The busiest GPU is never busier than with
/// `place_experts`. No GPU holds two copies of one expert, unless it has more slots than its node has experts or the
/// first promise cannot be kept otherwise. Experts stay on the nodes where `place_experts` has them, unless the second
/// cannot be kept otherwise. Same arguments, same errors.
template <class = void>
[[nodiscard]] expert_map refine_experts(std::span<double const> loads, expert_shape const& wanted) {
    auto const published = place_experts(loads, wanted);
    auto const shape = wanted.effective();
    row<double> const all(loads.begin(), loads.end());
    auto const busiest = [&](expert_map const& map) { return max_over_mean(loads, map, shape.gpus); };
    double const allowed = busiest(published) * (1 + 1e-12);
    auto best = search_experts(all, experts_of_nodes({loads.begin(), loads.end()}, shape), shape);
    if (busiest(best) <= allowed) return best;
    row<int> everyone(all.count());
    std::iota(everyone.begin(), everyone.end(), 0);
    best = search_experts(all, {everyone}, shape);
    return busiest(best) <= allowed ? best : published;
}

} // namespace copipe
