// SPDX-License-Identifier: Apache-2.0
// The line that tells a waiting user how training goes: redrawn in place on a terminal, elsewhere a new one at times.
#pragma once

#include "copipe/observe/table.hpp"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <sys/ioctl.h>
#include <unistd.h>
#include <utility>

namespace copipe {

/// How training stands after a step.
struct progress_report {
    std::uint64_t step = 0;  ///< steps done
    std::uint64_t steps = 0; ///< steps to do, those done included
    double loss = 0;
    double step_seconds = 0;
    double tokens_per_second = 0;
    double bubble_ratio = 0; ///< mean over the ranks, 0 to 1
};

/// `step  12/400 | loss 2.3456 | 12,345 tokens/s | bubble 12.3 % | 1:23 left`.
template <class = void> [[nodiscard]] std::string progress_text(progress_report const& now, double seconds_left) {
    std::string const all = std::to_string(now.steps), done = std::to_string(now.step);
    std::string const padding(all.size() - std::min(all.size(), done.size()), ' ');
    return "step " + padding + done + "/" + all + " | loss " + decimal(now.loss, 4) + " | " +
           grouped(now.tokens_per_second) + " tokens/s | bubble " + percent(now.bubble_ratio) + " | " +
           clock_time(seconds_left) + " left";
}

/// Shows the progress line. For one thread; other output to the same terminal goes through `print`.
class progress {
public:
    /// Where `out` is not a terminal, a new line every `pause` seconds.
    explicit progress(std::FILE* out = stderr, double pause = 5)
        : out_(out), terminal_(::isatty(::fileno(out)) == 1), pause_(terminal_ ? 0.1 : pause) {}
    progress(progress const&) = delete;
    progress& operator=(progress const&) = delete;
    ~progress() { finish(); }

    /// Takes note of a step; draws the line if the last one is old enough, or the step is the last. `now`: seconds on a
    /// clock that does not go back.
    template <class = void> void show(progress_report const& report, double now = steady_seconds()) {
        average_ = shown_ ? 0.9 * average_ + 0.1 * report.step_seconds : report.step_seconds;
        std::uint64_t const remaining = report.steps - std::min(report.steps, report.step);
        line_ = progress_text(report, average_ * static_cast<double>(remaining));
        stale_ = true;
        if (!shown_ || now - drawn_at_ >= pause_ || remaining == 0) draw(now);
        shown_ = true;
    }

    /// Prints a line above the progress line.
    template <class = void> void print(std::string_view line) {
        if (terminal_ && drawn_) std::fputs(erase, out_);
        std::fwrite(line.data(), 1, line.size(), out_);
        std::fputc('\n', out_);
        if (std::exchange(drawn_, false)) draw(drawn_at_);
        std::fflush(out_);
    }

    /// Draws the last report if it has not been drawn, and leaves the cursor on a new line.
    void finish() {
        if (stale_) draw(drawn_at_);
        if (std::exchange(drawn_, false)) std::fputc('\n', out_);
        std::fflush(out_);
    }

private:
    static constexpr char const* erase = "\r\x1b[K";

    [[nodiscard]] static double steady_seconds() noexcept {
        return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    }

    void draw(double now) {
        std::string_view line = line_;
        if (terminal_) {
            winsize window{};
            bool const known = ::ioctl(::fileno(out_), TIOCGWINSZ, &window) == 0 && window.ws_col > 1;
            if (known) line = line.substr(0, window.ws_col - 1U); // a line that wraps cannot be redrawn
            std::fputs(erase, out_);
        }
        std::fwrite(line.data(), 1, line.size(), out_);
        if (!terminal_) std::fputc('\n', out_);
        std::fflush(out_);
        drawn_ = terminal_;
        drawn_at_ = now;
        stale_ = false;
    }

    std::FILE* out_;
    bool terminal_;
    double pause_;
    double average_ = 0;
    double drawn_at_ = 0;
    bool shown_ = false; // at least one report came
    bool drawn_ = false; // the terminal's current line is ours
    bool stale_ = false; // the last report is newer than what is drawn
    std::string line_;
};

} // namespace copipe
