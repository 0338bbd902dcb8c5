// SPDX-License-Identifier: Apache-2.0
#include "commands.hpp"

#include "copipe/observe/critical_path.hpp"
#include "copipe/observe/likely_placement.hpp"
#include "copipe/observe/lowered_schedule.hpp"
#include "copipe/observe/memory_curve.hpp"
#include "copipe/observe/schedule_csv.hpp"
#include "copipe/observe/schedule_svg.hpp"
#include "copipe/observe/schedule_text.hpp"
#include "copipe/observe/table.hpp"
#include "copipe/schedule/evaluate.hpp"
#include "copipe/schedule/verify.hpp"
#include "cost_file.hpp"
#include "policies.hpp"

#include <nlohmann/json.hpp>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <numeric>
#include <string>
#include <vector>

using namespace copipe;

namespace {

/// A schedule and where it came from.
struct known_schedule {
    std::string name; ///< of its policy or file
    placement where;
    int micro_batches = 0;
    schedule_file file;
};

constexpr std::array<char const*, 4> layout_names{"single", "loop", "v", "bidirectional"};
char const* layout_name(placement const& where) { return layout_names[static_cast<std::size_t>(where.kind)]; }

std::string plural(std::size_t count, std::string const& what) {
    return std::to_string(count) + " " + what + (count == 1 ? "" : what.ends_with("ch") ? "es" : "s");
}

/// What the named policy, planned for the costs, runs.
known_schedule schedule_of(options const& asked, uniform_costs const& costs) {
    known_schedule made;
    for_each_policy(asked.chunks.value_or(2), costs, [&](auto const& policy) {
        if (policy.name != asked.policy) return;
        require_shape(policy, asked.size);
        placement const where = policy.placed(asked.size);
        require_feasible(where, asked.size.micro_batches);
        if (asked.chunks && *asked.chunks != where.per_rank)
            throw usage_error("--chunks: " + asked.policy + " has " +
                              plural(static_cast<std::size_t>(where.per_rank), "stage") + " on each rank, not " +
                              std::to_string(*asked.chunks));
        made = {asked.policy,
                where,
                asked.size.micro_batches,
                {.programs = verified_programs(policy, asked.size), .transfers = {}}};
    });
    return made;
}

known_schedule read_schedule(options const& asked) {
    std::string const name = asked.file == "-" ? "standard input" : asked.file;
    known_schedule read{name, placement::single(1), 0, parse_schedule(contents_of(asked.file), name)};
    read.where =
        asked.placement ? placement_for(*asked.placement, read.file.programs) : likely_placement(read.file.programs);
    read.micro_batches = micro_batches_in(read.file.programs, read.where);
    require_feasible(read.where, read.micro_batches);
    return read;
}

/// Why the schedule is unsound; empty if it is sound.
std::string fault_of(known_schedule const& read) {
    std::string why = verify(read.file.programs, read.where, read.micro_batches).why();
    return why.empty() ? transfer_fault(read.file, read.where) : why;
}

int unsound(known_schedule const& read, std::string const& why) {
    std::cerr << "copipe: " << read.name << " is unsound as a " << layout_name(read.where) << " placement: " << why
              << '\n';
    return 1;
}

std::size_t actions_in(known_schedule const& known) {
    std::size_t count = 0;
    for (program const& own : known.file.programs) count += own.size();
    return count;
}

std::string headline(known_schedule const& known) {
    return known.name + ": " + plural(known.file.programs.size(), "rank") + ", " +
           plural(static_cast<std::size_t>(known.where.stages()), "stage") + " (" + layout_name(known.where) + "), " +
           plural(static_cast<std::size_t>(known.micro_batches), "micro-batch") + ", " +
           plural(actions_in(known), "action");
}

std::vector<int> peaks_of(std::vector<program> const& all) {
    std::vector<int> peaks;
    for (program const& own : all) peaks.push_back(peak_activations(own));
    return peaks;
}

std::string listed(std::vector<int> const& numbers) {
    std::string text;
    for (int const each : numbers) text += (text.empty() ? "" : " ") + std::to_string(each);
    return text;
}

/// As many columns as the user asks for, or as the terminal has.
std::size_t terminal_columns() {
    char const* const told = std::getenv("COLUMNS");
    int columns = told ? std::atoi(told) : 0;
    winsize window{};
    if (columns < 20 && ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &window) == 0) columns = window.ws_col;
    return columns >= 20 ? static_cast<std::size_t>(columns) : 80;
}

