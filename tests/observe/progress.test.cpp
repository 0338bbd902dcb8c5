// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "copipe/observe/progress.hpp"
#include "temporary_folder.hpp"

#include <cstdlib>
#include <fcntl.h>

using namespace copipe;

namespace {

progress_report report(std::uint64_t step) {
    return {.step = step,
            .steps = 100,
            .loss = 2.5,
            .step_seconds = step == 1 ? 100.0 : 2.0,
            .tokens_per_second = 12345,
            .bubble_ratio = 0.25};
}

/// A stream that is a terminal, and what was written to it.
class terminal {
public:
    terminal() : master_(::posix_openpt(O_RDWR | O_NOCTTY)) {
        if (master_ < 0 || ::grantpt(master_) != 0 || ::unlockpt(master_) != 0) throw std::runtime_error("no terminal");
        out_ = std::fopen(::ptsname(master_), "w");
    }
    ~terminal() {
        std::fclose(out_);
        ::close(master_);
    }
    [[nodiscard]] std::FILE* out() const { return out_; }
    void columns(unsigned short count) const {
        winsize const size{.ws_row = 24, .ws_col = count, .ws_xpixel = 0, .ws_ypixel = 0};
        ::ioctl(master_, TIOCSWINSZ, &size);
    }
    [[nodiscard]] std::string read() const {
        std::string text(4096, '\0');
        auto const count = ::read(master_, text.data(), text.size());
        text.resize(static_cast<std::size_t>(std::max<ssize_t>(count, 0)));
        return text;
    }

private:
    int master_;
    std::FILE* out_ = nullptr;
};

template <class Use>
std::string written_to_file(Use const& use) {
    temporary_folder const folder;
    std::FILE* const out = std::fopen((folder / "out").c_str(), "w");
    use(out);
    std::fclose(out);
    return contents(folder / "out");
}

} // namespace

TEST_CASE("the line tells step, loss, speed, bubble and time left") {
    CHECK(progress_text(report(7), 83.4) == "step   7/100 | loss 2.5000 | 12,345 tokens/s | bubble 25.0 % | 1:23 left");
}

TEST_CASE("time left follows the recent time of a step, a slow first one is soon forgotten") {
    auto const text = written_to_file([](std::FILE* out) {
        progress line{out, 0};
        for (std::uint64_t step = 1; step <= 50; ++step) line.show(report(step), static_cast<double>(step));
    });
    CHECK(text.find("step  50/100") != std::string::npos);
    CHECK(text.find("| 2:08 left") != std::string::npos); // 50 steps of little more than 2 seconds
}

TEST_CASE("a file gets the first step, one line every few seconds, and the last step") {
    auto const text = written_to_file([](std::FILE* out) {
        progress line{out, 5};
        for (std::uint64_t step = 1; step <= 100; ++step) line.show(report(step), 0.1 * static_cast<double>(step));
    });
    CHECK(std::count(text.begin(), text.end(), '\n') == 3);
    CHECK(text.find('\r') == std::string::npos);
    CHECK(text.find("step   1/100") == 0);
    CHECK(text.find("step 100/100") != std::string::npos);
}

TEST_CASE("the last report is shown even if it came too soon after another") {
    auto const text = written_to_file([](std::FILE* out) {
        progress line{out, 5};
        line.show(report(1), 10);
        line.show(report(2), 10.1);
    });
    CHECK(text.find("step   2/100") != std::string::npos);
}

TEST_CASE("on a terminal the line is redrawn in place, and other lines go above it") {
    terminal const screen;
    screen.columns(200);
    {
        progress line{screen.out()};
        line.show(report(1), 10);
        auto const first = screen.read();
        CHECK(first.find("\r\x1b[Kstep   1/100") == 0);
        CHECK(first.find('\n') == std::string::npos);
        line.show(report(2), 11);
        CHECK(screen.read().find("\r\x1b[Kstep   2/100") == 0);
        line.print("saved");
        CHECK(screen.read().find("\r\x1b[Ksaved\r\n\r\x1b[Kstep   2/100") == 0);
    }
    CHECK(screen.read() == "\r\n");
}

TEST_CASE("a narrow terminal cuts the line before it would wrap") {
    terminal const screen;
    screen.columns(20);
    progress line{screen.out()};
    line.show(report(1), 10);
    CHECK(screen.read() == "\r\x1b[Kstep   1/100 | loss");
}

TEST_CASE("without any step nothing is drawn") {
    CHECK(written_to_file([](std::FILE* out) { progress{out}.finish(); }).empty());
    CHECK(written_to_file([](std::FILE* out) { progress{out}.print("hello"); }) == "hello\n");
}
