// SPDX-License-Identifier: Apache-2.0
// Two translation units include everything: a definition in a header that is not inline fails to link.
#include <copipe/copipe.hpp>

std::size_t size_of_error_in_the_other_unit();

int main() { return size_of_error_in_the_other_unit() == sizeof(copipe::error) ? 0 : 1; }
