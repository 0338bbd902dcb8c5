// SPDX-License-Identifier: Apache-2.0
// A timeline as lines of characters that fit a terminal.
#pragma once

#include "copipe/schedule/span.hpp"

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

namespace copipe {

/// One line per rank of at most `columns` characters, time to the right, and a legend: digits are forwards, letters are
/// full backwards or input gradients, each by the last digit of its micro-batch; `w` weight gradients, `*` overlapped
/// pairs, `.` idle.
template <class = void>
[[nodiscard]] std::string to_text(std::vector<std::vector<span>> const& ranks, std::size_t columns = 100) {
    double end = 0, shortest = 0;
    for (auto const& spans : ranks)
        for (span const& each : spans) {
            end = std::max(end, each.end);
            if (each.kind != span_kind::wait && each.seconds() > 0)
                shortest = shortest > 0 ? std::min(shortest, each.seconds()) : each.seconds();
        }
    std::string const widest = std::to_string(ranks.size() - 1);
    std::size_t const room = columns > widest.size() + 16 ? columns - widest.size() - 6 : 10;
    auto const whole = shortest > 0 ? static_cast<std::size_t>(std::min(end / shortest + 0.5, 1e6)) : 1;
    std::size_t const width = std::clamp<std::size_t>(whole, 1, room);
    std::string picture;
    for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
        std::string line(width, '.');
        for (span const& each : ranks[rank]) {
            char mark = '.';
            auto const digit = static_cast<char>(each.what.micro_batch % 10);
            switch (each.kind) {
            case span_kind::forward:
                mark = static_cast<char>('0' + digit);
                break;
            case span_kind::backward:
            case span_kind::backward_input:
                mark = static_cast<char>('a' + digit);
                break;
            case span_kind::backward_weight:
                mark = 'w';
                break;
            case span_kind::overlapped_forward:
            case span_kind::overlapped_backward:
                mark = '*';
                break;
            default:
                continue;
            }
            // A column shows what runs in its middle.
            auto const column = [&](double time) {
                double const place = end > 0 ? time / end * static_cast<double>(width) + 0.5 : 0;
                return std::min(width, static_cast<std::size_t>(place));
            };
            std::fill(line.begin() + static_cast<std::ptrdiff_t>(column(each.start)),
                      line.begin() + static_cast<std::ptrdiff_t>(column(each.end)), mark);
        }
        std::string const number = std::to_string(rank);
        picture += "rank " + std::string(widest.size() - number.size(), ' ') + number + " " + line + "\n";
    }
    return picture + "0-9 forward, a-j backward or input gradient (micro-batch modulo 10)\n"
                     "w weight gradient, * overlapped pair, . idle\n";
}

} // namespace copipe
