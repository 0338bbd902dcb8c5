// SPDX-License-Identifier: Apache-2.0
// The trainer with its defaults, compiled in compiled.cpp for all tests that include this.
#pragma once

#include "copipe/train/planned_trainer.hpp"

extern template class copipe::planned_trainer<>;
