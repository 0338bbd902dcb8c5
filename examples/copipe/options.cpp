// SPDX-License-Identifier: Apache-2.0
#include "options.hpp"

#include "experts_command.hpp"
#include "partition_command.hpp"
#include "policies.hpp"

#include <CLI/CLI.hpp>

#include <charconv>
#include <cmath>
#include <iostream>
#include <map>
#include <memory>
#include <system_error>

namespace {

constexpr auto description =
    "Pipelines, before anything runs: schedules proved, predicted and drawn; models cut into stages.\n";

constexpr auto footer =
    "Examples:\n"
    "  copipe compare --ranks 8 --micro-batches 16 --overlap 2.1\n"
    "  copipe schedule --policy dualpipe --ranks 8 --micro-batches 20 --format svg > dualpipe.svg\n"
    "  copipe schedule --policy zb_v --ranks 4 --micro-batches 8 --backward-input 1.2 | copipe check -\n"
    "  copipe simulate --file schedule.csv --communication 0.1 --format json\n"
    "\n"
    "Exit code: 0 done; 1 the schedule is unsound, the reason is printed; 2 bad input.\n";

template <class Number>
bool reads(std::string const& text, Number& value) {
    char const* const end = text.data() + text.size();
    auto const [stopped, wrong] = std::from_chars(text.data(), end, value);
    return wrong == std::errc{} && stopped == end;
}

/// Transforms: CLI11 would read 010 as 8.
CLI::Validator whole(int least, int most) {
    return {[=](std::string& text) -> std::string {
                int given = 0;
                if (reads(text, given) && least <= given && given <= most) return text = std::to_string(given), "";
                return "must be a whole number from " + std::to_string(least) + " to " + std::to_string(most) +
                       ", not " + text;
            },
            ""};
}

CLI::Validator time() {
    return {[](std::string const& text) -> std::string {
                double given = 0;
                if (reads(text, given) && std::isfinite(given) && given >= 0 && given <= 1e12) return "";
                return "must be a number from 0 to 1e12, not " + text;
            },
            ""};
}

CLI::Validator one_of(std::string const& choices) {
    return {[=](std::string const& text) -> std::string {
                std::string const all = "|" + choices + "|";
                if (text.find('|') == std::string::npos && all.find("|" + text + "|") != std::string::npos) return "";
                return "there is no " + text + "; choose one of " + choices;
            },
            ""};
}

std::string policy_names() {
    std::string names;
    for_each_policy(2, {}, [&](auto const& policy) { names += (names.empty() ? "" : "|") + std::string(policy.name); });
    return names;
}

/// One subcommand's options; values go straight to where they belong.
class subcommand {
public:
    subcommand(CLI::App& app, options& to, std::string const& name, std::string const& what)
        : app_(*app.add_subcommand(name, what)), to_(to) {
        app_.callback([&to, name] { to.command = name; });
    }

