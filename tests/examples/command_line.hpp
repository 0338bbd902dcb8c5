// SPDX-License-Identifier: Apache-2.0
// Runs the program copipe.
#pragma once

#include "program.hpp"

inline outcome run_copipe(std::vector<std::string> arguments) {
    return program{COPIPE_COMMAND, std::move(arguments)}.end();
}
