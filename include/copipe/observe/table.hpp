// SPDX-License-Identifier: Apache-2.0
// Tables of aligned columns for a terminal, and the numbers in them.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

namespace copipe {

/// `1.50` for (1.5, 2); `-` for what is not a number.
[[nodiscard]] inline std::string decimal(double value, int decimals) {
    if (std::isnan(value)) return "-";
    std::array<char, 352> digits; // the largest double has 309 before the point
    auto const length = std::snprintf(digits.data(), digits.size(), "%.*f", std::min(decimals, 20), value);
    return {digits.data(), static_cast<std::size_t>(length)};
}

/// `12.3 %` for 0.123.
[[nodiscard]] inline std::string percent(double ratio) { return decimal(100 * ratio, 1) + " %"; }

/// `12,345` for 12345.4.
template <class = void> [[nodiscard]] std::string grouped(double value) {
    std::string digits = decimal(value, 0);
    std::size_t const first = value < 0 ? 1 : 0;
    if (!std::isfinite(value)) return digits;
    for (std::size_t at = digits.size(); at > first + 3;) digits.insert(at -= 3, ",");
    return digits;
}

/// `640 B`, `1.5 KiB`, `3.2 GiB`.
template <class = void> [[nodiscard]] std::string byte_count(std::size_t bytes) {
    constexpr std::array units{" B", " KiB", " MiB", " GiB", " TiB", " PiB"};
    auto value = static_cast<double>(bytes);
    std::size_t unit = 0;
    for (; value >= 1023.95 && unit + 1 < units.size(); ++unit) value /= 1024;
    return decimal(value, unit == 0 ? 0 : 1) + units[unit];
}

/// `0:07`, `12:34`, `3:25:45`.
template <class = void> [[nodiscard]] std::string clock_time(double seconds) {
    if (!(seconds < 1e9)) return "-";
    auto const total = static_cast<std::int64_t>(std::max(seconds, 0.0) + 0.5);
    auto const two = [](std::int64_t n) { return (n < 10 ? "0" : "") + std::to_string(n); };
    std::string const rest = ":" + two(total % 60);
    if (total < 3600) return std::to_string(total / 60) + rest;
    return std::to_string(total / 3600) + ":" + two(total / 60 % 60) + rest;
}

/// Rows of cells; the first row is the heading. The first column is aligned left, the others right.
class text_table {
public:
    template <class = void> void row(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }

    template <class = void> [[nodiscard]] std::string text() const {
        std::vector<std::size_t> widths;
        for (auto const& cells : rows_) {
            widths.resize(std::max(widths.size(), cells.size()));
            for (std::size_t i = 0; i < cells.size(); ++i) widths[i] = std::max(widths[i], cells[i].size());
        }
        std::string all;
        for (auto const& cells : rows_) {
            for (std::size_t i = 0; i < cells.size(); ++i) {
                std::string const padding(widths[i] - cells[i].size(), ' ');
                bool const last = i + 1 == cells.size();
                all += i == 0 ? cells[i] + (last ? "" : padding) : "  " + padding + cells[i];
            }
            all += '\n';
        }
        return all;
    }

private:
    std::vector<std::vector<std::string>> rows_;
};

} // namespace copipe
