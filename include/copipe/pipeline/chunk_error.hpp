// SPDX-License-Identifier: Apache-2.0
// What the engine throws: a chunk failed, or the model contradicts itself.
#pragma once

#include "copipe/error.hpp"
#include "copipe/schedule/action.hpp"
#include "copipe/schedule/span.hpp"

#include <exception>
#include <string>
#include <utility>

namespace copipe {

/// A chunk failed: an exception from a layer, from the dataset, or from work that a layer had launched.
class chunk_error : public error {
public:
    chunk_error(int at_rank, chunk const& failed, int step_micro_batch, int in_layer, std::exception_ptr why,
                std::string const& reason)
        : error("rank " + std::to_string(at_rank) + ", stage " + std::to_string(failed.stage) + ", micro-batch " +
                std::to_string(step_micro_batch) + ", " + std::string(name(kind_of(failed.what))) +
                (in_layer < 0 ? "" : " of layer " + std::to_string(in_layer)) + ": " + reason),
          rank(at_rank),
          what_failed(failed),
          micro_batch(step_micro_batch),
          layer(in_layer),
          cause(std::move(why)) {}

    int rank;
    chunk what_failed;
    int micro_batch; ///< numbered within the step, over both directions
    int layer;       ///< of the model; -1 if it was none, or work that had been launched before
    std::exception_ptr cause;
};

/// The model contradicts itself: two parameters of a layer share a name, tied ones differ in size, a layer returns no
/// tensor.
class model_error : public error {
public:
    using error::error;
};

} // namespace copipe
