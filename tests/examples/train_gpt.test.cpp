// SPDX-License-Identifier: Apache-2.0
// The program train_gpt from outside, on a text of its own and a model small enough to train in a moment.
#include "catch.hpp"

#include "cases.hpp"
#include "workplace.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstddef>
#include <map>
#include <string>
#include <sys/stat.h>
#include <tuple>
#include <utility>
#include <vector>

TEST_CASE("gpipe, one_f_one_b and dualpipe_v log the losses of sequential bit for bit on one, two and four ranks") {
    workplace const here;
    words const steps{"--steps", "4"};
    auto const reference = here.losses(under("sequential", 1) + steps);
    REQUIRE(reference.size() == 4);
    REQUIRE(reference.back() < reference.front());
    for (std::string const policy : {"gpipe", "one_f_one_b", "dualpipe_v"}) {
        for (int const ranks : {1, 2, 4}) {
            INFO(policy << " on " << ranks);
            CHECK(here.losses(under(policy, ranks) + steps) == reference);
        }
    }
}

TEST_CASE("dualpipe logs the same bits from run to run, within 1e-5 of sequential over twenty steps") {
    workplace const here;
    words const steps{"--steps", "20"};
    auto const reference = here.losses(under("sequential", 1) + steps);
    for (int const ranks : {2, 4}) {
        auto const losses = here.losses(under("dualpipe", ranks) + steps);
        CHECK(here.losses(under("dualpipe", ranks) + steps) == losses);
        REQUIRE(losses.size() == reference.size());
        for (std::size_t i = 0; i < losses.size(); ++i)
            CHECK(std::abs(losses[i] - reference[i]) <= 1e-5 * reference[i]);
    }
}

TEST_CASE("another seed gives another run, the same seed the same run and the same sample") {
    workplace const here;
    words const short_run{"--steps", "2", "--sample", "40", "--log", "log"};
    auto const text_of = [&](words const& arguments) {
        std::string const out = here.run(short_run + arguments).out;
        return out.substr(out.find("a sample"));
    };
    std::string const first = text_of({});
    auto const losses = here.logged("log");
    CHECK(text_of({"--policy", "gpipe", "--ranks", "4"}) == first);
    CHECK(here.logged("log") == losses);
    CHECK(text_of({"--seed", "2"}) != first);
    CHECK(here.logged("log") != losses);
}

TEST_CASE("a number with a zero before it is the same number") {
    workplace const here;
    auto const plain = here.losses({"--steps", "10", "--seed", "13"});
    CHECK(plain.size() == 10);
    CHECK(here.losses({"--steps", "010", "--seed", "013"}) == plain);
}

TEST_CASE("Ctrl-C finishes the step and saves, and any policy and number of ranks resumes exactly") {
    workplace const here;
    auto const steps = static_cast<std::size_t>(std::max(150, cases(400))); // enough to be interrupted twice
    words const all{"--steps", std::to_string(steps)};
    auto const reference = here.losses(all + under("sequential", 1));

    words const files{"--checkpoint", "saved", "--log", "resumed"};
    std::size_t before = 0;
    for (auto const& [policy, ranks, signal] : {std::tuple{"dualpipe_v", 2, SIGINT}, {"gpipe", 4, SIGTERM}}) {
        program training =
            here.start(all + files + under(policy, ranks) + (before == 0 ? words{} : words{"--resume", "saved"}));
        REQUIRE(comes_true([&] { return here.logged("resumed").size() > before + 2; }));
        training.signal(signal);
        outcome const ended = training.end();
        INFO(ended.out << ended.err);
        CHECK(ended.code == 128 + signal);
        CHECK(ended.out.find("stopped by") != std::string::npos);
        CHECK(ended.out.find("--resume saved") != std::string::npos);
        before = here.logged("resumed").size();
        REQUIRE(before < steps);
    }
    outcome const finished = here.run(all + files + under("one_f_one_b", 2) + words{"--resume", "saved"});
    CHECK(finished.code == 0);
    CHECK(here.logged("resumed") == reference);

    // Nothing is left to train: the sample is that of the trained parameters.
    outcome const again = here.run(all + words{"--resume", "saved", "--sample", "20"});
    CHECK(again.code == 0);
    CHECK(again.out.find("a sample") != std::string::npos);
}

