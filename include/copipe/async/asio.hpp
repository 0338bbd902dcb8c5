// SPDX-License-Identifier: Apache-2.0
// Boost.Asio and copipe's coroutines, both ways: a task awaits any Asio operation with the completion token use_task,
// and an Asio program starts a task on its io_context with copipe::co_spawn and any completion token.
#pragma once

#include "copipe/async/task.hpp"
#include "copipe/async/wait_queue.hpp"

#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/associated_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/system/system_error.hpp>

#include <array>
#include <coroutine>
#include <cstddef>
#include <exception>
#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>

namespace copipe {

/// An executor whose idle time serves an io_context. Driven by `run`/`run_until`, or by the program's own `io.run()`:
/// each hand-over from outside posts one handler that drains the run queue. One thread may run the io_context.
template <class = void> class basic_asio_executor final : public executor {
public:
    explicit basic_asio_executor(boost::asio::io_context& io) : io_(&io) {}
    ~basic_asio_executor() override { await_wakers(); }

    [[nodiscard]] auto context() const noexcept -> boost::asio::io_context& { return *io_; }

private:
    void idle() override {
        auto const work = boost::asio::make_work_guard(*io_);
        if (io_->stopped()) io_->restart();
        io_->run_one();
    }
    void notify() noexcept override { boost::asio::post(*io_, doorbell{this}); }

    /// The handler that drives the run queue after a hand-over. Only it takes what was handed over: so there is at most
    /// one at a time, in memory of the executor's own, and none is left behind when the last coroutine has ended.
    struct doorbell {
        basic_asio_executor* self;

        template <class T>
        struct own_memory {
            using value_type = T;
            basic_asio_executor* self;

            explicit own_memory(basic_asio_executor* owner) noexcept : self(owner) {}
            template <class U>
            own_memory(own_memory<U> const& other) noexcept : self(other.self) {}
            [[nodiscard]] auto allocate(std::size_t) const noexcept -> T* {
                static_assert(sizeof(T) <= sizeof self->doorbell_memory_, "asio needs more memory for a handler");
                return reinterpret_cast<T*>(self->doorbell_memory_.data());
            }
            static void deallocate(T*, std::size_t) noexcept {}
            [[nodiscard]] auto operator==(own_memory const&) const noexcept -> bool = default;
        };
        using allocator_type = own_memory<std::byte>;
        [[nodiscard]] auto get_allocator() const noexcept -> allocator_type { return allocator_type{self}; }

        void operator()() const {
            self->take_woken();
            while (self->run_one()) {}
        }
    };

    alignas(std::max_align_t) std::array<std::byte, 128> doorbell_memory_;
    boost::asio::io_context* io_;
};
using asio_executor = basic_asio_executor<>;

/// Completion token: `co_await timer.async_wait(use_task)`. An error code becomes a boost::system::system_error, the
/// other results are returned (several as a tuple). Stopping the awaiting task emits a terminal cancellation to the
/// operation and throws `cancelled`. The operation's handlers must run on the thread of the task's executor (use an
/// asio_executor).
struct use_task_t {};
inline constexpr use_task_t use_task{};

/// The awaitable an Asio operation turns into under `use_task`.
template <class Initiation, class Arguments, class... Results>
class [[nodiscard]] asio_operation : waiter {
public:
    asio_operation(Initiation initiation, Arguments arguments)
        : initiation_(std::move(initiation)), arguments_(std::move(arguments)) {}
    asio_operation(asio_operation const&) = delete;
    auto operator=(asio_operation const&) -> asio_operation& = delete;

    [[nodiscard]] static constexpr auto await_ready() noexcept -> bool { return false; }
    void await_suspend(std::coroutine_handle<> self, environment const* inherited) {
        handle = self;
        env = inherited;
        if (inherited->stop.stop_requested()) throw cancelled{};
        stop_.arm(inherited->stop, *this);
        std::apply([this](auto&&... each) { std::move(initiation_)(completion{this}, std::move(each)...); },
                   std::move(arguments_));
    }
    auto await_resume() {
        stop_.disarm();
        if (env->stop.stop_requested()) throw cancelled{};
        return std::apply([](auto&&... each) { return unpack(std::move(each)...); }, *std::move(results_));
    }

private:
    friend class on_stop_request<asio_operation>;

    struct completion {
        using cancellation_slot_type = boost::asio::cancellation_slot;
        asio_operation* operation;
        [[nodiscard]] auto get_cancellation_slot() const noexcept { return operation->cancellation_.slot(); }
        void operator()(Results... results) const {
            operation->results_.emplace(std::move(results)...);
            operation->env->exec->wake(*operation);
        }
    };

