// SPDX-License-Identifier: Apache-2.0
#include <copipe/copipe.hpp>

std::size_t size_of_error_in_the_other_unit();

std::size_t size_of_error_in_the_other_unit() { return sizeof(copipe::error); }
