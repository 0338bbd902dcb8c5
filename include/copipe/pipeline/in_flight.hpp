// SPDX-License-Identifier: Apache-2.0
// What the engine holds of micro-batches and actions on their way through a rank.
#pragma once

#include "copipe/async/wait_queue.hpp"
#include "copipe/model/stage.hpp"
#include "copipe/model/tensor.hpp"
#include "copipe/pipeline/dataset.hpp"
#include "copipe/schedule/action.hpp"
#include "copipe/transport/transport.hpp"

#include <array>
#include <utility>
#include <vector>

namespace copipe {

/// What a chunk gets from a neighbouring stage.
template <device Device>
struct chunk_input {
    one_shot_event handed_over{};
    tensor value{};
    transfer<Device> moved{}; ///< if it came from another rank

    void clear() {
        handed_over.reset();
        value = {};
        moved = {};
    }
};

/// The place of one micro-batch in one stage, which takes it over from an earlier one.
template <device Device>
struct micro_batch_slot {
    chunk_input<Device> input{};
    chunk_input<Device> gradient{};
    std::pair<host_array, host_array> sample{}; ///< input and target, of a first or last stage

    void clear() {
        input.clear();
        gradient.clear();
    }
};

/// One of a rank's stages, with its micro-batches.
template <device Device>
struct local_stage {
    int number;
    stage<Device> layers;
    std::vector<micro_batch_slot<Device>> slots;
    std::vector<float> losses; ///< by micro-batch, of a last stage
};

/// A chunk between its action's issue and retirement.
template <device Device>
struct chunk_in_flight {
    using event = typename Device::event;

    local_stage<Device>* home = nullptr;
    micro_batch_slot<Device>* place = nullptr;
    chunk_input<Device>* from = nullptr; ///< what it takes from a neighbouring stage, ...
    bool awaits = false;                 ///< ... if it takes anything
    event start{};
    event end{};
    tensor output{};
    std::vector<event> marks{}; ///< between layers, on steps that time them

    void clear() {
        awaits = false;
        start = {};
        end = {};
        output = {};
        marks.clear();
    }
};

template <device Device>
struct action_in_flight {
    action what{chunk{}};
    std::array<chunk_in_flight<Device>, 2> halves{}; ///< the second one of an overlapped pair alone
    bool held_by_window = false;                     ///< could not begin before an older one had ended
};

} // namespace copipe
