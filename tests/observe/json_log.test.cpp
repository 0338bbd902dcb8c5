// SPDX-License-Identifier: Apache-2.0
#include "catch.hpp"
#include "copipe/observe/json_log.hpp"
#include "says.hpp"
#include "temporary_folder.hpp"

#include <limits>
#include <nlohmann/json.hpp>

using namespace copipe;

TEST_CASE("a line of the log is JSON with the fields of a step, every number exact") {
    step_record const record{.step = 12,
                             .loss = 0.1 + 0.2,
                             .step_seconds = 1e-7,
                             .tokens_per_second = 123456789.25,
                             .gradient_norm = static_cast<double>(1.1f),
                             .pipeline_bubble_ratio = {0.125, 1.0 / 3}};
    auto const line = nlohmann::json::parse(json_text(record));
    CHECK(line.size() == 6);
    CHECK(line["step"] == 12);
    CHECK(line["loss"] == 0.1 + 0.2);
    CHECK(line["step_seconds"] == 1e-7);
    CHECK(line["tokens_per_second"] == 123456789.25);
    CHECK(line["gradient_norm"].get<float>() == 1.1f);
    CHECK(line["pipeline_bubble_ratio"] == nlohmann::json{0.125, 1.0 / 3});
}

TEST_CASE("a loss that is not a number is null, and the line still JSON") {
    auto const line = nlohmann::json::parse(json_text({.loss = std::numeric_limits<double>::quiet_NaN(),
                                                       .gradient_norm = std::numeric_limits<double>::infinity()}));
    CHECK(line["loss"].is_null());
    CHECK(line["gradient_norm"].is_null());
    CHECK(line["pipeline_bubble_ratio"].empty());
}

TEST_CASE("names are escaped so that JSON reads them back") {
    std::string every;
    for (int c = 1; c < 128; ++c) every += static_cast<char>(c);
    every += "\u00b5\U0001F600";
    every += '\0';
    std::string text;
    append_json(text, every);
    CHECK(nlohmann::json::parse(text) == every);
}

TEST_CASE("the partition is logged on steps before which layers moved, and only there") {
    CHECK_FALSE(nlohmann::json::parse(json_text({.step = 1})).contains("moved_to"));
    auto const moved = nlohmann::json::parse(json_text({.step = 2, .moved_to = {0, 3, 10}}));
    CHECK(moved.at("moved_to") == std::vector<int>{0, 3, 10});
}

TEST_CASE("each line can be read as soon as it is written") {
    temporary_folder const folder;
    json_log log{folder / "log", log_start::empty};
    log.write({.step = 1});
    CHECK(contents(folder / "log") == json_text({.step = 1}) + "\n");
    log.write({.step = 2});
    CHECK(contents(folder / "log") == json_text({.step = 1}) + "\n" + json_text({.step = 2}) + "\n");
}

TEST_CASE("a new log starts empty, a resumed one goes on after what is there") {
    temporary_folder const folder;
    std::string const path = folder / "log";
    put_contents(path, "{\"step\":1}\n");
    json_log{path, log_start::append}.write({.step = 2});
    CHECK(contents(path) == "{\"step\":1}\n" + json_text({.step = 2}) + "\n");
    json_log{path, log_start::empty}.write({.step = 3});
    CHECK(contents(path) == json_text({.step = 3}) + "\n");
}

TEST_CASE("half a line that a killed run has left does not spoil the next") {
    temporary_folder const folder;
    std::string const path = folder / "log";
    put_contents(path, "{\"step\":1}\n{\"st");
    json_log{path, log_start::append}.write({.step = 2});
    CHECK(contents(path) == "{\"step\":1}\n{\"st\n" + json_text({.step = 2}) + "\n");
}

TEST_CASE("a log that cannot be written says so at once, or when the disk is full") {
    temporary_folder const folder;
    CHECK_THROWS_WITH((json_log{folder / "missing/log", log_start::empty}), says("missing/log"));
    CHECK_THROWS_WITH((json_log{folder.path(), log_start::append}), says("folder"));
    json_log full{"/dev/full", log_start::append};
    CHECK_THROWS_WITH(full.write({}), says("/dev/full") && says("no space is left"));
}
