// SPDX-License-Identifier: Apache-2.0
// Lets training finish its step and save when the user presses Ctrl-C or the system asks the process to end.
#pragma once

#include "copipe/error.hpp"

#include <atomic>
#include <cerrno>
#include <csignal>
#include <semaphore.h>
#include <stop_token>
#include <thread>

namespace copipe {

/// While one exists, the first SIGINT (Ctrl-C) or SIGTERM only asks for a stop; the second ends the process at once,
/// as if nobody were listening. Destroyed, it restores what handled the signals before.
///
///     interrupt const asked;
///     trainer.fit(data, steps(1000), {.checkpoint = file, .stop = asked.token()});
///
/// Everything may be called from any thread. One at a time: the second throws `error`.
class interrupt {
public:
    interrupt() {
        if (listening_.exchange(true)) throw error("an interrupt is already listening for Ctrl-C; use that one");
        received_ = 0;
        ::sem_init(&wake_, 0, 0);
        messenger_ = std::thread([this] {
            while (::sem_wait(&wake_) != 0 && errno == EINTR) {}
            if (requested()) source_.request_stop();
        });
        struct sigaction action = {};
        action.sa_handler = &take_note;
        action.sa_flags = SA_RESTART; // system calls under way go on
        ::sigemptyset(&action.sa_mask);
        ::sigaction(SIGINT, &action, &before_int_);
        ::sigaction(SIGTERM, &action, &before_term_);
    }
    interrupt(interrupt const&) = delete;
    interrupt& operator=(interrupt const&) = delete;
    ~interrupt() {
        ::sigaction(SIGINT, &before_int_, nullptr);
        ::sigaction(SIGTERM, &before_term_, nullptr);
        ::sem_post(&wake_);
        messenger_.join();
        ::sem_destroy(&wake_);
        listening_ = false;
    }

    [[nodiscard]] bool requested() const noexcept { return received_ != 0; }
    /// The signal that came first: SIGINT or SIGTERM; 0 if none.
    [[nodiscard]] int signal() const noexcept { return received_; }
    /// Stops a moment after `requested` becomes true. May outlive the interrupt.
    [[nodiscard]] std::stop_token token() const noexcept { return source_.get_token(); }

private:
    /// A signal handler may touch little: atomics without locks and a semaphore, but no stop_source.
    static void take_note(int number) noexcept {
        int none = 0;
        if (received_.compare_exchange_strong(none, number)) {
            int const interrupted = errno;
            ::sem_post(&wake_);
            errno = interrupted;
        } else {
            std::signal(number, SIG_DFL);
            std::raise(number);
        }
    }

    static_assert(std::atomic<int>::is_always_lock_free);
    static inline std::atomic<int> received_{0};
    static inline std::atomic<bool> listening_{false};
    static inline sem_t wake_{};

    std::stop_source source_{};
    std::thread messenger_{};
    struct sigaction before_int_ = {};
    struct sigaction before_term_ = {};
};

} // namespace copipe
