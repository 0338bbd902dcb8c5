// SPDX-License-Identifier: Apache-2.0
#include "gpt/options.hpp"

#include "gpt/any_trainer.hpp"

#include <CLI/CLI.hpp>

#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <iostream>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace gpt {
namespace {

constexpr auto description =
    "Trains a byte-level GPT on text as a pipeline of ranks, one thread each, on the CPU. Prints what it is going to\n"
    "do and what that should cost, a line of progress, where the time went, and a sample of what the model writes.\n";

constexpr auto footer =
    "Examples:\n"
    "  train_gpt                                                 learns copipe's own source\n"
    "  train_gpt --data book.txt --steps 1000 --checkpoint book.safetensors\n"
    "  train_gpt --data book.txt --steps 1000 --resume book.safetensors --policy gpipe --ranks 4\n"
    "  train_gpt --compare --ranks 2 --micro-batches 8           all policies side by side\n"
    "\n"
    "Policy, ranks and interruptions do not change what is learned (dualpipe differs by rounding, as it adds up\n"
    "gradients in another order). Ctrl-C or SIGTERM finishes the step and saves the checkpoint; a second one ends the\n"
    "program at once.\n"
    "\n"
    "Exit code: 0 trained; 1 failed while training; 2 bad input, nothing was written; 130 stopped by Ctrl-C and 143\n"
    "by SIGTERM, after saving.";

/// Whether all of the text is a number of that type.
template <class Number>
bool reads(std::string const& text, Number& value) {
    char const* const end = text.data() + text.size();
    auto const [stopped, wrong] = std::from_chars(text.data(), end, value);
    return wrong == std::errc{} && stopped == end;
}

/// Passes numbers above zero; NaN and infinity are none.
std::string positive(std::string const& text) {
    double value = 0;
    bool const fits = reads(text, value) && std::isfinite(value) && value > 0;
    return fits ? "" : "must be a number above 0, not " + text;
}

std::string any_seed(std::string& text) {
    std::uint64_t value = 0;
    if (reads(text, value)) return text = std::to_string(value), "";
    return "must be a whole number from 0 to 2^64-1, not " + text;
}

std::string known_balancer(std::string const& text) {
    return text == "static" || text == "balanced" ? "" : "there is no balancer " + text + "; choose static or balanced";
}

/// Reads `RANK=FACTOR@STEP`; nothing if it is not that.
std::optional<slow_rank> read_slow(std::string const& text) {
    auto const equals = text.find('='), at = text.find('@');
    if (equals == std::string::npos || at == std::string::npos || at < equals) return {};
    slow_rank found{};
    bool const fits = reads(text.substr(0, equals), found.rank) &&
                      reads(text.substr(equals + 1, at - equals - 1), found.factor) &&
                      reads(text.substr(at + 1), found.step) && std::isfinite(found.factor);
    return fits ? std::optional{found} : std::nullopt;
}

/// Reads a number of bytes, with K, M or G for times 1024, 1024^2 or 1024^3; nothing if it is none, or 0.
std::optional<std::size_t> read_bytes(std::string text) {
    std::string const units = "KMG";
    auto const unit = text.empty() ? std::string::npos : units.find(text.back());
    if (unit != std::string::npos) text.pop_back();
    std::size_t const shift = unit == std::string::npos ? 0 : 10 * (unit + 1);
    std::uint64_t count = 0;
    if (!reads(text, count) || count == 0 || count >> (50 - shift) != 0) return {};
    return count << shift;
}

std::string known_policy(std::string const& text) {
    std::string known;
    for (auto const name : policy_names) {
        if (text == name) return "";
        known += (known.empty() ? "" : ", ") + std::string(name);
    }
    return "there is no policy " + text + "; choose one of " + known;
}

/// `name` takes a whole number from `least` to `most`. CLI11 would read 010 as 8.
template <class Integer>
void count(CLI::App& app, std::string const& name, Integer& value, long least, long most, std::string const& what) {
    auto const plain = [=](std::string& text) -> std::string {
        long given = 0;
        if (reads(text, given) && least <= given && given <= most) return text = std::to_string(given), "";
        return "must be a whole number from " + std::to_string(least) + " to " + std::to_string(most) + ", not " + text;
    };
    app.add_option(name, value, what)->transform(CLI::Validator(plain, ""))->type_name("N")->capture_default_str();
}

void file(CLI::App& app, std::string const& name, std::string& value, std::string const& what) {
    app.add_option(name, value, what)->type_name("FILE");
}

void add_options(CLI::App& app, options& to) {
    constexpr long many = 1'000'000'000;
    app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    app.option_defaults()->group("Model and data");
    count(app, "--layers", to.model.blocks, 1, 10'000, "transformer blocks between embedding and head");
    count(app, "--width", to.model.width, 1, 65'536, "channels of the residual stream");
    count(app, "--heads", to.model.heads, 1, 65'536, "attention heads; must divide the width");
    count(app, "--context", to.model.context, 1, 65'536, "bytes that the model looks back on");
    app.add_option("--data", to.data,
                   "files, and folders with all that is in them; text or any\n"
                   "bytes (default: copipe's own headers, examples and docs)")
        ->expected(1, -1)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
        ->type_name("PATH");

    app.option_defaults()->group("Training");
    count(app, "--steps", to.steps, 1, many, "steps to train, those before a resumption included");
    count(app, "--micro-batch-size", to.micro_batch_size, 1, 65'536, "pieces of text, each as long as the context");
    app.add_option("--learning-rate", to.learning_rate,
                   "its peak, after a warm-up over the first tenth of the\nsteps, at most 100, and before a "
                   "cosine decay to a tenth")
        ->check(CLI::Validator(positive, ""))
        ->type_name("X")
        ->capture_default_str();
    app.add_option("--seed", to.seed, "of the first weights, the order of the data, the sample")
        ->transform(CLI::Validator(any_seed, ""))
        ->type_name("N")
        ->capture_default_str();
    count(app, "--eval-every", to.eval_every, 0, many, "steps between measuring the loss on held-out text; 0: never");
    count(app, "--sample", to.sample, 0, 1'000'000, "bytes of text that the model writes after training");

    app.option_defaults()->group("Pipeline");
    app.add_option("--policy", to.policy,
                   "schedule: sequential (no pipeline), gpipe, one_f_one_b,\ndualpipe or dualpipe_v")
        ->check(CLI::Validator(known_policy, ""))
        ->type_name("NAME")
        ->capture_default_str();
    count(app, "--ranks", to.pipeline.ranks, 1, 1024, "at best one per core; always 1 with --policy sequential");
    count(app, "--micro-batches", to.pipeline.micro_batches, 1, 1'000'000, "micro-batches per step");
    app.add_option("--layout", to.layout,
                   "layers of each stage, as Megatron writes them: \"Ettt|t*5L\"\n"
                   "(E embedding, t block, L head); default: as predicted best")
        ->type_name("STRING");
    app.add_option_function<std::string>(
           "--memory-limit", [&to](std::string const& bytes) { to.memory_limit = *read_bytes(bytes); },
           "what each rank may use of its device's memory, with K, M or G:\n"
           "layers are recomputed where that is needed; default: all")
        ->check(CLI::Validator(
            [](std::string const& text) {
                return read_bytes(text) ? std::string{} : "must be a number of bytes such as 300M or 2G, not " + text;
            },
            ""))
        ->type_name("BYTES");
    app.add_option_function<std::string>(
           "--balance", [&to](std::string const& name) { to.balanced = name == "balanced"; },
           "static: layers stay; balanced: they move between ranks when\n"
           "measurements say that a step becomes shorter")
        ->check(CLI::Validator(known_balancer, ""))
        ->type_name("NAME")
        ->default_str("static");
    count(app, "--balance-every", to.balance_every, 1, many, "steps between two looks at the measurements");
    app.add_option("--fingerprints", to.fingerprints,
                   "file that keeps what devices can do, measured for --balance;\n"
                   "cache: copipe/fingerprints in ~/.cache; none: measure anew")
        ->type_name("FILE")
        ->capture_default_str();
    app.add_option_function<std::vector<std::string>>(
           "--slow",
           [&to](std::vector<std::string> const& all) {
               for (auto const& each : all) to.slow.push_back(*read_slow(each));
           },
           "RANK=FACTOR@STEP: the rank really computes FACTOR times slower\n"
           "from that step on; to be repeated for more")
        ->check(CLI::Validator(
            [](std::string const& text) {
                return read_slow(text) ? std::string{} : "must be RANK=FACTOR@STEP, for instance 1=2@100, not " + text;
            },
            ""))
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
        ->type_name("TEXT");
    app.add_option("--device", to.device, "cpu, cuda (GPUs), or auto: GPUs where there are any")
        ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
        ->type_name("NAME")
        ->capture_default_str();
    app.add_option("--precision", to.precision, "of matrix products on GPUs: f32, or bf16 summed up in 32 bits")
        ->check(CLI::IsMember({"f32", "bf16"}))
        ->type_name("NAME")
        ->capture_default_str();
    count(app, "--ranks-per-gpu", to.ranks_per_gpu, 0, 1024,
          "ranks that may share a GPU; 0: one, or with --device auto\nas many as must");
    count(app, "--meet-within", to.meet_within, 1, 86'400, "seconds that processes, one per rank, wait for each other");
    app.add_flag("--compare", to.compare,
                 "train under every policy, by turns, and print a table;\n"
                 "8 steps of each unless --steps says otherwise");

    app.option_defaults()->group("Files");
    file(app, "--checkpoint", to.checkpoint,
         "safetensors file to save at the end and when interrupted;\nreplaces an older one");
    count(app, "--checkpoint-every", to.checkpoint_every, 0, many, "steps between saves; 0: at the end only");
    file(app, "--resume", to.resume,
         "checkpoint to go on from; policy and ranks may be others,\nmodel, data and seed must be the same");
    file(app, "--log", to.log, "a line of JSON per step; a resumed run appends to it");
    file(app, "--timeline", to.timeline,
         "planned and measured timeline of the last steps, to open\nin https://ui.perfetto.dev");
}

/// An option and the file that it names.
struct named_file {
    std::string option;
    std::filesystem::path file;

    named_file(std::string name, std::filesystem::path const& path)
        : option(std::move(name)), file(path.empty() ? path : weakly_canonical(path)) {}
};

/// Throws usage_error when a file would be written by two options, or is one to read as well. A checkpoint may replace
/// the one that is resumed.
void require_own_files(options const& asked) {
    std::vector<named_file> files{
        {"--log", asked.log}, {"--timeline", asked.timeline}, {"--checkpoint", asked.checkpoint}};
    if (asked.fingerprints != "cache" && asked.fingerprints != "none")
        files.emplace_back("--fingerprints", asked.fingerprints);
    std::size_t const written = files.size();
    for (auto const& each : asked.data) files.emplace_back("--data", each);
    files.emplace_back("--resume", asked.resume);
    for (std::size_t i = 0; i < written; ++i)
        for (std::size_t other = i + 1; other < files.size(); ++other) {
            bool const goes_on = files[i].option == "--checkpoint" && files[other].option == "--resume";
            if (!files[i].file.empty() && files[i].file == files[other].file && !goes_on)
                throw usage_error(files[i].option + " and " + files[other].option + " name the same file, " +
                                  files[i].file.string() + ": choose another");
        }
}

/// Throws usage_error for options that do not go together.
void require_consistent(options const& asked) {
    if (asked.process.size > 1 && asked.pipeline.ranks != asked.process.size)
        throw usage_error("--ranks " + std::to_string(asked.pipeline.ranks) + ", but this is one of " +
                          std::to_string(asked.process.size) + " processes: start one process per rank");
    if (asked.process.size > 1 && (asked.compare || asked.balanced || !asked.slow.empty()))
        throw usage_error("this is one of " + std::to_string(asked.process.size) +
                          " processes: --compare, --balance and --slow need all ranks in one process");
    if (asked.checkpoint_every != 0 && asked.checkpoint.empty())
        throw usage_error("--checkpoint-every needs --checkpoint, the file to save to");
    for (auto const& [option, file] : {std::pair{"--checkpoint", &asked.checkpoint},
                                       {"--resume", &asked.resume},
                                       {"--log", &asked.log},
                                       {"--timeline", &asked.timeline}})
        if (asked.compare && !file->empty())
            throw usage_error(std::string("--compare writes no files and resumes nothing: leave ") + option + " out");
    if (asked.compare && (asked.balanced || !asked.slow.empty() || !asked.layout.empty() || asked.memory_limit != 0))
        throw usage_error("--compare tries each policy as predicted best: leave --layout, --balance, --slow and "
                          "--memory-limit out");
    require_own_files(asked);
}

/// Throws usage_error for ranks and steps that are not part of the run, and for factors below 1.
void require_slow_ranks(options const& asked) {
    for (slow_rank const& each : asked.slow) {
        if (each.rank < 0 || each.rank >= asked.pipeline.ranks)
            throw usage_error("--slow names rank " + std::to_string(each.rank) + ", but there are ranks 0 to " +
                              std::to_string(asked.pipeline.ranks - 1));
        if (each.factor < 1 || each.factor > 1000)
            throw usage_error("--slow takes a factor from 1 to 1000: no rank can be made faster, nor wait for ever");
        if (each.step < 1 || each.step > asked.steps)
            throw usage_error("--slow names step " + std::to_string(each.step) + ", but there are steps 1 to " +
                              std::to_string(asked.steps));
    }
}

} // namespace

auto parse(int count, char const* const* arguments) -> std::optional<options> {
    options found;
    CLI::App app{description, "train_gpt"};
    app.footer(footer);
    app.get_formatter()->column_width(30);
    app.set_help_flag("-h,--help", "this text");
    try {
        add_options(app, found);
        app.parse(count, arguments);
    } catch (CLI::CallForHelp const&) {
        std::cout << app.help();
        return std::nullopt;
    } catch (CLI::ParseError const& wrong) {
        throw usage_error(std::string(wrong.what()) + "; --help lists the options");
    }
    found.process = copipe::resolve_launch();
    if (found.process.size > 1 && app.count("--ranks") == 0) found.pipeline.ranks = found.process.size;
    require_consistent(found);
    if (found.policy == copipe::sequential::name && app.count("--ranks") == 0) found.pipeline.ranks = 1;
    if (!found.balanced && app.count("--balance-every") != 0)
        throw usage_error("--balance-every needs --balance balanced");
    if (!found.balanced && app.count("--fingerprints") != 0)
        throw usage_error("--fingerprints needs --balance balanced");
    require_slow_ranks(found);
    if (found.compare && app.count("--steps") == 0) found.steps = 8;
    return found;
}

} // namespace gpt
