// SPDX-License-Identifier: Apache-2.0
// cuBLASLt without a GPU: the functions that the GPT calls, with cuBLASLt's signatures, on the streams of the fake CUDA
// runtime. Products are multiplied out; what tensor cores would not take fast, or cuBLASLt not at all, is refused.
#pragma once

#include "cuda/fake_cuda.hpp"

#include <library_types.h>

#include <cstddef>
#include <vector>

namespace fake {

/// A product that was enqueued: the type of its factors, and how many bytes it could work in.
struct product_call {
    cudaDataType_t factors;
    std::size_t workspace;
};
/// Those since the last call.
[[nodiscard]] auto take_products() -> std::vector<product_call>;

} // namespace fake
