// SPDX-License-Identifier: Apache-2.0
// The size of a GPT, and its layers in order.
#pragma once

#include "gpt/layers.hpp"

#include <string>
#include <utility>

namespace gpt {

/// The size of a GPT.
struct config {
    int blocks = 4;
    int width = 128;
    int heads = 4;
    int context = 64;
    int vocabulary = 256; ///< every byte a token
};

/// The layers of a GPT: the embedding, the blocks, the head. Throws config_error when a size is not positive or the
/// heads do not divide the width.
template <class Device = copipe::host_device>
[[nodiscard]] auto make_model(config const& of) -> copipe::model<Device> {
    for (auto const& [option, value] : {std::pair{"layers", of.blocks},
                                        {"width", of.width},
                                        {"heads", of.heads},
                                        {"context", of.context},
                                        {"vocabulary", of.vocabulary}}) {
        if (value < 1) throw config_error(option + (" must be at least 1, not " + std::to_string(value)));
    }
    if (of.width % of.heads != 0) {
        throw config_error("a width of " + std::to_string(of.width) + " does not divide into " +
                           std::to_string(of.heads) + " heads: choose a width that is a multiple of the heads");
    }
    copipe::model<Device> model;
    model.add(basic_embedding<Device>{of.vocabulary, of.context, of.width});
    for (int i = 0; i < of.blocks; ++i) model.add(basic_block<Device>{of.width, of.heads, of.blocks});
    model.add(basic_head<Device>{of.vocabulary, of.width});
    return model;
}

} // namespace gpt
