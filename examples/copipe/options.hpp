// SPDX-License-Identifier: Apache-2.0
// What the command line of `copipe` asks for.
#pragma once

#include "copipe/error.hpp"
#include "copipe/schedule/costs.hpp"
#include "copipe/schedule/placement.hpp"
#include "copipe/schedule/shape.hpp"

#include <optional>
#include <string>

/// Bad input; `what()` is one line.
class usage_error : public copipe::error {
public:
    using error::error;
};

struct options {
    std::string command; ///< empty: it has run already
    std::string policy;
    std::string file; ///< a schedule's; "-" is standard input
    copipe::shape size{0, 0};
    std::optional<int> chunks;
    copipe::uniform_costs costs;
    std::string cost_file;
    std::optional<copipe::layout> placement;
    std::string format;
};

/// Reads the command line; `partition` and `experts` run at once. Throws `copipe::error`; for --help it prints the help
/// and returns nothing.
std::optional<options> read_options(int count, char** arguments);
