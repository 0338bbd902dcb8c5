// SPDX-License-Identifier: Apache-2.0
// A timeline as a picture: ranks as rows, chunks coloured by kind and by direction, idle time hatched, memory below.
#pragma once

#include "copipe/observe/memory_curve.hpp"
#include "copipe/schedule/placement.hpp"
#include "copipe/schedule/span.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

namespace copipe {

/// Draws one step as a standalone SVG file.
template <class = void> class schedule_picture {
public:
    /// One list of spans per rank, in seconds or any unit; `title` stands above.
    schedule_picture(std::vector<std::vector<span>> const& ranks, placement const& where, std::string_view title)
        : ranks_(ranks), where_(where), title_(title) {
        double shortest = 0;
        for (auto const& spans : ranks)
            for (span const& each : spans) {
                end_ = std::max(end_, each.end);
                if (is_drawn(each) && each.seconds() > 0)
                    shortest = shortest > 0 ? std::min(shortest, each.seconds()) : each.seconds();
            }
        if (end_ > 0) scale_ = std::clamp(end_ / shortest * 20, least, 2400.0) / end_;
        for (auto const& spans : ranks) {
            memory_.push_back(memory_curve(spans));
            for (memory_level const& at : memory_.back()) peak_ = std::max(peak_, at.level);
        }
    }

    [[nodiscard]] std::string svg() {
        double const width = left + std::max(end_ * scale_, least) + right;
        double const rows_end = top + static_cast<double>(ranks_.size()) * row;
        double const height = rows_end + axis + memory_height + axis;
        head(width, height);
        for (std::size_t rank = 0; rank < ranks_.size(); ++rank) draw_rank(rank);
        draw_axis(rows_end, "time");
        draw_memory(rows_end + axis);
        draw_axis(rows_end + axis + memory_height, "live activations, in chunks:");
        name_curves(rows_end + axis + memory_height);
        return out_ + "</svg>\n";
    }

private:
    static constexpr double left = 64, right = 24, top = 72, row = 30, box = 24, axis = 40, memory_height = 110;
    static constexpr double least = 700; ///< a legend needs as much

    static bool is_drawn(span const& each) { return each.kind <= span_kind::overlapped_backward; }

    static std::string printed(char const* format, double value) {
        std::array<char, 352> digits;
        auto const length = std::snprintf(digits.data(), digits.size(), format, value);
        return {digits.data(), static_cast<std::size_t>(length)};
    }
    /// A place in the picture, to a hundredth of a pixel.
    static std::string number(double value) {
        std::string text = printed("%.2f", value);
        while (text.back() == '0') text.pop_back();
        if (text.back() == '.') text.pop_back();
        return text;
    }
    static std::string moment(double time) { return printed("%.6g", time); }

    static std::string escaped(std::string_view words) {
        std::string safe;
        for (char const c : words) {
            switch (c) {
            case '<':
                safe += "&lt;";
                break;
            case '>':
                safe += "&gt;";
                break;
            case '&':
                safe += "&amp;";
                break;
            case '"':
                safe += "&quot;";
                break;
            default:
                safe += c;
            }
        }
        return safe;
    }

    static std::string_view family(op what) {
        constexpr std::array<std::string_view, 4> names{"F", "B", "I", "W"};
        return names[static_cast<std::size_t>(what)];
    }

    double x(double time) const { return left + time * scale_; }

    void rectangle(double at_x, double at_y, double width, double height, std::string_view classes) {
        out_ += "<rect x=\"" + number(at_x) + "\" y=\"" + number(at_y) + "\" width=\"" + number(width) +
                "\" height=\"" + number(height) + "\" class=\"" + std::string(classes) + "\"/>\n";
    }
    void words(double at_x, double at_y, std::string_view classes, std::string_view text) {
        out_ += "<text x=\"" + number(at_x) + "\" y=\"" + number(at_y) + "\" class=\"" + std::string(classes) + "\">" +
                escaped(text) + "</text>\n";
    }

    void head(double width, double height) {
        out_ += "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" + number(width) + "\" height=\"" + number(height) +
                "\" viewBox=\"0 0 " + number(width) + " " + number(height) + "\" role=\"img\">\n<title>" +
                escaped(title_) + "</title>\n" + std::string(style);
        rectangle(0, 0, width, height, "paper");
        words(left, 24, "title", title_);
        legend();
    }

    void legend() {
        double at = left;
        auto const entry = [&](std::string_view classes, std::string_view what) {
            rectangle(at, 38, 16, 16, classes);
            words(at + 22, 50, "note", what);
            at += 40 + 6.6 * static_cast<double>(what.size());
        };
        bool second = false;
        std::array<bool, 4> met{};
        for (auto const& spans : ranks_)
            for (span const& each : spans)
                if (is_drawn(each)) {
                    met[static_cast<std::size_t>(each.what.what)] = true;
                    second = second || each.what.stage >= where_.ranks;
                }
        constexpr std::array<std::string_view, 4> names{"forward", "backward", "input gradient", "weight gradient"};
        for (std::size_t i = 0; i < names.size(); ++i)
            if (met[i]) entry(std::string(family(static_cast<op>(i))) + "0", names[i]);
        if (second)
            entry("F1", where_.kind == layout::bidirectional ? "lighter: second direction" : "lighter: later chunks");
        entry("idle", "idle");
    }

    void draw_rank(std::size_t rank) {
        double const y = top + static_cast<double>(rank) * row;
        words(left - 8, y + 16, "label", "rank " + std::to_string(rank));
        rectangle(left, y, end_ * scale_, box, "idle");
        for (span const& each : ranks_[rank]) {
            if (!is_drawn(each)) continue;
            bool const pair = each.kind >= span_kind::overlapped_forward;
            double const half = pair ? box / 2 : box;
            double const at_y = each.kind == span_kind::overlapped_backward ? y + half : y;
            double const width = each.seconds() * scale_;
            int const shade = std::min(each.what.stage / where_.ranks, 3);
            out_ += "<g><title>" + text(each.what) + ", " + moment(each.start) + " to " + moment(each.end) + "</title>";
            rectangle(x(each.start), at_y, width, half, std::string(family(each.what.what)) + std::to_string(shade));
            std::string const label = std::to_string(each.what.micro_batch);
            if (width >= 5 + 5.5 * static_cast<double>(label.size()))
                words(x(each.start) + width / 2, at_y + half / 2 + 3.5, "number", label);
            out_ += "</g>\n";
        }
    }

    /// Marks at round times, about ten of them.
    void draw_axis(double y, std::string_view what) {
        double step = end_ > 0 ? std::pow(10, std::floor(std::log10(end_ / 10))) : 1;
        for (double const factor : {2.0, 2.5, 2.0})
            if (end_ / step > 12) step *= factor;
        for (int i = 0; step * i <= end_; ++i) words(x(step * i), y + 14, "tick", moment(step * i));
        words(left, y + 30, "note", what);
    }

    /// The ranks in the colours of their memory curves.
    void name_curves(double y) {
        double at = left + 170;
        for (std::size_t rank = 0; rank < memory_.size() && at < x(end_) - 40; ++rank, at += 50)
            out_ += "<text x=\"" + number(at) + "\" y=\"" + number(y + 30) + "\" style=\"fill:" + colour(rank) +
                    "\">rank " + std::to_string(rank) + "</text>\n";
    }

    std::string colour(std::size_t rank) const {
        return "hsl(" + number(300.0 * static_cast<double>(rank) / static_cast<double>(memory_.size())) + ",65%,42%)";
    }

    void draw_memory(double y) {
        double const unit = peak_ > 0 ? (memory_height - 8) / static_cast<double>(peak_) : 0;
        rectangle(left, y, end_ * scale_, memory_height, "panel");
        words(left - 8, y + 12, "label", std::to_string(peak_));
        words(left - 8, y + memory_height, "label", "0");
        for (std::size_t rank = 0; rank < memory_.size(); ++rank) {
            out_ += "<path class=\"curve\" style=\"stroke:" + colour(rank) + "\" d=\"M" + number(left) + " " +
                    number(y + memory_height);
            for (memory_level const& at : memory_[rank])
                out_ +=
                    "H" + number(x(at.time)) + "V" + number(y + memory_height - static_cast<double>(at.level) * unit);
            out_ += "H" + number(x(end_)) + "\"><title>rank " + std::to_string(rank) + "</title></path>\n";
        }
    }

    static constexpr std::string_view style =
        "<defs><pattern id=\"hatch\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" "
        "patternTransform=\"rotate(45)\"><rect width=\"6\" height=\"6\" fill=\"#f4f4f4\"/>"
        "<line x1=\"0\" y1=\"0\" x2=\"0\" y2=\"6\" stroke=\"#c4c4c4\" stroke-width=\"2\"/></pattern></defs>\n"
        "<style>text{font-family:Helvetica,Arial,sans-serif;font-size:12px;fill:#222}.title{font-size:16px;font-weight:"
        "bold}"
        ".label{text-anchor:end}.tick{text-anchor:middle;fill:#555}.number{text-anchor:middle;font-size:10px}"
        ".paper{fill:#fff}.panel{fill:#fafafa;stroke:#ccc}.idle{fill:url(#hatch)}.curve{fill:none;stroke-width:1.6}"
        "rect{stroke:#fff;stroke-width:.6}"
        ".F0{fill:#6fa8e8}.F1{fill:#a9cdf3}.F2{fill:#c8dff8}.F3{fill:#dfecfb}"
        ".B0{fill:#63bd7b}.B1{fill:#a0dab0}.B2{fill:#c0e7ca}.B3{fill:#d9f1df}"
        ".I0{fill:#4fb8b0}.I1{fill:#94d6d1}.I2{fill:#b9e5e1}.I3{fill:#d6f0ee}"
        ".W0{fill:#f0a860}.W1{fill:#f6cb9c}.W2{fill:#f9dcbd}.W3{fill:#fcebd9}</style>\n";

    std::vector<std::vector<span>> const& ranks_;
    placement where_;
    std::string title_;
    double end_ = 0, scale_ = 1;
    std::vector<std::vector<memory_level>> memory_;
    std::int64_t peak_ = 0;
    std::string out_;
};

/// Draws one step as a standalone SVG file: see `schedule_picture`.
template <class = void>
[[nodiscard]] std::string to_svg(std::vector<std::vector<span>> const& ranks, placement const& where,
                                        std::string_view title) {
    return schedule_picture(ranks, where, title).svg();
}

} // namespace copipe
