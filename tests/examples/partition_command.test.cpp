// SPDX-License-Identifier: Apache-2.0
#include "../temporary_folder.hpp"
#include "catch.hpp"
#include "command_line.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace {

struct partition_run {
    temporary_folder folder{};

    outcome operator()(std::string const& text, std::vector<std::string> options = {"--format", "json"}) const {
        put_contents(folder / "cases.json", text);
        options.insert(options.begin(), {"partition", folder / "cases.json"});
        return run_copipe(std::move(options));
    }
    /// The one line of error that a file causes, without the folder.
    [[nodiscard]] std::string refusal(std::string const& text) const {
        auto const [status, out, err] = (*this)(text);
        CHECK(status == 2);
        CHECK(out.empty());
        REQUIRE(std::count(err.begin(), err.end(), '\n') == 1);
        std::string const head = "copipe: " + folder.path() + "/";
        REQUIRE(err.starts_with(head));
        return err.substr(head.size(), err.size() - head.size() - 1);
    }
};

} // namespace

TEST_CASE("copipe partition solves every family of cases, in the order of the file") {
    partition_run const partition;
    auto const [status, out, err] = partition(R"({"format": 1, "cases": [
        {"id": 7, "family": "uniform", "n": 5, "stages": 3, "weights": [7, 1, 0, 7, 7], "kind": "ignored"},
        {"id": "b", "family": "hetero_fixed", "n": 4, "stages": 3, "weights": [42, 100, 100, 285], "allow_empty": false,
         "slow": [4, 2, 2]},
        {"family": "unrelated", "n": 3, "stages": 2, "cost": [[1, 9, 9], [9, 2, 2]]},
        {"id": 1, "family": "hetero_perm", "n": 3, "stages": 2, "weights": [1, 1, 4], "slow": [2, 1]},
        {"id": 2, "family": "comm_add", "n": 6, "stages": 2, "weights": [3, 1, 1, 50, 1, 1], "slow": [6, 4],
         "comm": [0, 200, 1, 90, 1, 90, 0], "link": [1]},
        {"id": 3, "family": "comm_max", "n": 3, "stages": 3, "weights": [36, 64, 27], "slow": [2, 4, 3],
         "comm": [0, 5, 20, 0], "link": [8, 1]},
        {"id": 4, "family": "memory", "n": 3, "stages": 2, "weights": [1, 1, 8], "slow": [1, 1], "pmem": [5, 5, 5],
         "amem": [1, 1, 1], "mem_fixed": [0, 0], "inflight": [2, 1], "cap": [7, 20]},
        {"id": 5, "family": "memory", "n": 2, "stages": 2, "weights": [1, 1], "slow": [1, 1], "pmem": [5, 5],
         "amem": [1, 1], "mem_fixed": [0, 0], "inflight": [2, 1], "cap": [6, 20]},
        {"id": 6, "family": "memory_recompute", "n": 2, "stages": 2, "weights": [6, 6], "fwd": [2, 2], "pmem": [5, 5],
         "amem": [1, 1], "cmem": [0, 0], "mem_fixed": [0, 0], "inflight": [2, 1], "cap": [6, 20]},
        {"id": 8, "family": "latency", "n": 2, "stages": 2, "weights": [3, 5], "microbatches": 4},
        {"id": 9, "family": "dualpipe", "ranks": 2, "stages": 2, "n": 4, "weights": [8, 8, 9, 10], "slow": [4, 2]},
        {"id": 10, "family": "dualpipe_fb", "ranks": 2, "n": 2, "fwd": [1, 5], "bwd": [2, 7], "weights": [3, 12]},
        {"id": 11, "family": "dualpipe_mem", "ranks": 2, "n": 2, "weights": [3, 4], "pmem": [1, 1], "amem": [1, 1],
         "k0": [2, 1], "k1": [1, 2], "cap": [9, 9]},
        {"id": 12, "family": "dualpipev", "ranks": 2, "stages": 4, "n": 4, "weights": [1, 2, 3, 4], "slow": [1, 1]},
        {"id": 13, "family": "interleaved", "ranks": 2, "stages": 4, "n": 6, "weights": [50, 1, 3, 1, 3, 50]},
        {"id": 14, "family": "replicated", "devices": 3, "n": 6, "weights": [1, 0, 7, 1, 1, 7],
         "pbytes": [1, 4, 1, 6, 1, 5], "net": 0, "comm": [0, 55, 46, 38, 31, 51, 0]}]})");
    CHECK(err.empty());
    REQUIRE(status == 0);
    auto const results = nlohmann::json::parse(out)["results"];
    auto const objectives = {8, 570, 4, 4, 213, 256, 9, -1, 8, 23, 140, 8, 7, 5, 54, 34};
    REQUIRE(results.size() == objectives.size());
    std::size_t at = 0;
    for (int const objective : objectives) {
        INFO(results[at].dump());
        CHECK(results[at]["objective"] == (objective < 0 ? nlohmann::json() : nlohmann::json(objective)));
        CHECK(results[at++]["bounds"].is_array() == (objective >= 0));
    }
    CHECK(results[0]["id"] == 7);
    CHECK(results[1]["id"] == "b");
    CHECK(results[2]["id"] == 2); // a case without an id goes by its number
    CHECK(results[1]["bounds"] == nlohmann::json({0, 1, 3, 4}));
    CHECK(results[3]["order"] == nlohmann::json({0, 1}));
    CHECK(results[8]["recompute"] == nlohmann::json::parse("[0]"));
    CHECK(results[15]["replicas"] == nlohmann::json::parse("[3]"));
}

