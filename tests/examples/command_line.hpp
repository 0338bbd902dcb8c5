// SPDX-License-Identifier: Apache-2.0
// Runs a subcommand of the copipe program within the test, and keeps what it prints.
#pragma once

#include <CLI/CLI.hpp>

#include <iostream>
#include <sstream>
#include <string>
#include <vector>

struct command_outcome {
    int status;
    std::string out, err;
};

/// `add` adds the subcommand; `arguments` begin with its name.
inline command_outcome run_command(void (*add)(CLI::App&), std::vector<std::string> arguments) {
    std::ostringstream out, err;
    auto* const cout = std::cout.rdbuf(out.rdbuf());
    auto* const cerr = std::cerr.rdbuf(err.rdbuf());
    CLI::App app{"copipe"};
    add(app);
    int status = 0;
    try {
        app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
    } catch (CLI::ParseError const& ended) {
        status = app.exit(ended, out, err);
    }
    std::cout.rdbuf(cout);
    std::cerr.rdbuf(cerr);
    return {status, out.str(), err.str()};
}
