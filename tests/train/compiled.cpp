// SPDX-License-Identifier: Apache-2.0
#include "train/compiled.hpp"

template class copipe::planned_trainer<>;
