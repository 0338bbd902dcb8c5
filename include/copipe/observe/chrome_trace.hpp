// SPDX-License-Identifier: Apache-2.0
// A timeline file that Perfetto (https://ui.perfetto.dev) and chrome://tracing open: planned and measured spans alike.
#pragma once

#include "copipe/observe/atomic_file.hpp"
#include "copipe/observe/json_text.hpp"
#include "copipe/observe/trace_track.hpp"
#include "copipe/schedule/span.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace copipe {

/// Spans that belong together, such as "planned" or "measured". Each group's time begins with its first span, whatever
/// clock it comes from, so that groups line up. The spans are read while the file is written.
struct trace_group {
    std::string name;
    std::vector<span> const& spans; ///< in any order
};

/// How many spans a timeline file holds, and how many were left out because it would have become too large to draw.
struct trace_size {
    std::size_t written = 0;
    std::size_t left_out = 0;
};

/// Writes groups of spans, event after event, as JSON in Chrome's trace event format.
template <class = void> class chrome_trace_writer {
public:
    explicit chrome_trace_writer(std::string const& path) : file_(path) {
        text_ = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[";
    }

    /// The first `most` spans, by their start. Processes are sorted by rank, then by group.
    void add(trace_group const& group, int number, int groups, std::size_t most) {
        std::vector<span> kept(group.spans.begin(), group.spans.end());
        std::sort(kept.begin(), kept.end(), [](span const& a, span const& b) { return a.start < b.start; });
        kept.resize(std::min(kept.size(), most));
        if (!kept.empty()) origin_ = kept.front().start;
        auto const key = [](span const& one) { return 256 * one.rank + static_cast<int>(track_of(one.kind)); };
        std::sort(kept.begin(), kept.end(), [&](span const& a, span const& b) {
            if (key(a) != key(b)) return key(a) < key(b);
            return a.start != b.start ? a.start < b.start : a.end < b.end;
        });

        for (auto from = kept.begin(); from != kept.end();) {
            auto const to = std::find_if(from, kept.end(), [&](span const& one) { return key(one) != key(*from); });
            pid_ = 1 + from->rank * groups + number;
            if (from == kept.begin() || from->rank != (from - 1)->rank) {
                std::string const prefix = group.name.empty() ? "" : group.name + " ";
                label("process", 0, prefix + "rank " + std::to_string(from->rank), pid_);
            }
            track(std::vector<span>(from, to));
            from = to;
        }
    }

    void finish(std::string_view note) {
        text_ += "\n]";
        if (!note.empty()) {
            text_ += ",\"otherData\":{\"note\":";
            append_json(text_, note);
            text_ += '}';
        }
        text_ += "}\n";
        file_.append(text_);
        file_.commit();
    }

private:
    /// Spans of one track in order of start. Those that overlap others go to further lanes, "send 2" and so on.
    void track(std::vector<span> const& spans) {
        int const first = 10000 * (1 + static_cast<int>(track_of(spans.front().kind)));
        std::vector<std::int64_t> lanes; // where each lane's last event ends
        for (span const& one : spans) {
            std::int64_t const start = nanoseconds(one.start), end = std::max(start, nanoseconds(one.end));
            auto const lane = std::find_if(lanes.begin(), lanes.end(), [&](auto until) { return until <= start; });
            auto const index = static_cast<int>(lane - lanes.begin());
            if (lane == lanes.end()) {
                lanes.push_back(end);
                std::string const suffix = index == 0 ? "" : " " + std::to_string(index + 1);
                label("thread", first + index, std::string(name(track_of(one.kind))) + suffix, first + index);
            } else {
                *lane = end;
            }
            event(one, first + index, start, end);
        }
    }

    [[nodiscard]] std::int64_t nanoseconds(double seconds) const { return std::llround((seconds - origin_) * 1e9); }

    void event(span const& one, int tid, std::int64_t start, std::int64_t end) {
        begin();
        append_json(text_ += "{\"name\":", trace_name(one));
        append_json(text_ += ",\"cat\":", name(one.kind));
        text_ += ",\"ph\":\"X\",\"ts\":";
        microseconds(start);
        text_ += ",\"dur\":";
        microseconds(end - start);
        place(tid);
        if (one.kind >= span_kind::optimizer || one.reason == wait_reason::reduction) {
            text_ += "{}}"; // not about one chunk
            return;
        }
        text_ += "{\"stage\":" + std::to_string(one.what.stage);
        text_ += ",\"micro_batch\":" + std::to_string(one.what.micro_batch);
        if (one.kind == span_kind::wait) {
            append_json(text_ += ",\"reason\":", name(one.reason));
            append_json(text_ += ",\"for\":", trace_name({.what = one.what, .kind = kind_of(one.what.what)}));
        }
        text_ += "}}";
    }

    /// Metadata: the name of a process or thread, and its place among the others.
    void label(std::string_view what, int tid, std::string_view named, int sort_index) {
        begin();
        append_json(text_ += "{\"name\":", std::string(what) + "_name");
        text_ += ",\"ph\":\"M\"";
        place(tid);
        append_json(text_ += "{\"name\":", named);
        text_ += "}}";
        begin();
        append_json(text_ += "{\"name\":", std::string(what) + "_sort_index");
        text_ += ",\"ph\":\"M\"";
        place(tid);
        text_ += "{\"sort_index\":" + std::to_string(sort_index) + "}}";
    }

    void place(int tid) {
        text_ += ",\"pid\":" + std::to_string(pid_) + ",\"tid\":" + std::to_string(tid) + ",\"args\":";
    }
    void microseconds(std::int64_t from_nanoseconds) {
        std::string const rest = std::to_string(1000 + from_nanoseconds % 1000);
        text_ += std::to_string(from_nanoseconds / 1000) + "." + rest.substr(1);
    }
    void begin() {
        constexpr std::size_t enough = 1 << 20;
        if (text_.size() > enough) {
            file_.append(text_);
            text_.clear();
        }
        text_ += first_ ? "\n" : ",\n";
        first_ = false;
    }

    atomic_file file_;
    std::string text_;
    double origin_ = 0;
    int pid_ = 0;
    bool first_ = true;
};

/// Writes a timeline file: a process per rank and group, in it tracks for compute, sends, receives, either half of
/// overlapped pairs, and waits. Of more than `most` spans each group keeps its share, the earliest; the file says so in
/// its `otherData`, and the answer too. Throws `file_error`; a file that was there before is then as it was.
template <class = void> trace_size write_chrome_trace(std::string const& path, std::vector<trace_group> const& groups,
                                     std::size_t most = 1'000'000) {
    std::size_t total = 0;
    for (trace_group const& each : groups) total += each.spans.size();
    trace_size size;
    chrome_trace_writer writer{path};
    for (std::size_t g = 0; g < groups.size(); ++g) {
        std::size_t const spans = groups[g].spans.size();
        auto const share = static_cast<double>(most) / static_cast<double>(total);
        std::size_t const kept = total <= most ? spans : static_cast<std::size_t>(static_cast<double>(spans) * share);
        writer.add(groups[g], static_cast<int>(g), static_cast<int>(groups.size()), kept);
        size.written += kept;
    }
    size.left_out = total - size.written;
    writer.finish(size.left_out == 0 ? ""
                                     : "The timeline is cut: the first " + std::to_string(size.written) + " of " +
                                           std::to_string(total) + " spans are shown.");
    return size;
}

/// The same for spans of one kind, without a name.
template <class = void> trace_size write_chrome_trace(std::string const& path, std::vector<span> const& spans,
                                     std::size_t most = 1'000'000) {
    return write_chrome_trace(path, std::vector{trace_group{.name = "", .spans = spans}}, most);
}

} // namespace copipe
