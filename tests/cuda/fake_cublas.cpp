// SPDX-License-Identifier: Apache-2.0
#include "cuda/fake_cublas.hpp"

#include <cublasLt.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <utility>

namespace {

struct description {
    cublasComputeType_t compute;
    cudaDataType_t scale;
    cublasOperation_t transpose_a = CUBLAS_OP_N, transpose_b = CUBLAS_OP_N;
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    float const* bias = nullptr;
};
struct layout {
    cudaDataType_t type;
    std::uint64_t rows, columns;
    std::int64_t lead;
    std::int32_t batches = 1;
    std::int64_t stride = 0;

    [[nodiscard]] auto bytes() const -> std::int64_t { return type == CUDA_R_16BF ? 2 : 4; }
};
struct preference {
    std::size_t workspace = 0;
    std::uint32_t a = 256, b = 256;
};

template <class T>
auto as(void* handle) -> T& {
    return *static_cast<T*>(handle);
}
template <class T>
auto copy_to(T& value, void const* from, std::size_t bytes) -> cublasStatus_t {
    if (bytes != sizeof value) return CUBLAS_STATUS_INVALID_VALUE;
    std::memcpy(&value, from, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

/// A matrix whose elements are read by row and column, transposed or not.
struct reader {
    std::byte const* data;
    layout shape;
    bool transposed;

    [[nodiscard]] auto operator()(std::int64_t batch, std::uint64_t row, std::uint64_t column) const -> float {
        if (transposed) std::swap(row, column);
        auto const at = batch * shape.stride + static_cast<std::int64_t>(column) * shape.lead;
        auto const* const from = data + (at + static_cast<std::int64_t>(row)) * shape.bytes();
        if (shape.type == CUDA_R_32F) {
            float value = 0;
            std::memcpy(&value, from, sizeof value);
            return value;
        }
        std::uint16_t upper = 0;
        std::memcpy(&upper, from, sizeof upper);
        return std::bit_cast<float>(std::uint32_t{upper} << 16U);
    }
    [[nodiscard]] auto rows() const -> std::uint64_t { return transposed ? shape.columns : shape.rows; }
    [[nodiscard]] auto columns() const -> std::uint64_t { return transposed ? shape.rows : shape.columns; }
};

/// Whether a factor, aligned like that, is as tensor cores want it.
auto takes(layout const& x, std::uintptr_t address) -> bool {
    if (x.type == CUDA_R_32F) return address % 4 == 0;
    return x.type == CUDA_R_16BF && address % 16 == 0 && x.lead % 8 == 0 && x.stride % 8 == 0;
}
auto takes(description const& what, layout const& a, layout const& b, layout const& d) -> bool {
    reader const left{nullptr, a, what.transpose_a == CUBLAS_OP_T}, right{nullptr, b, what.transpose_b == CUBLAS_OP_T};
    bool const types = what.compute == CUBLAS_COMPUTE_32F && what.scale == CUDA_R_32F && a.type == b.type &&
                       d.type == CUDA_R_32F;
    bool const sizes = left.rows() == d.rows && right.columns() == d.columns && left.columns() == right.rows() &&
                       a.batches == b.batches && a.batches == d.batches;
    bool fit = true;
    for (layout const& each : {a, b, d}) fit = fit && each.lead >= static_cast<std::int64_t>(each.rows);
    return types && sizes && fit;
}

std::mutex mutex;
std::vector<fake::product_call> enqueued;
constexpr std::uint64_t chosen = 0x636f7069;

} // namespace

auto fake::take_products() -> std::vector<product_call> {
    std::scoped_lock const lock{mutex};
    return std::exchange(enqueued, {});
}

auto cublasLtCreate(cublasLtHandle_t* handle) -> cublasStatus_t {
    static int one = 0;
    *handle = reinterpret_cast<cublasLtHandle_t>(&one);
    return CUBLAS_STATUS_SUCCESS;
}

auto cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* made, cublasComputeType_t compute, cudaDataType_t scale)
    -> cublasStatus_t {
    *made = reinterpret_cast<cublasLtMatmulDesc_t>(new description{.compute = compute, .scale = scale});
    return CUBLAS_STATUS_SUCCESS;
}
auto cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t which) -> cublasStatus_t {
    delete &as<description>(which);
    return CUBLAS_STATUS_SUCCESS;
}
auto cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t of, cublasLtMatmulDescAttributes_t which, void const* from,
                                    std::size_t bytes) -> cublasStatus_t {
    auto& to = as<description>(of);
    switch (which) {
    case CUBLASLT_MATMUL_DESC_TRANSA: return copy_to(to.transpose_a, from, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB: return copy_to(to.transpose_b, from, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE: return copy_to(to.epilogue, from, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return copy_to(to.bias, from, bytes);
    default: return CUBLAS_STATUS_INVALID_VALUE;
    }
}

auto cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* made, cudaDataType type, std::uint64_t rows,
                                std::uint64_t columns, std::int64_t lead) -> cublasStatus_t {
    *made = reinterpret_cast<cublasLtMatrixLayout_t>(
        new layout{.type = type, .rows = rows, .columns = columns, .lead = lead});
    return CUBLAS_STATUS_SUCCESS;
}
auto cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t which) -> cublasStatus_t {
    delete &as<layout>(which);
    return CUBLAS_STATUS_SUCCESS;
}
auto cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t of, cublasLtMatrixLayoutAttribute_t which,
                                      void const* from, std::size_t bytes) -> cublasStatus_t {
    auto& to = as<layout>(of);
    switch (which) {
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT: return copy_to(to.batches, from, bytes);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET: return copy_to(to.stride, from, bytes);
    default: return CUBLAS_STATUS_INVALID_VALUE;
    }
}

