// SPDX-License-Identifier: Apache-2.0
// copipe partition: cuts models into pipeline stages, from a file of costs; or explains a layout string.
#pragma once

#include <string>

namespace command {

struct partition_options {
    std::string file, layout, format = "text";
};

/// Throws copipe::error, naming the place in the file.
void print_partitions(partition_options const& options);
/// Throws copipe::error, naming the column.
void print_layout(partition_options const& options);

} // namespace command