std::string printed(double value) {
    std::array<char, 32> digits;
    auto const length = std::snprintf(digits.data(), digits.size(), "%.6g", value);
    return {digits.data(), static_cast<std::size_t>(length)};
}

nlohmann::ordered_json as_json(known_schedule const& known) {
    return {{"schedule", known.name},
            {"ranks", known.where.ranks},
            {"micro_batches", known.micro_batches},
            {"stages", known.where.stages()},
            {"placement", layout_name(known.where)}};
}

nlohmann::ordered_json as_json(span const& each) {
    return {{"rank", each.rank}, {"action", text(each.what)}, {"start", each.start}, {"end", each.end}};
}

/// Everything that is predicted about one step.
struct prediction {
    std::vector<std::vector<span>> spans;
    forecast told;
    std::vector<int> peaks;
    std::vector<span> critical_path;
    std::vector<idle_causes> idle;
};

template <cost_model Costs>
prediction predict(known_schedule const& known, Costs const& costs) {
    prediction found{.spans = std::vector<std::vector<span>>(known.file.programs.size()),
                     .told = {},
                     .peaks = peaks_of(known.file.programs),
                     .critical_path = {},
                     .idle = {}};
    found.told = evaluate(known.file.programs, known.where, known.micro_batches, costs,
                          [&](span const& each) { found.spans[static_cast<std::size_t>(each.rank)].push_back(each); });
    if (!std::isfinite(found.told.makespan)) throw usage_error("the costs add up to more than a number can hold");
    step_graph const graph(found.spans, known.where);
    found.critical_path = graph.critical_path();
    found.idle = graph.idle();
    return found;
}

void print_json(known_schedule const& known, prediction const& found) {
    auto out = as_json(known);
    auto const per_rank = [&](auto value) {
        auto list = nlohmann::ordered_json::array();
        for (std::size_t rank = 0; rank < found.spans.size(); ++rank) list.push_back(value(rank));
        return list;
    };
    out["makespan"] = found.told.makespan;
    out["longest"] = found.told.longest;
    out["busy"] = found.told.busy;
    out["bubble"] = found.told.bubble;
    out["bubble_ratio"] = per_rank([&](std::size_t rank) {
        return found.told.makespan > 0 ? found.told.bubble[rank] / found.told.makespan : 0.0;
    });
    out["bubble_by_cause"] = per_rank([&](std::size_t rank) {
        idle_causes const& idle = found.idle[rank];
        return nlohmann::ordered_json{{"fill", idle.fill},
                                      {"dependency", idle.dependency},
                                      {"communication", idle.communication},
                                      {"drain", idle.drain}};
    });
    out["peak_activations"] = found.peaks;
    out["critical_path"] = nlohmann::ordered_json::array();
    for (span const& each : found.critical_path) out["critical_path"].push_back(as_json(each));
    out["memory_over_time"] = per_rank([&](std::size_t rank) {
        auto levels = nlohmann::ordered_json::array();
        for (memory_level const& at : memory_curve(found.spans[rank])) levels.push_back({at.time, at.level});
        return levels;
    });
    out["timeline"] = per_rank([&](std::size_t rank) {
        auto list = nlohmann::ordered_json::array();
        for (span const& each : found.spans[rank])
            if (each.kind != span_kind::wait) list.push_back(as_json(each));
        return list;
    });
    std::cout << out.dump(1) << '\n';
}

