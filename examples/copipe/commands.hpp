// SPDX-License-Identifier: Apache-2.0
// What the command `copipe` does. Each function prints to standard output and returns the exit code.
#pragma once

#include "options.hpp"

int print_schedule(options const& asked);
int check_file(options const& asked);
int simulate_step(options const& asked);
int compare_policies(options const& asked);
