// SPDX-License-Identifier: Apache-2.0
// Costs per stage, micro-batch and link, read from a JSON file.
#pragma once

#include "copipe/plan/cost_table.hpp"

#include <string>

/// Reads a file such as
///
///     {"forward": 1.0, "backward_input": [1.0, 1.2], "weight": 0.8, "overlap_factor": 0.7, "micro_batches": [1, 1, 2],
///      "message_bytes": 1e6, "latency": 0.01, "bandwidth": 1e8, "links": [{"from": 0, "to": 1, "bandwidth": 1e7}]}
///
/// Every key may be left out. A number stands for all stages, a list has one for each. Throws `usage_error`.
copipe::cost_table read_costs(std::string const& path, copipe::placement const& where, int micro_batches);

/// A whole text file; "-" is standard input. Throws `usage_error`.
std::string contents_of(std::string const& path);