    template <class First, class... Rest>
    static auto unpack(First first, Rest... rest) {
        if constexpr (std::is_same_v<First, boost::system::error_code>) {
            if (first) throw boost::system::system_error(first);
            return unpack(std::move(rest)...);
        } else if constexpr (std::is_same_v<First, std::exception_ptr>) {
            if (first) std::rethrow_exception(first);
            return unpack(std::move(rest)...);
        } else if constexpr (sizeof...(Rest) == 0) {
            return first;
        } else {
            return std::tuple<First, Rest...>{std::move(first), std::move(rest)...};
        }
    }
    static void unpack() noexcept {}

    void on_stop() { cancellation_.emit(boost::asio::cancellation_type::terminal); }

    Initiation initiation_;
    Arguments arguments_;
    boost::asio::cancellation_signal cancellation_{};
    std::optional<std::tuple<Results...>> results_{};
    on_stop_request<asio_operation> stop_{};
};

template <class T>
struct completion_signature {
    using type = void(std::exception_ptr, T);
};
template <>
struct completion_signature<void> {
    using type = void(std::exception_ptr);
};

/// A root task on its way through an io_context: owns itself, its executor and the program's completion handler.
template <class T, class Handler>
class spawned final : task_owner {
public:
    spawned(boost::asio::io_context& io, task<T> root, std::stop_token stop, Handler handler)
        : exec_(io), env_{.exec = &exec_, .stop = std::move(stop)}, root_(std::move(root)),
          handler_(std::move(handler)), work_(boost::asio::make_work_guard(io)),
          handler_work_(boost::asio::make_work_guard(handler_, io)) {}

    void start() {
        start_.handle = root_.prepare(*this, env_);
        exec_.wake(start_);
    }

private:
    auto finished(std::coroutine_handle<>, std::exception_ptr failure) noexcept -> std::coroutine_handle<> override {
        boost::asio::post(exec_.context(), [self = std::unique_ptr<spawned>(this), failure]() mutable {
            auto const where = self->handler_work_; // the handler's own executor stays at work until it has run
            auto call = [handler = std::move(self->handler_), results = self->results(failure)]() mutable {
                std::apply(std::move(handler), std::move(results));
            };
            self.reset();
            boost::asio::dispatch(where.get_executor(), std::move(call));
        });
        return std::noop_coroutine();
    }
    [[nodiscard]] auto results(std::exception_ptr const& failure) {
        if constexpr (std::is_void_v<T>)
            return std::tuple{failure};
        else
            return std::tuple<std::exception_ptr, T>{failure, failure ? T{} : root_.result()};
    }

    using own_executor = boost::asio::io_context::executor_type;

    asio_executor exec_;
    environment env_;
    task<T> root_;
    Handler handler_;
    boost::asio::executor_work_guard<own_executor> work_;
    boost::asio::executor_work_guard<boost::asio::associated_executor_t<Handler, own_executor>> handler_work_;
    waiter start_{};
};

/// Runs a task on the io_context of an Asio program. Any completion token with signature void(std::exception_ptr, T),
/// or void(std::exception_ptr) for task<void>: a callback, boost::asio::use_future, boost::asio::detached,
/// use_awaitable; the handler runs on its associated executor, by default the io_context. `stop` cancels the task.
template <class T, class Token>
auto co_spawn(boost::asio::io_context& io, task<T> root, Token&& token, std::stop_token stop = {}) {
    using signature = typename completion_signature<T>::type;
    return boost::asio::async_initiate<Token, signature>(
        [&io](auto handler, task<T> started, std::stop_token stopped) {
            auto* const self =
                new spawned<T, decltype(handler)>(io, std::move(started), std::move(stopped), std::move(handler));
            self->start();
        },
        token, std::move(root), std::move(stop));
}

} // namespace copipe

/// How Asio finds out what `use_task` makes of an operation.
template <class... Results>
class boost::asio::async_result<copipe::use_task_t, void(Results...)> {
public:
    template <class Initiation, class... Arguments>
    static auto initiate(Initiation&& initiation, copipe::use_task_t, Arguments&&... arguments) {
        using operation = copipe::asio_operation<std::decay_t<Initiation>, std::tuple<std::decay_t<Arguments>...>,
                                                 std::decay_t<Results>...>;
        return operation{std::forward<Initiation>(initiation),
                         std::tuple<std::decay_t<Arguments>...>{std::forward<Arguments>(arguments)...}};
    }
};
