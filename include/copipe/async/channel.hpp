// SPDX-License-Identifier: Apache-2.0
// A FIFO of values between coroutines, of one rank or of two: the one place where copipe's coroutines cross threads.
#pragma once

#include "copipe/async/task.hpp"
#include "copipe/async/wait_queue.hpp"

#include <algorithm>
#include <coroutine>
#include <cstddef>
#include <exception>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

namespace copipe {

/// An unbounded FIFO. Any thread may send; any coroutine may receive and is resumed on its own executor.
///
/// Semantics: each value is received once, values in the order sent, receivers in the order they came. Sending never
/// suspends and allocates only while the queue grows past its longest length so far. `close(reason)` drops what is
/// queued, and every receive, pending or later, throws `reason` until `reset()`. A receive is cancelled by its
/// environment's stop.
template <class T>
    requires std::movable<T> && std::default_initializable<T>
class channel {
public:
    explicit channel(std::size_t expected = 8) : ring_(std::max<std::size_t>(expected, 1)) {}
    channel(channel const&) = delete;
    auto operator=(channel const&) -> channel& = delete;

    /// False, and the value is dropped, when the channel is closed.
    auto send(T value) -> bool {
        receiver* woken = nullptr;
        {
            std::scoped_lock const lock{mutex_};
            if (closed_) return false;
            if (first_) {
                woken = std::exchange(first_, first_->after_);
                woken->value_.emplace(std::move(value));
                woken->listed_ = false;
            } else {
                push(std::move(value));
            }
        }
        if (woken) woken->env->exec->wake(*woken);
        return true;
    }

    /// One pending receive. Lives in the frame of the coroutine that receives.
    class [[nodiscard]] receiver : waiter {
    public:
        explicit receiver(channel& from) noexcept : from_(&from) {}
        receiver(receiver const&) = delete;
        auto operator=(receiver const&) -> receiver& = delete;

        [[nodiscard]] static constexpr auto await_ready() noexcept -> bool { return false; }
        [[nodiscard]] auto await_suspend(std::coroutine_handle<> self, environment const* inherited) -> bool {
            handle = self;
            env = inherited;
            if (inherited->stop.stop_requested()) throw cancelled{};
            stop_.arm(inherited->stop, *this);
            std::scoped_lock const lock{from_->mutex_};
            if (from_->closed_) {
                failure_ = from_->closed_;
            } else if (from_->size_ != 0) {
                value_.emplace(from_->pop());
            } else {
                from_->append(*this);
                listed_ = true;
            }
            return listed_;
        }
        auto await_resume() -> T {
            stop_.disarm();
            if (failure_) std::rethrow_exception(failure_);
            return *std::move(value_);
        }

    private:
        friend class channel;
        friend class on_stop_request<receiver>;

        void on_stop() noexcept {
            {
                std::scoped_lock const lock{from_->mutex_};
                if (!listed_) return; // a value or a failure is on its way
                from_->erase(*this);
                failure_ = std::make_exception_ptr(cancelled{});
            }
            env->exec->wake(*this);
        }

        channel* from_;
        receiver* after_ = nullptr;
        bool listed_ = false;
        std::optional<T> value_{};
        std::exception_ptr failure_{};
        on_stop_request<receiver> stop_{};
    };

    /// `T value = co_await channel.receive()`.
    [[nodiscard]] auto receive() noexcept -> receiver { return receiver{*this}; }

    /// Takes the oldest value if there is one.
    [[nodiscard]] auto try_receive() -> std::optional<T> {
        std::scoped_lock const lock{mutex_};
        if (size_ == 0) return std::nullopt;
        return pop();
    }

    /// Ends every pending and later receive with `reason`.
    void close(std::exception_ptr reason) {
        receiver* woken = nullptr;
        {
            std::scoped_lock const lock{mutex_};
            if (closed_) return;
            closed_ = reason;
            while (size_ != 0) static_cast<void>(pop());
            woken = std::exchange(first_, nullptr);
            for (receiver* each = woken; each; each = each->after_) {
                each->failure_ = reason;
                each->listed_ = false;
            }
        }
        while (woken) {
            receiver& each = *std::exchange(woken, woken->after_);
            each.env->exec->wake(each);
        }
    }

    /// Open and empty again. Nobody may be receiving.
    void reset() {
        std::scoped_lock const lock{mutex_};
        closed_ = nullptr;
        while (size_ != 0) static_cast<void>(pop());
    }

private:
    void push(T value) {
        if (size_ == ring_.size()) {
            std::rotate(ring_.begin(), ring_.begin() + static_cast<std::ptrdiff_t>(oldest_), ring_.end());
            oldest_ = 0;
            ring_.resize(2 * ring_.size());
        }
        ring_[(oldest_ + size_++) % ring_.size()] = std::move(value);
    }
    auto pop() -> T {
        T value = std::exchange(ring_[oldest_], T{});
        oldest_ = (oldest_ + 1) % ring_.size();
        --size_;
        return value;
    }
    void append(receiver& last) noexcept {
        receiver** place = &first_;
        while (*place) place = &(*place)->after_;
        *place = &last;
    }
    void erase(receiver& gone) noexcept {
        receiver** place = &first_;
        while (*place != &gone) place = &(*place)->after_;
        *place = gone.after_;
    }

    std::mutex mutex_{};
    std::vector<T> ring_;
    std::size_t oldest_ = 0;
    std::size_t size_ = 0;
    receiver* first_ = nullptr;
    std::exception_ptr closed_{};
};

} // namespace copipe
