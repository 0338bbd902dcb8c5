// SPDX-License-Identifier: Apache-2.0
// The ranks of this process: each with a thread and an executor of its own, or all on the calling thread, there also on
// an executor of the caller's, such as a simulation.
#pragma once

#include "copipe/async/asio.hpp"
#include "copipe/async/task.hpp"
#include "copipe/transport/transport.hpp"

#include <boost/asio/io_context.hpp>

#include <coroutine>
#include <cstddef>
#include <deque>
#include <exception>
#include <latch>
#include <stop_token>
#include <thread>
#include <utility>

namespace copipe {

enum class rank_threads : bool { one_each, calling_thread };

/// Runs one coroutine per rank, beside each other, and waits for all.
template <class = void> class basic_rank_team {
public:
    /// Throws std::system_error where the system does not give it as many threads.
    explicit basic_rank_team(int ranks, rank_threads threads = rank_threads::one_each)
        : basic_rank_team(ranks, threads, nullptr) {
        for (int i = 0; i < (threads == rank_threads::one_each ? ranks : 1); ++i) members_.emplace_back();
        if (threads == rank_threads::calling_thread) return;
        for (member& each : members_)
            each.thread = std::thread([&each] { each.exec.run_until([&each] { return each.leaving; }); });
    }
    /// All ranks on the calling thread and on `shared`, which outlives the team.
    basic_rank_team(int ranks, executor& shared) : basic_rank_team(ranks, rank_threads::calling_thread, &shared) {}
    basic_rank_team(basic_rank_team const&) = delete;
    auto operator=(basic_rank_team const&) -> basic_rank_team& = delete;
    ~basic_rank_team() {
        for (member& each : members_) {
            if (!each.thread.joinable()) continue;
            run_on(each, leave(each));
            each.thread.join();
        }
    }

    [[nodiscard]] auto size() const noexcept -> int { return ranks_; }
    /// The executor of a rank: an asio_executor, unless one was given.
    [[nodiscard]] auto exec(int rank) noexcept -> executor& {
        if (shared_) return *shared_;
        return members_[threads_ == rank_threads::one_each ? static_cast<std::size_t>(rank) : 0].exec;
    }

    /// Runs `make(rank)` for every rank and waits until all have ended. Throws the failure that came first in cause:
    /// one that is not merely the echo of another rank's (peer_failed) or of a sibling's (cancelled).
    template <class Make>
        requires std::is_invocable_r_v<task<>, Make&, int>
    void run(Make make) {
        std::deque<root> roots;
        std::latch ended{ranks_};
        stop_ = {};
        for (int rank = 0; rank < ranks_; ++rank) roots.emplace_back(make(rank), exec(rank), ended, stop_.get_token());
        for (root& each : roots) each.env.exec->wake(each.start);
        if (threads_ == rank_threads::calling_thread) exec(0).run_until([&] { return ended.try_wait(); });
        ended.wait();
        std::exception_ptr first;
        for (root& each : roots) {
            if (each.failure && (!first || (is_echo(first) && !is_echo(each.failure)))) first = each.failure;
        }
        if (first) std::rethrow_exception(first);
    }

    /// Ends the run under way: what its ranks await throws `cancelled`. On the thread that all ranks share.
    void cancel() { stop_.request_stop(); }

private:
    /// Once this is done, a constructor that fails ends the threads that it has started: the destructor runs.
    basic_rank_team(int ranks, rank_threads threads, executor* shared)
        : ranks_(ranks), threads_(threads), shared_(shared) {}

    struct member {
        boost::asio::io_context io{1};
        asio_executor exec{io};
        bool leaving = false;
        std::thread thread{};
    };

    struct root final : task_owner {
        root(task<> made, executor& exec, std::latch& latch, std::stop_token stop = {})
            : body(std::move(made)), env{.exec = &exec, .stop = std::move(stop)}, ended(&latch) {
            start.handle = body.prepare(*this, env);
        }
        auto finished(std::coroutine_handle<>, std::exception_ptr why) noexcept -> std::coroutine_handle<> override {
            failure = std::move(why);
            ended->count_down();
            return std::noop_coroutine();
        }
        task<> body;
        environment env;
        waiter start{};
        std::latch* ended;
        std::exception_ptr failure{};
    };

    static auto leave(member& self) -> task<> {
        self.leaving = true;
        co_return;
    }
    static void run_on(member& where, task<> body) {
        std::latch ended{1};
        root last{std::move(body), where.exec, ended};
        where.exec.wake(last.start);
        ended.wait();
    }

    [[nodiscard]] static auto is_echo(std::exception_ptr const& failure) -> bool {
        try {
            std::rethrow_exception(failure);
        } catch (peer_failed const&) {
            return true;
        } catch (cancelled const&) {
            return true;
        } catch (...) {
            return false;
        }
    }

    int ranks_;
    rank_threads threads_;
    executor* shared_;
    std::stop_source stop_{};
    std::deque<member> members_{};
};

using rank_team = basic_rank_team<>;

} // namespace copipe