TEST_CASE("a run without a checkpoint that is stopped says that nothing was saved") {
    workplace const here;
    program training = here.start({"--steps", "100000", "--log", "log"});
    REQUIRE(comes_true([&] { return contents(here / "log").size() > 10; }));
    training.signal(SIGTERM);
    outcome const ended = training.end();
    CHECK(ended.code == 128 + SIGTERM);
    CHECK(ended.out.find("nothing saved") != std::string::npos);
}

TEST_CASE("what is wrong with the input is said in one line, with exit code 2, and nothing is written") {
    workplace const here;
    REQUIRE(here.run({"--steps", "1", "--checkpoint", "good"}).code == 0);
    put_contents(here / "log", "an older log\n");
    put_contents(here / "empty", "");
    put_contents(here / "short", "a few bytes");
    put_contents(here / "foreign", "{\"not\": \"a checkpoint\"}");
    std::string const good = contents(here / "good");
    put_contents(here / "truncated", good.substr(0, good.size() / 2));
    put_contents(here / "longer", good + "x");
    REQUIRE(::mkdir((here / "folder").c_str(), 0700) == 0);
    auto const files = here.files();

    std::vector<std::pair<words, std::string>> const wrong{
        {{"--polcy", "gpipe"}, "--polcy"},
        {{"gpipe"}, "gpipe"},
        {{"--policy", "gpip"}, "gpip"},
        {{"--steps", "0"}, "--steps"},
        {{"--steps", "ten"}, "ten"},
        {{"--steps"}, "--steps"},
        {{"--learning-rate", "nan"}, "--learning-rate"},
        {{"--learning-rate", "-1"}, "--learning-rate"},
        {{"--seed", "-1"}, "--seed"},
        {{"--width", "99999999999"}, "--width"},
        {{"--heads", "3"}, "heads"},
        {{"--layers", "1", "--ranks", "4"}, "layers"},
        {{"--policy", "sequential", "--ranks", "2"}, "one rank"},
        {{"--policy", "dualpipe", "--ranks", "3"}, "even number of ranks"},
        {{"--policy", "dualpipe", "--micro-batches", "2"}, "micro-batches"},
        {{"--policy", "dualpipe_v", "--micro-batches", "3"}, "micro-batches"},
        {{"--data", "missing"}, "missing"},
        {{"--data", "empty"}, "empty"},
        {{"--data", "folder"}, "empty"},
        {{"--data", "short"}, "too few"},
        {{"--resume", "missing"}, "missing"},
        {{"--resume", "folder"}, "folder"},
        {{"--resume", "foreign"}, "foreign"},
        {{"--resume", "truncated"}, "truncated"},
        {{"--resume", "longer"}, "longer"},
        {{"--resume", "good", "--width", "32"}, "another size"},
        {{"--resume", "good", "--layers", "8"}, "another model"},
        {{"--checkpoint", "missing/file"}, "missing/file"},
        {{"--checkpoint", "folder"}, "folder"},
        {{"--timeline", "missing/file"}, "missing/file"},
        {{"--log", "missing/file"}, "missing/file"},
        {{"--log", "folder"}, "folder"},
        {{"--checkpoint-every", "5"}, "--checkpoint"},
        {{"--compare", "--checkpoint", "good"}, "--checkpoint"},
        {{"--compare", "--balance", "balanced"}, "--balance"},
        {{"--balance", "best"}, "best"},
        {{"--balance", "balanced", "--balance-every", "0"}, "--balance-every"},
        {{"--balance-every", "5"}, "--balance balanced"},
        {{"--fingerprints", "none"}, "--balance balanced"},
        {{"--memory-limit", "0"}, "--memory-limit"},
        {{"--memory-limit", "300X"}, "300X"},
        {{"--memory-limit", "8589934591G"}, "--memory-limit"},
        {{"--memory-limit", "10K"}, "under the best partition"},
        {{"--compare", "--memory-limit", "1G"}, "--memory-limit"},
        {{"--slow", "1"}, "RANK=FACTOR@STEP"},
        {{"--slow", "1=2"}, "RANK=FACTOR@STEP"},
        {{"--slow", "1=two@3"}, "1=two@3"},
        {{"--slow", "1=nan@3"}, "1=nan@3"},
        {{"--slow", "2=2@3"}, "ranks 0 to 1"},
        {{"--slow", "-1=2@3"}, "ranks 0 to 1"},
        {{"--slow", "1=0.5@3"}, "from 1 to 1000"},
        {{"--slow", "1=1e300@3"}, "from 1 to 1000"},
        {{"--slow", "0=2@3", "--slow", "1=2@0"}, "step 0"},
        {{"--steps", "5", "--slow", "1=2@6"}, "steps 1 to 5"},
        {{"--layout", "Ett|ttt"}, "L"},
        {{"--layout", "Et|t*6|L", "--policy", "gpipe"}, "stages"},
        {{"--layout", "Et|t*5L", "--policy", "gpipe"}, "layers"},
        {{"--layout", "Et|t*5mL", "--policy", "gpipe"}, "column 7"},
        {{"--resume", "good", "--log", "./good"}, "--log"},
        {{"--timeline", "good", "--checkpoint", "good"}, "--timeline"},
        {{"--data", "text", "--checkpoint", "text"}, "--data"},
        {{"--balance", "balanced", "--fingerprints", "good", "--resume", "good"}, "--fingerprints and --resume"},
    };
    for (auto const& [arguments, named] : wrong) {
        bool const compares = arguments.front() == "--compare"; // writes no log
        outcome const ended = here.run((compares ? words{} : words{"--log", "log"}) + arguments);
        INFO(arguments.front() << ' ' << arguments.back() << ": " << ended.err);
        CHECK(ended.code == 2);
        CHECK(std::count(ended.err.begin(), ended.err.end(), '\n') == 1);
        CHECK(ended.err.find(named) != std::string::npos);
        CHECK(contents(here / "log") == "an older log\n");
        CHECK(contents(here / "good") == good);
        CHECK(here.files() == files);
    }
}