TEST_CASE("copipe partition takes one case alone, and prints what each rank does") {
    partition_run const partition;
    auto const [status, out, err] = partition(
        R"({"id": 3, "family": "memory_recompute", "n": 4, "stages": 2, "weights": [6, 6, 3, 3], "fwd": [2, 3, 1, 1],
            "pmem": [5, 5, 5, 5], "amem": [4, 4, 4, 4], "cmem": [1, 1, 1, 1], "mem_fixed": [1, 0], "inflight": [2, 1],
            "cap": [25, 40]})", {});
    CHECK(status == 0);
    CHECK(err.empty());
    CHECK(out == "case 3: memory_recompute, 4 layers on 2 ranks\n"
                 "slowest rank 12, ideal 9.0, ratio 1.3333, optimal\n"
                 "rank  stages  layers  time  of slowest  memory  of capacity  recomputed\n"
                 "0          0       0     6      50.0 %      14       56.0 %           0\n"
                 "1          1     1-3    12     100.0 %      27       67.5 %           0\n\n");
}

TEST_CASE("copipe partition says that no partition is feasible") {
    partition_run const partition;
    auto const [status, out, err] = partition(R"({"family": "uniform", "stages": 3, "weights": [1, 2]})", {});
    CHECK(status == 0);
    CHECK(out == "case 0: uniform, 2 layers on 3 ranks\n"
                 "no partition is feasible: memory or layers do not suffice\n\n");
}

