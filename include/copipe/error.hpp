// SPDX-License-Identifier: Apache-2.0
// The root of every exception copipe throws. Each room derives its own types beside the code that throws them.
#pragma once

#include <stdexcept>
#include <string>

namespace copipe {

/// Base of all copipe exceptions. `what()` is one sentence that names what is at fault (rank, stage, micro-batch, file
/// or option) and what to do about it; derived types carry the same facts as members.
class error : public std::runtime_error {
public:
    explicit error(std::string const& sentence) : std::runtime_error(sentence) {}
};

} // namespace copipe