TEST_CASE("the timeline holds every rank as planned and as measured, each with the chunks of all its steps") {
    workplace const here;
    REQUIRE(here.run(under("dualpipe_v", 2) + words{"--steps", "3", "--timeline", "timeline"}).code == 0);
    auto const trace = nlohmann::json::parse(contents(here / "timeline"));
    std::map<int, std::string> processes;
    std::map<std::string, int> chunks;
    for (auto const& event : trace.at("traceEvents"))
        if (event.at("ph") == "M" && event.at("name") == "process_name")
            processes[event.at("pid")] = event.at("args").at("name");
    for (auto const& event : trace.at("traceEvents")) {
        if (event.at("ph") != "X") continue;
        std::string const kind = event.at("cat");
        if (kind.ends_with("forward")) ++chunks[processes.at(event.at("pid"))];
    }
    // Two stages per rank and eight micro-batches: sixteen forwards in the plan of a step, three times that measured.
    CHECK(chunks ==
          std::map<std::string, int>{
              {"planned rank 0", 16}, {"planned rank 1", 16}, {"measured rank 0", 48}, {"measured rank 1", 48}});
}

TEST_CASE("the option --compare shows every policy, says why one cannot run, and that all learn the same") {
    workplace const here;
    auto const files = here.files();
    outcome const even = here.run({"--compare", "--steps", "3", "--ranks", "2"});
    CHECK(even.code == 0);
    std::map<std::string, std::string> rows;
    auto const read = [&](std::string const& table) {
        rows.clear();
        for (std::string const policy : {"sequential", "gpipe", "one_f_one_b", "dualpipe", "dualpipe_v"}) {
            std::size_t const at = table.find('\n' + policy + ' ') + 1;
            REQUIRE(at != 0);
            rows[policy] = table.substr(at, table.find('\n', at) - at);
        }
    };
    auto const loss = [&](std::string const& policy) { return rows[policy].substr(rows[policy].rfind(' ')); };
    read(even.out);
    for (std::string const policy : {"gpipe", "one_f_one_b", "dualpipe_v"}) CHECK(loss(policy) == loss("sequential"));
    CHECK(std::abs(std::stod(loss("dualpipe")) - std::stod(loss("sequential"))) < 1e-4);

    outcome const odd = here.run({"--compare", "--steps", "1", "--ranks", "3"});
    CHECK(odd.code == 0);
    read(odd.out);
    CHECK(loss("dualpipe") == " -");
    CHECK(loss("gpipe") == loss("sequential"));
    CHECK(odd.out.find("even number of ranks") != std::string::npos);
    CHECK(here.files() == files);
}

