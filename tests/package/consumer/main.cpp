// SPDX-License-Identifier: Apache-2.0
#include <copipe/error.hpp>
#include <copipe/schedule/dualpipe.hpp>

#include <string>

int main() {
    static_assert(copipe::dualpipe::name == "dualpipe");
    try {
        throw copipe::error("rank 0: thrown to be caught.");
    } catch (copipe::error const& caught) {
        return std::string(caught.what()) == "rank 0: thrown to be caught." ? 0 : 1;
    }
}
