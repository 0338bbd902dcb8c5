// SPDX-License-Identifier: Apache-2.0
// Schedules as comma-separated files, in the grammar that PyTorch's pipeline schedules are saved in: one line per rank,
// `0F0,1I2,(2F1;5B0)OVERLAP_F_B`, in the order of execution.
#pragma once

#include "copipe/error.hpp"
#include "copipe/schedule/messages.hpp"
#include "copipe/schedule/policy.hpp"

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace copipe {

/// A file that is no schedule: `what()` says where, as FILE:LINE:COLUMN, and why.
class schedule_syntax_error : public error {
public:
    schedule_syntax_error(std::string path, std::size_t at_line, std::size_t at_column, std::string const& why)
        : error(path + ":" + std::to_string(at_line) + ":" + std::to_string(at_column) + ": " + why),
          file(std::move(path)),
          line(at_line),
          column(at_column) {}

    std::string file;
    std::size_t line;   ///< from 1
    std::size_t column; ///< from 1
};

/// A send or a receive that a lowered schedule spells out.
struct lowered_transfer {
    message what;
    bool send;
    std::size_t after; ///< how many actions of the rank's program stand before it
};

/// What a schedule file says, rank by rank.
struct schedule_file {
    std::vector<program> programs;
    std::vector<std::vector<lowered_transfer>> transfers; ///< empty lists unless the file is a lowered one
};

/// One line per rank, no empty cells, `\n` after each line.
template <class = void> [[nodiscard]] std::string to_csv(std::vector<program> const& all) {
    std::string lines;
    for (program const& own : all) {
        for (action const& each : own) {
            if (&each != own.data()) lines += ',';
            lines += text(each);
        }
        lines += '\n';
    }
    return lines;
}

/// Reads one file. Idle cells are skipped, `\r\n` ends a line as `\n` does; sends and receives are kept apart from the
/// programs, and `UNSHARD`, `RESHARD` and `REDUCE_GRAD` are skipped.
template <class = void> class schedule_reader {
public:
    /// Throws `schedule_syntax_error`, which names the file `path`.
    static schedule_file read(std::string_view text, std::string path) {
        schedule_reader reader{std::move(path)};
        while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.remove_suffix(1);
        if (text.empty()) throw schedule_syntax_error(reader.path_, 1, 1, "the file holds no schedule");
        while (!text.empty()) {
            std::size_t const end = std::min(text.find('\n'), text.size());
            reader.line(text.substr(0, end));
            text.remove_prefix(std::min(end + 1, text.size()));
        }
        return std::move(reader.found_);
    }

private:
    explicit schedule_reader(std::string path) : path_(std::move(path)) {}

    void line(std::string_view row) {
        ++line_;
        found_.programs.emplace_back();
        found_.transfers.emplace_back();
        for (std::size_t begin = 0; begin <= row.size();) {
            std::size_t const end = std::min(row.find(',', begin), row.size());
            std::size_t first = begin, last = end;
            while (first < last && is_blank(row[first])) ++first;
            while (last > first && is_blank(row[last - 1])) --last;
            column_ = first + 1;
            if (first < last) cell(row.substr(first, last - first));
            begin = end + 1;
        }
    }

    void cell(std::string_view token) {
        program& own = found_.programs.back();
        if (token.front() == '(') {
            own.push_back(pair(token));
        } else if (auto const found = parse(token); !found) {
            fail(quoted(token) + " is no action; expected stage, operation and micro-batch such as 3F0");
        } else if (std::string_view const what = found->operation; what.size() == 1) {
            own.push_back(chunk_of(*found));
        } else if (what.starts_with("SEND") || what.starts_with("RECV")) {
            found_.transfers.back().push_back(transfer_of(*found, own.size()));
        }
    }

    action pair(std::string_view token) const {
        constexpr std::string_view ending = ")OVERLAP_F_B";
        std::size_t const middle = token.find(';');
        if (middle == std::string_view::npos || !token.ends_with(ending))
            fail(quoted(token) + " is no pair; expected a form such as (3F1;4B0)OVERLAP_F_B");
        auto const first = parse(token.substr(1, middle - 1));
        auto const second = parse(token.substr(middle + 1, token.size() - ending.size() - middle - 1));
        if (!first || !second || first->operation != "F" || second->operation != "B")
            fail(quoted(token) + " does not pair a forward with a full backward, as (3F1;4B0)OVERLAP_F_B does");
        return {chunk_of(*first), chunk_of(*second)};
    }

    struct parts {
        int stage;
        std::string_view operation;
        int micro_batch;
    };

    /// `stage operation micro-batch`, or nothing. UNSHARD and the like have no micro-batch; a transfer may name a peer.
    std::optional<parts> parse(std::string_view token) const {
        parts found{0, {}, 0};
        if (!take_number(token, found.stage)) return {};
        std::size_t length = 0;
        while (length < token.size() && (token[length] == '_' || (token[length] >= 'A' && token[length] <= 'Z')))
            ++length;
        found.operation = token.substr(0, length);
        token.remove_prefix(length);
        auto const is = [&](auto... names) { return ((found.operation == names) || ...); };
        bool const numbered = take_number(token, found.micro_batch);
        if (int peer = 0; is("SEND_F", "RECV_F", "SEND_B", "RECV_B") && token.starts_with('@')) {
            token.remove_prefix(1);
            if (!take_number(token, peer)) return {};
        }
        if (!token.empty()) return {};
        if (is("UNSHARD", "RESHARD", "REDUCE_GRAD")) return found;
        bool const known = is("F", "B", "I", "W", "SEND_F", "RECV_F", "SEND_B", "RECV_B");
        return known && numbered ? std::optional{found} : std::nullopt;
    }

    /// Takes the digits at the token's beginning.
    bool take_number(std::string_view& token, int& number) const {
        if (token.empty() || token.front() < '0' || token.front() > '9') return false;
        auto const [end, problem] = std::from_chars(token.data(), token.data() + token.size(), number);
        if (problem != std::errc{} || number > 99'999'999)
            fail("the number in " + quoted(token) + " is too large");
        token.remove_prefix(static_cast<std::size_t>(end - token.data()));
        return true;
    }

    chunk chunk_of(parts const& found) const {
        if (found.stage > 65534) fail("there are at most 65535 stages");
        return {static_cast<op>(std::string_view("FBIW").find(found.operation)), found.stage, found.micro_batch};
    }

    lowered_transfer transfer_of(parts const& found, std::size_t after) const {
        bool const send = found.operation.front() == 'S', forward = found.operation.back() == 'F';
        int const producer = send ? found.stage : forward ? found.stage - 1 : found.stage + 1;
        int const consumer = !send ? found.stage : forward ? found.stage + 1 : found.stage - 1;
        if (producer < 0 || consumer < 0 || producer > 65534 || consumer > 65534)
            fail("stage " + std::to_string(found.stage) + " has no neighbour on that side");
        return {{static_cast<std::uint16_t>(producer), static_cast<std::uint16_t>(consumer), found.micro_batch,
                 forward ? flow::forward : flow::backward},
                send,
                after};
    }

    /// A piece of the file for an error message: what is no printable ASCII as its code, so that it can be seen and
    /// does nothing to a terminal.
    static std::string quoted(std::string_view token) {
        constexpr std::size_t shown = 48;
        std::string text = "'";
        for (char const c : token.substr(0, shown)) {
            constexpr std::string_view hex = "0123456789abcdef";
            auto const code = static_cast<unsigned char>(c);
            if (c >= ' ' && c <= '~')
                text += c;
            else
                text.append("\\x").append(1, hex[code / 16U]).append(1, hex[code % 16U]);
        }
        return text + (token.size() > shown ? "...'" : "'");
    }

    static bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r'; }
    [[noreturn]] void fail(std::string const& why) const { throw schedule_syntax_error(path_, line_, column_, why); }

    std::string path_;
    std::size_t line_ = 0, column_ = 1;
    schedule_file found_;
};

/// Reads a schedule file's text; throws `schedule_syntax_error`, which calls the file `path`.
template <class = void> [[nodiscard]] schedule_file parse_schedule(std::string_view text, std::string path) {
    return schedule_reader<>::read(text, std::move(path));
}

} // namespace copipe
