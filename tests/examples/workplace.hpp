// SPDX-License-Identifier: Apache-2.0
// A folder with a text to learn, in which train_gpt is run on a model small enough to train in a moment.
#pragma once

#include "catch.hpp"

#include "program.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

using words = std::vector<std::string>;

/// Nine layers, enough for the eight stages of DualPipeV on four ranks.
inline words const small{"--layers",  "7",  "--width",            "16", "--heads",         "2",
                         "--context", "16", "--micro-batch-size", "2",  "--micro-batches", "8",
                         "--eval-every", "0", "--sample", "0"};

inline words operator+(words a, words const& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
}

class workplace {
public:
    /// `command`: the program, after variables of its environment.
    explicit workplace(words command = {TRAIN_GPT}) : command_(std::move(command)) {
        std::string text;
        for (int i = 0; i < 400; ++i) text += "line " + std::to_string(i * i % 97) + " of a text;\n";
        put_contents(folder_ / "text", text);
    }

    /// With these variables of the environment.
    [[nodiscard]] auto start(words const& arguments, words const& variables = {}) const -> program {
        bool const own_data = std::find(arguments.begin(), arguments.end(), "--data") != arguments.end();
        words const data = own_data ? words{} : words{"--data", "text"};
        return program{"/usr/bin/env", variables + command_ + small + data + arguments, folder_.path()};
    }
    [[nodiscard]] auto run(words const& arguments) const -> outcome { return start(arguments).end(); }
    /// As a launcher starts one of several processes.
    [[nodiscard]] auto start_rank(int rank, int size, int port, words const& arguments, words const& more = {}) const
        -> program {
        return start(arguments, words{"RANK=" + std::to_string(rank), "WORLD_SIZE=" + std::to_string(size),
                                      "MASTER_ADDR=127.0.0.1", "MASTER_PORT=" + std::to_string(port)} + more);
    }

    /// Runs, and reads the log.
    [[nodiscard]] auto losses(words const& arguments) const -> std::vector<double> {
        outcome const ended = run(arguments + words{"--log", "log"});
        INFO(ended.err);
        REQUIRE(ended.code == 0);
        return logged("log");
    }
    /// The losses of a log, whose steps count on from 1.
    [[nodiscard]] auto logged(std::string const& name) const -> std::vector<double> {
        std::vector<double> found;
        std::ifstream lines{folder_ / name};
        for (std::string line; std::getline(lines, line);) {
            auto const step = nlohmann::json::parse(line);
            REQUIRE(step.at("step") == found.size() + 1);
            found.push_back(step.at("loss"));
        }
        return found;
    }
    [[nodiscard]] auto operator/(std::string const& name) const -> std::string { return folder_ / name; }
    [[nodiscard]] auto files() const { return folder_.entries(); }

private:
    words command_;
    temporary_folder folder_{};
};

inline words under(std::string const& policy, int ranks) {
    return {"--policy", policy, "--ranks", std::to_string(ranks)};
}

/// Bad input: exit code 2, one line that says all of `sentence`.
inline void require_refused(outcome const& ended, std::string const& sentence) {
    INFO(ended.out << ended.err);
    CHECK(ended.code == 2);
    CHECK(std::count(ended.err.begin(), ended.err.end(), '\n') == 1);
    CHECK(ended.err.find(sentence) != std::string::npos);
}