TEST_CASE("copipe partition says in one line what is wrong with a file, and where") {
    partition_run const partition;
    auto const refusal = [&](std::string const& text) { return partition.refusal(text); };
    std::string const head = "cases.json";
    CHECK(refusal("{\"family\": \"uniform\",\n  \"n\": 3,,}").starts_with(head + ":2:10: not JSON: "));
    CHECK(refusal("").starts_with(head + ":1:1: not JSON: "));
    CHECK(refusal("[]") == head + ": must be an object, in braces.");
    CHECK(refusal(R"({"cases": 3})") == head + ": cases: must be an array, in brackets.");
    CHECK(refusal(R"({"cases": [{"family": "unform"}]})")
              .starts_with(head + ": cases[0].family: is not known; known are uniform, hetero_fixed,"));
    CHECK(refusal(R"({"family": "uniform", "stages": 2, "weights": [1, 2.5]})") ==
          head + ": weights[1]: must be a whole number from 0 to 1000000000000000000, not 2.5.");
    CHECK(refusal(R"({"family": "uniform", "stages": 2, "weights": [1, -2]})") ==
          head + ": weights[1]: must be a whole number from 0 to 1000000000000000000, not -2.");
    CHECK(refusal(R"({"family": "uniform", "stages": 2, "weights": [1, 18446744073709551615]})") ==
          head + ": weights[1]: must be a whole number from 0 to 1000000000000000000, not 18446744073709551615.");
    CHECK(refusal(R"({"family": "uniform", "stages": 2, "n": 3, "weights": [1, 2]})") ==
          head + ": weights: has 2 elements where 3 belong.");
    CHECK(refusal(R"({"family": "uniform", "weights": [1, 2]})") == head + ": lacks `stages`.");
    CHECK(refusal(R"({"family": "comm_add", "stages": 2, "weights": [1, 2]})") == head + ": lacks `comm`.");
    CHECK(refusal(R"({"family": "hetero_fixed", "stages": 2, "weights": [1, 2], "slow": [1, 0]})") ==
          head + ": slow[1]: must be a whole number from 1 to 1000000000000000000, not 0.");
    CHECK(refusal(R"({"family": "dualpipe", "ranks": 3, "weights": [1, 2, 3]})") ==
          head + ": `ranks` must be even where stages are bidirectional.");
    CHECK(refusal(R"({"family": "interleaved", "ranks": 2, "stages": 5, "weights": [1, 2, 3, 4, 5]})") ==
          head + ": stages: does not go with 2 ranks in this family.");
    CHECK(refusal(R"({"family": "uniform", "stages": 1, "weights": [1000000000000000000]})") ==
          head + ": `weights` or bytes make sums beyond 64 bits; use a coarser unit.");
    CHECK(refusal(R"({"family": "uniform", "stages": 1, "weights": [1], "allow_empty": 1})") ==
          head + ": allow_empty: must be true or false, not 1.");
    CHECK(refusal(R"({"family": "uniform", "stages": 1, "weights": [1e400]})") ==
          head + ": the number '1e400' is too large.");
    CHECK(refusal(R"({"family": "dualpipev", "stages": 3, "weights": [1, 2, 3]})") ==
          head + ": stages: must be even in this family.");
    CHECK(refusal(R"({"family": "uniform", "stages": 1, "weights": [1], "id": [1]})") ==
          head + ": id: must be a number or a string.");
    std::string const deep = std::string(300'000, '[') + std::string(300'000, ']');
    CHECK(refusal("{\"family\": " + deep + "}") == head + ": family: must be a string, not array.");
}

TEST_CASE("copipe partition refuses what is too large to be solved") {
    partition_run const partition;
    auto const refusal = [&](std::string const& family, int ranks, int stages, int layers) {
        std::string weights;
        for (int i = 0; i < layers; ++i) weights += i == 0 ? "1" : ",1";
        return partition.refusal("{\"family\": \"" + family + "\", \"ranks\": " + std::to_string(ranks) +
                                 ", \"stages\": " + std::to_string(stages) + ", \"weights\": [" + weights + "]}");
    };
    std::string const stages =
        "cases.json: `ranks` may have 4096 stages in all where they are dealt out in loops, or in the best order.";
    CHECK(refusal("interleaved", 2, 200'000, 200'000) == stages);
    CHECK(refusal("hetero_perm", 50'000, 50'000, 50'000) == stages);
    CHECK(refusal("dualpipe", 2, 2, 60'000) ==
          "cases.json: `weights` may have 10000 layers where stages are mirrored.");
}

TEST_CASE("copipe partition refuses a file that is not there, and nothing to do") {
    temporary_folder const folder;
    auto const run = [](std::vector<std::string> const& arguments) {
        return run_copipe(arguments);
    };
    CHECK(run({"partition", folder / "none.json"}).code == 2);
    CHECK(run({"partition", folder / "none.json"}).err ==
          "copipe: " + folder.path() + "/none.json: cannot be read; give a file of JSON.\n");
    CHECK(run({"partition", folder.path()}).err ==
          "copipe: " + folder.path() + ": cannot be read; give a file of JSON.\n");
    CHECK(run({"partition"}).err == "copipe: partition: give a FILE.json, or a layout with --layout.\n");
    CHECK(run({"partition", "a.json", "--format", "xml"}).code != 0);
    CHECK(run({"partition", "a.json", "--layout", "EL"}).code != 0);
}

TEST_CASE("copipe partition explains a layout string") {
    auto const run = [](std::vector<std::string> const& arguments) {
        return run_copipe(arguments);
    };
    auto const text = run({"partition", "--layout", "Et|(t|)*3,tL"});
    CHECK(text.code == 0);
    CHECK(text.out == "Et|(t|)*3,tL: 5 stages, 7 layers with embedding and loss\n"
                      "stage 0: embedding, transformer (layers 0-1)\n"
                      "stages 1-3: each transformer (layers 2-4)\n"
                      "stage 4: transformer, loss (layers 5-6)\n");
    auto const as_json = run({"partition", "--layout", "Et|tL", "--format", "json"});
    CHECK(nlohmann::json::parse(as_json.out) ==
          nlohmann::json({{"layout", "Et|tL"}, {"stages", {"Et", "tL"}}, {"bounds", {0, 2, 4}}}));
    auto const wrong = run({"partition", "--layout", "Et|x"});
    CHECK(wrong.code == 2);
    CHECK(wrong.err.starts_with("copipe: Layout `Et|x`, column 4: "));
}
