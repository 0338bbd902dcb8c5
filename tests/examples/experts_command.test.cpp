// SPDX-License-Identifier: Apache-2.0
#include "../temporary_folder.hpp"
#include "catch.hpp"
#include "command_line.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace {

struct experts_run {
    temporary_folder folder{};

    outcome operator()(std::string const& text, std::vector<std::string> options = {"--format", "json"}) const {
        put_contents(folder / "loads.json", text);
        options.insert(options.begin(), {"experts", folder / "loads.json"});
        return run_copipe(std::move(options));
    }
    [[nodiscard]] std::string refusal(std::string const& text) const {
        auto const [status, out, err] = (*this)(text);
        CHECK(status == 2);
        std::string const head = "copipe: " + folder.path() + "/loads.json: ";
        REQUIRE(err.starts_with(head));
        return err.substr(head.size(), err.size() - head.size() - 1);
    }
};

constexpr auto published_example = R"({"id": 4, "num_replicas": 16, "num_groups": 4, "num_nodes": 2, "num_gpus": 8,
    "weight": [[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
               [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]]})";

} // namespace

TEST_CASE("copipe experts gives the maps that EPLB publishes") {
    experts_run const experts;
    auto const [status, out, err] = experts(std::string(R"({"cases": [)") + published_example + "]}");
    CHECK(err.empty());
    REQUIRE(status == 0);
    auto const result = nlohmann::json::parse(out)["results"][0];
    CHECK(result["id"] == 4);
    CHECK(result["phy2log"] == nlohmann::json::parse("[[5,6,5,7,8,4,3,4,10,9,10,2,0,1,11,1],"
                                                     "[7,10,6,8,6,11,8,9,2,4,5,1,5,0,3,1]]"));
    CHECK(result["logcnt"][0] == nlohmann::json::parse("[1,2,1,1,2,2,1,1,1,1,2,1]"));
    CHECK(result["log2phy"][0][1] == nlohmann::json::parse("[15,13]"));
    CHECK(result["log2phy"][1][0] == nlohmann::json::parse("[13,-1]"));
    CHECK(result["max_over_mean"][0].get<double>() == Approx(1.208131655));
}

TEST_CASE("copipe experts refines placements on request") {
    experts_run const experts;
    std::string const hot = R"({"num_replicas": 24, "num_groups": 4, "num_nodes": 2, "num_gpus": 4,
        "weight": [[1, 1, 1, 1, 1, 90000, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]]})";
    auto const ratio = [&](char const* policy) {
        auto const outcome = experts(hot, {"--policy", policy, "--format", "json"});
        return nlohmann::json::parse(outcome.out)["results"][0]["max_over_mean"][0].get<double>();
    };
    CHECK(ratio("published") > 2.3);
    CHECK(ratio("refined") < 2.01);
    auto const text = experts(published_example, {"--policy", "refined"});
    CHECK(text.out.starts_with("case 4: 12 experts, 16 replicas on 8 GPUs, refined\nlayer  max/mean"));
}

TEST_CASE("copipe experts says in one line what is wrong with a file, and where") {
    experts_run const experts;
    auto const with = [](char const* weight, int replicas, int gpus) {
        return R"({"num_groups": 1, "num_nodes": 1, "num_replicas": )" + std::to_string(replicas) +
               R"(, "num_gpus": )" + std::to_string(gpus) + R"(, "weight": )" + weight + "}";
    };
    CHECK(experts(with("[[1, 2, 3]]", 3, 3)).code == 0);
    CHECK(experts.refusal(with("[[1, 2, \"x\"]]", 3, 1)) == "weight[0][2]: must be a number, not \"x\".");
    CHECK(experts.refusal(with("[[1, 2, 3], [1, 2]]", 3, 1)) == "weight[1]: has 2 elements where 3 belong.");
    CHECK(experts.refusal(with("[[1, 2, -3]]", 3, 1)) ==
          "weight[0]: The load of expert 2 must be a number from 0 to 1e30.");
    CHECK(experts.refusal(with("[[1, 2, 3]]", 4, 3)) ==
          "weight[0]: 4 replicas do not divide evenly over 3 GPUs; change one of the two numbers.");
    CHECK(experts.refusal(with("[[1, 2, 1e39]]", 3, 1)) == // more than a float holds
          "weight[0]: The load of expert 2 must be a number from 0 to 1e30.");
    CHECK(experts.refusal(with("[]", 3, 1)) == "weight: must have at least one layer.");
    CHECK(experts.refusal(with("[[1, 2, 3]]", 0, 1)) ==
          "num_replicas: must be a whole number from 1 to 1000000, not 0.");
    CHECK(experts.refusal(R"({"weight": [[1]]})") == "lacks `num_replicas`.");
}