auto cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* made) -> cublasStatus_t {
    *made = reinterpret_cast<cublasLtMatmulPreference_t>(new preference);
    return CUBLAS_STATUS_SUCCESS;
}
auto cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t which) -> cublasStatus_t {
    delete &as<preference>(which);
    return CUBLAS_STATUS_SUCCESS;
}
auto cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t of, cublasLtMatmulPreferenceAttributes_t which,
                                          void const* from, std::size_t bytes) -> cublasStatus_t {
    auto& to = as<preference>(of);
    std::uint32_t ignored = 0;
    switch (which) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: return copy_to(to.workspace, from, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES: return copy_to(to.a, from, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES: return copy_to(to.b, from, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES: return copy_to(ignored, from, bytes);
    default: return CUBLAS_STATUS_INVALID_VALUE;
    }
}
auto cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t what, cublasLtMatrixLayout_t a,
                                    cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t d,
                                    cublasLtMatmulPreference_t wanted, int, cublasLtMatmulHeuristicResult_t results[],
                                    int* count) -> cublasStatus_t {
    auto const& aligned = as<preference>(wanted);
    bool const good = takes(as<description>(what), as<layout>(a), as<layout>(b), as<layout>(d)) &&
                      takes(as<layout>(a), aligned.a) && takes(as<layout>(b), aligned.b);
    *count = good ? 1 : 0;
    if (!good) return CUBLAS_STATUS_NOT_SUPPORTED;
    results[0].algo.data[0] = chosen;
    results[0].workspaceSize = aligned.workspace;
    return CUBLAS_STATUS_SUCCESS;
}

auto cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t handle, void const* alpha, void const* a,
                    cublasLtMatrixLayout_t layout_a, void const* b, cublasLtMatrixLayout_t layout_b, void const* beta,
                    void const* c, cublasLtMatrixLayout_t layout_c, void* d, cublasLtMatrixLayout_t layout_d,
                    cublasLtMatmulAlgo_t const* how, void*, std::size_t workspace, cudaStream_t stream)
    -> cublasStatus_t {
    auto const what = as<description>(handle);
    auto const to = as<layout>(layout_d);
    reader const left{static_cast<std::byte const*>(a), as<layout>(layout_a), what.transpose_a == CUBLAS_OP_T};
    reader const right{static_cast<std::byte const*>(b), as<layout>(layout_b), what.transpose_b == CUBLAS_OP_T};
    if (!takes(what, left.shape, right.shape, to) || !takes(left.shape, reinterpret_cast<std::uintptr_t>(a)) ||
        !takes(right.shape, reinterpret_cast<std::uintptr_t>(b)) || c != d || layout_c != layout_d ||
        how->data[0] != chosen || (what.epilogue == CUBLASLT_EPILOGUE_BIAS) != (what.bias != nullptr))
        return CUBLAS_STATUS_INVALID_VALUE;
    {
        std::scoped_lock const lock{mutex};
        enqueued.push_back({left.shape.type, workspace});
    }
    float const scale = *static_cast<float const*>(alpha), kept = *static_cast<float const*>(beta);
    fake::launch(stream, "product", 0, [=] {
        for (std::int64_t batch = 0; batch < to.batches; ++batch) {
            for (std::uint64_t j = 0; j < to.columns; ++j) {
                for (std::uint64_t i = 0; i < to.rows; ++i) {
                    double sum = 0;
                    for (std::uint64_t l = 0; l < left.columns(); ++l)
                        sum += static_cast<double>(left(batch, i, l)) * static_cast<double>(right(batch, l, j));
                    auto const at = batch * to.stride + static_cast<std::int64_t>(j) * to.lead;
                    float& result = static_cast<float*>(d)[at + static_cast<std::int64_t>(i)];
                    result = scale * static_cast<float>(sum) + (kept == 0 ? 0 : kept * result) +
                             (what.bias ? what.bias[i] : 0);
                }
            }
        }
    });
    return CUBLAS_STATUS_SUCCESS;
}
