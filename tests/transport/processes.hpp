// SPDX-License-Identifier: Apache-2.0
// For tests of what several processes do together on one machine: a free port, and processes made by fork.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <exception>
#include <functional>
#include <string>
#include <utility>
#include <vector>

/// A port of the loopback interface that nobody listens at.
inline auto free_port() -> std::uint16_t {
    boost::asio::io_context io;
    boost::asio::ip::tcp::acceptor const door{io, {boost::asio::ip::address_v4::loopback(), 0}};
    return door.local_endpoint().port();
}

/// Processes that each run a function and hand back the text that it returned, or what it threw. For use before the
/// test has started any thread.
class forked {
public:
    forked(int count, std::function<std::string(int)> const& body) {
        for (int i = 0; i < count; ++i) {
            int ends[2];
            if (pipe(ends) != 0) throw std::runtime_error("no pipe");
            pid_t const child = fork();
            if (child == 0) {
                close(ends[0]);
                std::string said;
                try {
                    said = body(i);
                } catch (std::exception const& e) {
                    said = e.what();
                }
                std::size_t const written = static_cast<std::size_t>(write(ends[1], said.data(), said.size()));
                _exit(written == said.size() ? 0 : 1);
            }
            close(ends[1]);
            children_.push_back({child, ends[0]});
        }
    }
    forked(forked const&) = delete;
    auto operator=(forked const&) -> forked& = delete;
    ~forked() {
        for (auto const& [child, end] : children_) {
            ::kill(child, SIGKILL);
            waitpid(child, nullptr, 0);
            close(end);
        }
    }

    void signal(int which, int number) const { ::kill(children_[static_cast<std::size_t>(which)].first, number); }
    void kill(int which) const { signal(which, SIGKILL); }

    /// What the process said; waits until it has ended.
    [[nodiscard]] auto said(int which) const -> std::string {
        std::string text;
        char part[256];
        for (ssize_t got = 0; (got = read(children_[static_cast<std::size_t>(which)].second, part, sizeof part)) > 0;)
            text.append(part, static_cast<std::size_t>(got));
        return text;
    }

private:
    std::vector<std::pair<pid_t, int>> children_{};
};
