// SPDX-License-Identifier: Apache-2.0
// What some ranks add up through NCCL, on a communicator of their own.
#pragma once

#include "copipe/device/cuda.hpp"
#include "copipe/transport/nccl_communicator.hpp"
#include "copipe/transport/transport.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace copipe {

/// One rank's end of the sums over a list of ranks. For the rank's thread, except where it says otherwise.
class nccl_sum {
public:
    /// `ranks` in ascending order.
    nccl_sum(int rank, std::vector<int> ranks) : rank_(rank), ranks_(std::move(ranks)) {}

    [[nodiscard]] auto ranks() const noexcept -> std::vector<int> const& { return ranks_; }
    [[nodiscard]] auto opened() const noexcept -> std::shared_ptr<nccl_communicator> const& { return through_; }

    /// Begins anew with this communicator.
    void open(std::shared_ptr<nccl_communicator> made) {
        through_ = std::move(made);
        std::scoped_lock const lock{mutex_};
        under_way_.clear();
    }

    /// Adds to the group what connects the ranks as sums do, in the memory that it returns.
    [[nodiscard]] auto warm(nccl_group& group, cuda_stream& on) -> cuda_block {
        cuda_block memory = take_block(*on.memory(), 2 * ranks_.size() * sizeof(float));
        auto* const numbers = reinterpret_cast<float*>(memory.get());
        if (ranks_.size() == 2)
            through_->all_reduce(group, numbers, 1, on.handle());
        else
            deal(group, numbers, ranks_.size(), numbers + ranks_.size(), on);
        return memory;
    }

    /// Enqueues what makes each part the sum of all ranks' parts of its number, added in the order of `order`, a list
    /// of all ranks: the same bits on each, at every call. Two numbers have one sum, so for two ranks NCCL's own
    /// serves. Its sums of more have no order that one could rely on: each rank adds up a slice, and gives it to all.
    void add_up(std::span<int const> order, std::span<summand const> parts, cuda_stream& on) {
        if (ranks_.size() == 2) {
            nccl_group group;
            for (summand const& each : parts) through_->all_reduce(group, each.data, each.count, on.handle());
            group.end(through_->where());
        } else {
            for (summand const& each : parts) add_up_in_order(order, each, on);
        }
        cuda_event over = on.record();
        std::scoped_lock const lock{mutex_};
        under_way_.push_back(std::move(over));
        ++changes_;
    }

    /// What the watch is told. From any thread.
    struct state {
        std::uint64_t changes = 0; ///< grows whenever something moves
        bool begun = false;        ///< a sum is under way
    };
    [[nodiscard]] auto look() -> state {
        std::scoped_lock const lock{mutex_};
        while (!under_way_.empty() && cudaEventQuery(under_way_.front().handle()) != cudaErrorNotReady) {
            under_way_.pop_front();
            ++changes_;
        }
        return {changes_, !under_way_.empty()};
    }
    /// Throws nccl_error if the communicator has failed. From any thread.
    void check() const {
        if (through_) through_->check();
    }

private:
    /// Where the slice begins of `count` numbers that a rank of the communicator adds up, and how long it is.
    [[nodiscard]] auto slice(std::size_t rank, std::size_t count) const noexcept -> std::size_t {
        return rank * count / ranks_.size();
    }
    [[nodiscard]] auto length(std::size_t rank, std::size_t count) const noexcept -> std::size_t {
        return slice(rank + 1, count) - slice(rank, count);
    }
    [[nodiscard]] auto index_of(int rank) const noexcept -> std::size_t {
        return static_cast<std::size_t>(std::lower_bound(ranks_.begin(), ranks_.end(), rank) - ranks_.begin());
    }

    /// Gives each rank its slice of this rank's numbers; all ranks' numbers of this rank's slice come to `dealt`, one
    /// row for each.
    void deal(nccl_group& group, float const* data, std::size_t count, float* dealt, cuda_stream& on) {
        std::size_t const own = length(index_of(rank_), count);
        for (std::size_t i = 0; i < ranks_.size(); ++i) {
            auto const peer = static_cast<int>(i);
            through_->send(group, peer, data + slice(i, count), length(i, count) * sizeof(float), on.handle());
            through_->receive(group, peer, dealt + i * own, own * sizeof(float), on.handle());
        }
    }
    void add_up_in_order(std::span<int const> order, summand const& part, cuda_stream& on) {
        std::size_t const own = length(index_of(rank_), part.count);
        cuda_block const memory = take_block(*on.memory(), (own + 1) * ranks_.size() * sizeof(float)); // never none
        auto* const dealt = reinterpret_cast<float*>(memory.get());
        nccl_group out;
        deal(out, part.data, part.count, dealt, on);
        out.end(through_->where());
        float* const sum = dealt + index_of(order.front()) * own;
        for (int const rank : order.subspan(1)) on.add(sum, dealt + index_of(rank) * own, own);
        nccl_group back;
        for (std::size_t i = 0; i < ranks_.size(); ++i) {
            auto const peer = static_cast<int>(i);
            through_->send(back, peer, sum, own * sizeof(float), on.handle());
            through_->receive(back, peer, part.data + slice(i, part.count), length(i, part.count) * sizeof(float),
                              on.handle());
        }
        back.end(through_->where());
    }

    int rank_;
    std::vector<int> ranks_;
    std::shared_ptr<nccl_communicator> through_{};
    std::mutex mutex_{}; ///< for what the watch looks at
    std::deque<cuda_event> under_way_{};
    std::uint64_t changes_ = 0;
};

} // namespace copipe
