// SPDX-License-Identifier: Apache-2.0
// copipe experts: places the experts of a mixture-of-experts model on GPUs, from a file of loads.
#pragma once

#include <string>

namespace command {

struct experts_options {
    std::string file, policy = "published", format = "text";
};

/// Throws copipe::error, naming the place in the file.
void print_experts(experts_options const& options);

} // namespace command