TEST_CASE("the plan names every layer once per copy of its stage, and the end the time of every rank") {
    workplace const here;
    outcome const ended = here.run(under("dualpipe_v", 2) + words{"--steps", "1"});
    for (std::string const part : {"dualpipe_v", "embedding, block", "head", "0, 3", "1, 2", "KiB", "bubble"}) {
        INFO(part);
        CHECK(ended.out.find(part) != std::string::npos);
    }
    CHECK(ended.out.find("peak memory") > ended.out.find("memory"));
    CHECK(ended.err.find("step 1/1 | loss") != std::string::npos);
}

TEST_CASE("a layout string says which layers form which stage") {
    workplace const here;
    outcome const ended = here.run(under("gpipe", 2) + words{"--steps", "1", "--layout", "Et|t*6L"});
    CHECK(ended.out.find("0: embedding, block 1 ") != std::string::npos);
    CHECK(ended.out.find("1: blocks 2-7, head") != std::string::npos);
}

TEST_CASE("layers leave a rank that has become slow, it is said why, and the losses are the same bits") {
    workplace const here;
    auto const pipeline = under("dualpipe_v", 2) + words{"--steps", "40"};
    auto const reference = here.losses(pipeline);
    outcome const ended = here.run(pipeline + words{"--balance", "balanced", "--balance-every", "10", "--slow",
                                                    "1=6@11", "--log", "log", "--timeline", "timeline",
                                                    "--fingerprints", "devices"});
    INFO(ended.out << ended.err);
    REQUIRE(ended.code == 0);
    CHECK(here.logged("log") == reference);
    std::string const said = ended.out + ended.err;
    CHECK(said.find("rank 1 computes 6.00 times slower") != std::string::npos);
    CHECK(said.find("device of rank 1: ") != std::string::npos);
    CHECK(said.find("balance: ranks take") != std::string::npos);
    CHECK(said.find("layers move") != std::string::npos);
    CHECK(said.find("predicted gain") != std::string::npos);
    CHECK(said.find("layers of each rank at the end") != std::string::npos);
    CHECK(contents(here / "log").find("moved_to") != std::string::npos);
}

TEST_CASE("under a memory limit it is said which layers are recomputed and why, and the losses are the same bits") {
    workplace const here;
    auto const pipeline = under("gpipe", 2) + words{"--steps", "2"};
    auto const reference = here.losses(pipeline);
    bool recomputed = false;
    for (int limit = 1024; !recomputed; limit -= limit / 8) {
        outcome const ended = here.run(pipeline + words{"--log", "log", "--memory-limit", std::to_string(limit) + "K"});
        INFO(limit << " KiB: " << ended.out << ended.err);
        REQUIRE(ended.code == 0);
        CHECK(here.logged("log") == reference);
        recomputed = ended.out.find("recomputes block") != std::string::npos;
        CHECK((recomputed || ended.out.find("nothing is recomputed") != std::string::npos));
        if (recomputed) CHECK(ended.out.find(" would hold up to ") != std::string::npos);
    }
}

TEST_CASE("the option --help names every option and ends well") {
    workplace const here;
    outcome const ended = here.run({"--help"});
    CHECK(ended.code == 0);
    CHECK(ended.err.empty());
    for (std::string const option : {"policy", "ranks", "micro-batches", "micro-batch-size", "layers", "width", "heads",
                                     "context", "steps", "learning-rate", "seed", "data", "eval-every", "checkpoint",
                                     "resume", "timeline", "log", "sample", "compare", "layout", "balance",
                                     "balance-every", "slow", "memory-limit", "fingerprints", "meet-within"})
        CHECK(ended.out.find("--" + option + ' ') != std::string::npos);
}