void print_text(known_schedule const& known, prediction const& found) {
    std::cout << headline(known) << "\nmakespan " << printed(found.told.makespan) << ", longest rank "
              << printed(found.told.longest) << "\n\n";
    text_table rows;
    rows.row({"rank", "busy", "bubble", "", "fill", "dependency", "communication", "drain", "peak activations"});
    for (std::size_t rank = 0; rank < found.spans.size(); ++rank) {
        double const bubble = found.told.bubble[rank];
        idle_causes const& idle = found.idle[rank];
        rows.row({std::to_string(rank), printed(found.told.busy[rank]), printed(bubble),
                  percent(found.told.makespan > 0 ? bubble / found.told.makespan : 0), printed(idle.fill),
                  printed(idle.dependency), printed(idle.communication), printed(idle.drain),
                  std::to_string(found.peaks[rank])});
    }
    std::cout << rows.text() << '\n' << to_text(found.spans, terminal_columns()) << "\ncritical path:";
    constexpr std::size_t shown = 24;
    auto const& path = found.critical_path;
    for (std::size_t i = 0; i < path.size(); ++i) {
        if (path.size() > 2 * shown && i == shown) {
            std::cout << " ... " << path.size() - 2 * shown << " more ...";
            i = path.size() - shown;
        }
        std::cout << ' ' << text(path[i].what);
    }
    std::cout << '\n';
}

/// What a policy that plans one cost for all is told of a table: the means.
uniform_costs means_of(cost_table const& table) {
    uniform_costs mean{.forward = 0, .input = 0, .weight = 0, .communication = table.every.latency};
    auto const count = static_cast<double>(table.stages.size());
    for (auto const& each : table.stages) {
        mean.forward += each.forward / count;
        mean.input += each.input / count;
        mean.weight += each.weight / count;
    }
    return mean;
}

} // namespace

int print_schedule(options const& asked) {
    known_schedule const known = schedule_of(asked, asked.costs);
    auto const title = [&] {
        return known.name + ", " + plural(known.file.programs.size(), "rank") + ", " +
               plural(static_cast<std::size_t>(known.micro_batches), "micro-batch");
    };
    if (asked.format == "json") {
        auto out = as_json(known);
        out["programs"] = nlohmann::ordered_json::array();
        for (program const& own : known.file.programs) {
            auto actions = nlohmann::ordered_json::array();
            for (action const& each : own) actions.push_back(text(each));
            out["programs"].push_back(std::move(actions));
        }
        std::cout << out.dump(1) << '\n';
    } else if (asked.format == "svg") {
        std::cout << to_svg(predict(known, asked.costs).spans, known.where, title());
    } else if (asked.format == "text") {
        std::cout << headline(known) << '\n' << to_text(predict(known, asked.costs).spans, terminal_columns());
    } else {
        std::cout << to_csv(known.file.programs);
    }
    return 0;
}

int check_file(options const& asked) {
    known_schedule const read = read_schedule(asked);
    if (std::string const why = fault_of(read); !why.empty()) return unsound(read, why);
    std::size_t transfers = 0;
    for (auto const& own : read.file.transfers) transfers += own.size();
    std::cout << headline(read) << "\nsound: every chunk once and on its rank, no deadlock";
    if (transfers > 0) std::cout << ", " << transfers << " sends and receives in one order";
    std::cout << "\npeak activations per rank: " << listed(peaks_of(read.file.programs)) << '\n';
    return 0;
}

int simulate_step(options const& asked) {
    bool const from_file = !asked.file.empty();
    known_schedule known = from_file ? read_schedule(asked) : schedule_of(asked, asked.costs);
    if (from_file)
        if (std::string const why = fault_of(known); !why.empty()) return unsound(known, why);
    prediction found;
    if (asked.cost_file.empty()) {
        found = predict(known, asked.costs);
    } else {
        cost_table const costs = read_costs(asked.cost_file, known.where, known.micro_batches);
        if (!from_file) known = schedule_of(asked, means_of(costs));
        found = predict(known, costs);
    }
    asked.format == "json" ? print_json(known, found) : print_text(known, found);
    return 0;
}