    subcommand& size(bool required) {
        app_.add_option("--ranks", to_.size.ranks, "ranks of the pipeline")
            ->transform(whole(1, 65535))
            ->type_name("N")
            ->required(required);
        app_.add_option("--micro-batches", to_.size.micro_batches,
                        "micro-batches of a step, of both directions together")
            ->transform(whole(1, 100'000'000))
            ->type_name("M")
            ->required(required);
        app_.add_option("--chunks", to_.chunks, "stages on each rank, for the interleaved policies (default 2)")
            ->transform(whole(1, 1024))
            ->type_name("V");
        return *this;
    }
    subcommand& costs(std::string const& of) {
        auto const add = [&](char const* name, double& value, std::string const& what) {
            app_.add_option(name, value, what)->check(time())->type_name("T");
        };
        add("--forward", to_.costs.forward, "time of the forward of " + of + " (default 1)");
        add("--backward-input", to_.costs.input, "time of its input gradient (default 1)");
        add("--weight", to_.costs.weight, "time of its weight gradient (default 1)");
        add("--overlap", to_.costs.overlapped, "time of an overlapped forward and backward (default: their sum)");
        add("--communication", to_.costs.communication, "time that a message is under way (default 0)");
        return *this;
    }
    subcommand& placement() {
        static std::map<std::string, copipe::layout> const kinds{{"single", copipe::layout::single},
                                                                 {"loop", copipe::layout::loop},
                                                                 {"v", copipe::layout::v},
                                                                 {"bidirectional", copipe::layout::bidirectional}};
        app_.add_option_function<std::string>(
                "--placement", [this](std::string const& kind) { to_.placement = kinds.at(kind); },
                "single, loop, v or bidirectional (default: what the file looks like)")
            ->check(one_of("single|loop|v|bidirectional"))
            ->type_name("KIND");
        return *this;
    }
    subcommand& format(std::string const& choices) {
        app_.add_option("--format", to_.format, choices)->check(one_of(choices))->type_name("FORMAT");
        return *this;
    }
    CLI::Option* policy() {
        return app_.add_option("--policy", to_.policy, policy_names())
            ->check(one_of(policy_names()))
            ->type_name("POLICY");
    }
    CLI::Option* file(std::string const& name) {
        return app_.add_option(name, to_.file, "a schedule as comma-separated actions; - reads standard input")
            ->type_name("FILE");
    }
    CLI::App* operator->() { return &app_; }

private:
    CLI::App& app_;
    options& to_;
};

/// Throws `usage_error` unless the first word is a command or an option of the program itself.
void require_command(CLI::App const& app, std::string const& first) {
    std::string names;
    for (auto const* each : app.get_subcommands([](CLI::App const*) { return true; })) {
        if (each->get_name() == first) return;
        names += (names.empty() ? "" : ", ") + each->get_name();
    }
    if (!first.empty() && app.get_option_no_throw(first)) return;
    throw usage_error((first.empty() ? "a command is missing" : "there is no command " + first) + "; choose one of " +
                      names + " (--help tells more)");
}

/// `copipe partition FILE.json [--format text|json]` or `copipe partition --layout STRING [--format text|json]`.
void add_partition_command(CLI::App& app) {
    auto const asked = std::make_shared<command::partition_options>();
    auto* const partition = app.add_subcommand("partition", "Cut models into pipeline stages, optimally");
    auto* const file = partition->add_option("file", asked->file, "JSON: one case or {\"cases\": [...]}");
    auto* const layout = partition->add_option("--layout", asked->layout, "Explain a layout like Et*3|(tt|)*29,m|L");
    layout->excludes(file);
    partition->add_option("--format", asked->format, "text or json")
        ->check(CLI::IsMember({"text", "json"}))
        ->capture_default_str();
    partition->callback([asked, file, layout] {
        if (layout->count() > 0) return command::print_layout(*asked);
        if (file->count() == 0) throw usage_error("partition: give a FILE.json, or a layout with --layout.");
        command::print_partitions(*asked);
    });
}

/// `copipe experts FILE.json [--policy published|refined] [--format text|json]`.
void add_experts_command(CLI::App& app) {
    auto const asked = std::make_shared<command::experts_options>();
    auto* const experts = app.add_subcommand("experts", "Place the experts of a mixture-of-experts model on GPUs");
    experts->add_option("file", asked->file, "JSON: one case or {\"cases\": [...]}")->required();
    experts->add_option("--policy", asked->policy, "published (EPLB's map) or refined (never worse)")
        ->check(CLI::IsMember({"published", "refined"}))
        ->capture_default_str();
    experts->add_option("--format", asked->format, "text or json")
        ->check(CLI::IsMember({"text", "json"}))
        ->capture_default_str();
    experts->callback([asked] { command::print_experts(*asked); });
}

} // namespace

std::optional<options> read_options(int count, char** arguments) {
    options asked;
    CLI::App app{description, "copipe"};
    app.footer(footer);
    app.require_subcommand(1);
    app.set_help_all_flag("--help-all", "the help of all commands");

    subcommand schedule(app, asked, "schedule", "prints a policy's schedule, or draws it");
    schedule.policy()->required();
    schedule.size(true).costs("a chunk").format("csv|text|svg|json");

    subcommand check(app, asked, "check", "proves that a schedule file is sound, or says why not");
    check.file("file")->required();
    check.placement();

    subcommand simulate(app, asked, "simulate", "predicts a step of a policy or of a schedule file");
    auto* const by_policy = simulate.policy();
    auto* const by_file = simulate.file("--file");
    by_policy->excludes(by_file);
    simulate.size(false).costs("a chunk").placement().format("text|json");
    auto* const by_table =
        simulate->add_option("--costs", asked.cost_file, "costs per stage, micro-batch and link, as JSON");
    by_table->type_name("FILE");
    for (auto const* one : {"--forward", "--backward-input", "--weight", "--overlap", "--communication"})
        by_table->excludes(simulate->get_option(one));

    subcommand compare(app, asked, "compare",
                       "predicts a step of every policy that can run the shape, the shortest first");
    compare.size(true).costs("a 1F1B stage; several chunks on a rank share a stage's time");

    add_partition_command(app);
    add_experts_command(app);

    try {
        require_command(app, count > 1 ? arguments[1] : "");
        app.parse(count, arguments);
        if (asked.command == "simulate" && asked.policy.empty() && asked.file.empty())
            throw usage_error("simulate needs --policy or --file");
        if (asked.command == "simulate" && !asked.policy.empty() &&
            (asked.size.ranks == 0 || asked.size.micro_batches == 0))
            throw usage_error("--policy needs --ranks and --micro-batches");
    } catch (CLI::CallForHelp const&) {
        std::cout << (app.get_subcommands().empty() ? app.help() : app.get_subcommands().front()->help("copipe"));
        return {};
    } catch (CLI::CallForAllHelp const&) {
        std::cout << app.help("", CLI::AppFormatMode::All);
        return {};
    } catch (CLI::ParseError const& wrong) {
        throw usage_error(wrong.what());
    }
    return asked;
}
