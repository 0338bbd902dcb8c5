// SPDX-License-Identifier: Apache-2.0
// Partitions as Megatron-LM's layout strings: `Et*3|(tt|)*29,m|L` is the embedding and three transformer layers on the
// first stage, two layers on each of the next 29, a multi-token prediction layer, and the loss.
#pragma once

#include "copipe/balance/row.hpp"
#include "copipe/error.hpp"

#include <algorithm>
#include <cctype>
#include <string>
#include <string_view>
#include <utility>

namespace copipe {

/// A layout string that cannot be read; `column` counts its characters from 1.
class layout_error : public error {
public:
    layout_error(std::string_view text, std::size_t at, std::string const& sentence)
        : error("Layout `" + std::string(text) + "`, column " + std::to_string(at + 1) + ": " + sentence),
          column(static_cast<int>(at) + 1) {}
    int column;
};

/// The layers of each stage, one letter each: E embedding, t transformer, m multi-token prediction, L loss. Stages may
/// be empty.
struct stage_layout {
    row<std::string> stages;

    /// [stages + 1] stage s has the layers from bounds[s] to bounds[s + 1], counting every letter as a layer.
    template <class = void> [[nodiscard]] row<int> bounds() const {
        row<int> found{0};
        for (auto const& stage : stages) found.push_back(found.back() + static_cast<int>(stage.size()));
        return found;
    }
    friend bool operator==(stage_layout const&, stage_layout const&) = default;
};

/// Reads `E t m L`, `|` between stages, `x*N` and `(...)*N` to repeat; commas mean nothing. The embedding comes first
/// and the loss last, once each, and transformer layers before multi-token prediction. Throws layout_error.
template <class = void> [[nodiscard]] stage_layout read_layout(std::string_view text) {
    auto const require = [&](bool right, std::size_t at, char const* sentence) {
        if (!right) throw layout_error(text, at, sentence);
    };
    row<std::pair<char, std::size_t>> letters; // and where each stands
    auto const repeat = [&](std::size_t& at, std::size_t from) { // what was read since `from`, if a `*N` follows `at`
        if (at + 1 == text.size() || text[at + 1] != '*') return false;
        std::size_t const star = ++at, size = letters.size() - from;
        std::size_t count = 0;
        for (; at + 1 < text.size() && std::isdigit(static_cast<unsigned char>(text[at + 1])) != 0; ++at)
            count = std::min<std::size_t>(10 * count + static_cast<std::size_t>(text[at + 1] - '0'), 1'000'000);
        require(count > 0, star, "`*` needs a number of at least 1 after it.");
        require(count * size <= 100'000, star, "there are more than 100000 layers and stages.");
        for (std::size_t k = size; k < count * size; ++k) letters.push_back(letters[letters.size() - size]);
        return true;
    };
    std::size_t group = text.size(), group_from = 0;
    for (std::size_t at = 0; at < text.size(); ++at) {
        if (text[at] == ',') continue;
        if (text[at] == '(') {
            require(group == text.size(), at, "groups do not nest.");
            group = at;
            group_from = letters.size();
        } else if (text[at] == ')') {
            require(group < text.size(), at, "there is no group to close.");
            require(repeat(at, group_from), at, "a group needs `*N` after it.");
            group = text.size();
        } else {
            require(std::string_view("EtmL|").find(text[at]) != std::string_view::npos, at,
                    "only E, t, m, L, `|`, `*N`, `(...)*N` and commas may stand here.");
            letters.emplace_back(text[at], at);
            repeat(at, letters.size() - 1);
        }
    }
    require(group == text.size(), group, "the group is not closed.");

    stage_layout layout{{""}};
    char last = 0;
    for (auto const& [letter, at] : letters) {
        if (letter == '|') {
            layout.stages.emplace_back();
            continue;
        }
        require((letter == 'E') == (last == 0), at, "the embedding E must come first, and only once.");
        require(last != 'L', at, "nothing may follow the loss L.");
        require(letter != 't' || last != 'm', at, "transformer layers t must come before multi-token prediction m.");
        layout.stages.back() += last = letter;
    }
    require(last == 'L', text.size(), "the loss L must come last.");
    return layout;
}

/// The shortest usual way to write a layout: runs of three or more layers or stages alike become `x*N` or `(...)*N`.
template <class = void> [[nodiscard]] std::string write_layout(stage_layout const& layout) {
    std::string text;
    auto const& stages = layout.stages;
    for (int s = 0, alike = 1; s < stages.count(); s += alike) {
        std::string body;
        for (std::size_t i = 0, run = 1; i < stages[s].size(); i += run) {
            run = std::min(stages[s].find_first_not_of(stages[s][i], i), stages[s].size()) - i;
            body += run < 3 ? std::string(run, stages[s][i]) : stages[s][i] + ("*" + std::to_string(run));
        }
        bool const is_last = s + 1 == stages.count();
        for (alike = 1; s + alike + 1 < stages.count() && stages[s + alike] == stages[s];) ++alike;
        if (alike < 3) alike = 1;
        text += alike > 1 ? "(" + body + "|)*" + std::to_string(alike) + "," : body + (is_last ? "" : "|");
    }
    return text;
}

/// One line per run of stages alike: their numbers, layers and what those are.
template <class = void> [[nodiscard]] std::string explain_layout(stage_layout const& layout) {
    std::string text;
    auto const& stages = layout.stages;
    auto const bounds = layout.bounds();
    auto const range = [](std::string const& what, int first, int last) {
        if (first == last) return what + " " + std::to_string(first);
        return what + "s " + std::to_string(first) + "-" + std::to_string(last);
    };
    for (int s = 0, next = 0; s < stages.count(); s = next) {
        for (next = s + 1; next < stages.count() && stages[next] == stages[s];) ++next;
        text += range("stage", s, next - 1) + (stages[s].empty() ? ": empty" : next > s + 1 ? ": each " : ": ");
        char const* separator = "";
        for (auto const& [letter, name] : {std::pair{'E', "embedding"}, {'t', "transformer"},
                                           {'m', "multi-token prediction"}, {'L', "loss"}})
            if (auto const count = std::count(stages[s].begin(), stages[s].end(), letter); count > 0) {
                text += separator + (count > 1 ? std::to_string(count) + " x " : "") + name;
                separator = ", ";
            }
        text += stages[s].empty() ? "\n" : " (" + range("layer", bounds[s], bounds[next] - 1) + ")\n";
    }
    return text;
}

} // namespace copipe
