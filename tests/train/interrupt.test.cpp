// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "copipe/train/interrupt.hpp"

#include <chrono>
#include <csignal>
#include <optional>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

using namespace copipe;

namespace {

bool stops_soon(std::stop_token const& token) {
    for (int i = 0; i < 5000 && !token.stop_requested(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return token.stop_requested();
}

int handled = 0;
void count(int) { ++handled; }

/// How a child process ends that runs `f`: the number of the signal that killed it, or 1000 + what f returns.
template <class F>
int end_of_child(F const& f) {
    pid_t const child = ::fork();
    if (child == 0) {
        ::_exit(f());
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 1000 + WEXITSTATUS(status);
}

} // namespace

TEST_CASE("Ctrl-C and SIGTERM ask for a stop, and the process goes on") {
    for (int const number : {SIGINT, SIGTERM}) {
        interrupt const asked;
        auto const token = asked.token();
        CHECK_FALSE(asked.requested());
        CHECK(asked.signal() == 0);
        CHECK_FALSE(token.stop_requested());
        std::raise(number);
        CHECK(asked.requested());
        CHECK(asked.signal() == number);
        CHECK(stops_soon(token));
    }
}

TEST_CASE("without a signal nothing stops, and a new interrupt has forgotten the signals of an earlier one") {
    {
        interrupt const asked;
        std::raise(SIGINT);
    }
    std::optional<interrupt> asked;
    asked.emplace();
    auto const token = asked->token();
    CHECK_FALSE(asked->requested());
    asked.reset();
    CHECK_FALSE(token.stop_requested());
}

TEST_CASE("what handled the signals before handles them afterwards") {
    auto const original = std::signal(SIGINT, &count);
    handled = 0;
    {
        interrupt const asked;
        std::raise(SIGINT);
        CHECK(handled == 0);
    }
    std::raise(SIGINT);
    CHECK(handled == 1);
    std::signal(SIGINT, original);
}

TEST_CASE("only one can listen at a time") {
    interrupt const asked;
    CHECK_THROWS_AS(interrupt{}, error);
    std::raise(SIGTERM);
    CHECK(asked.requested());
}

TEST_CASE("a second Ctrl-C ends the process at once, by that signal") {
    CHECK(end_of_child([] {
              interrupt const asked;
              std::raise(SIGINT);
              return asked.requested() ? 3 : 4;
          }) == 1003);
    CHECK(end_of_child([] {
              interrupt const asked;
              std::raise(SIGINT);
              std::raise(SIGINT);
              return 0;
          }) == SIGINT);
    CHECK(end_of_child([] {
              interrupt const asked;
              std::raise(SIGINT);
              std::raise(SIGTERM);
              return 0;
          }) == SIGTERM);
}
