// SPDX-License-Identifier: Apache-2.0
// Runs a program as a user does: with arguments, signals, an exit code, and what it prints.
#pragma once

#include "../temporary_folder.hpp"

#include <chrono>
#include <csignal>
#include <fcntl.h>
#include <stdexcept>
#include <string>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <utility>
#include <vector>

/// What is left of a program that has ended.
struct outcome {
    int code; ///< -1 if a signal killed it
    std::string out;
    std::string err;
};

/// A program under way in a folder; its output goes to files in another.
class program {
public:
    program(std::string const& path, std::vector<std::string> arguments, std::string const& folder = ".") {
        arguments.insert(arguments.begin(), path);
        std::vector<char*> words;
        for (std::string& each : arguments) words.push_back(each.data());
        words.push_back(nullptr);
        std::string const out = output_ / "out", err = output_ / "err";
        process_ = ::fork();
        if (process_ < 0) throw std::runtime_error("cannot fork");
        if (process_ > 0) return;
        int const to_out = ::open(out.c_str(), O_WRONLY | O_CREAT, 0600);
        int const to_err = ::open(err.c_str(), O_WRONLY | O_CREAT, 0600);
        ::dup2(to_out, 1);
        ::dup2(to_err, 2);
        if (::chdir(folder.c_str()) == 0) ::execv(words.front(), words.data());
        ::_exit(127);
    }
    program(program const&) = delete;
    program& operator=(program const&) = delete;
    ~program() {
        if (process_ <= 0) return;
        ::kill(process_, SIGKILL);
        ::waitpid(process_, nullptr, 0);
    }

    void signal(int number) const { ::kill(process_, number); }

    /// Waits for its end.
    [[nodiscard]] auto end() -> outcome {
        int status = 0;
        ::waitpid(std::exchange(process_, -1), &status, 0);
        return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, contents(output_ / "out"), contents(output_ / "err")};
    }

private:
    temporary_folder output_{};
    pid_t process_ = -1;
};

/// Waits until `holds()`, at most a minute; false if it never did.
template <class Condition>
[[nodiscard]] bool comes_true(Condition holds) {
    for (int i = 0; i < 60'000; ++i) {
        if (holds()) return true;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
}
