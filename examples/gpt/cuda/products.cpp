// SPDX-License-Identifier: Apache-2.0
// Matrix products on the GPU through cuBLASLt, and what is made of them.
#include "gpt/cuda/products.hpp"

#include "copipe/error.hpp"
#include "gpt/cuda/kernels.hpp"

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <type_traits>

namespace gpt::on_gpu {
namespace {

/// cuBLASLt refused; the sentence names its function and the sizes.
class cublas_error : public copipe::error {
public:
    using error::error;
};

void require(cublasStatus_t reported, char const* call, product const& p) {
    if (reported == CUBLAS_STATUS_SUCCESS) return;
    throw cublas_error(std::string(call) + " of a product " + std::to_string(p.m) + " x " + std::to_string(p.n) +
                       " x " + std::to_string(p.k) + ", batch of " + std::to_string(p.batches) +
                       ": cuBLASLt reports status " + std::to_string(static_cast<int>(reported)));
}

template <class Handle, cublasStatus_t (*Destroy)(Handle)>
struct destroyer {
    void operator()(Handle handle) const { Destroy(handle); }
};
template <class Handle, cublasStatus_t (*Destroy)(Handle)>
using owned = std::unique_ptr<std::remove_pointer_t<Handle>, destroyer<Handle, Destroy>>;
using operation = owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using layout = owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using preference = owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

auto layout_of(product const& p, cudaDataType_t type, operand const& x) -> layout {
    cublasLtMatrixLayout_t made = nullptr;
    require(cublasLtMatrixLayoutCreate(&made, type, static_cast<std::uint64_t>(x.rows),
                                       static_cast<std::uint64_t>(x.columns), x.lead),
            "cublasLtMatrixLayoutCreate", p);
    layout owner{made};
    std::int32_t const batches = x.batches;
    require(cublasLtMatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batches, sizeof batches),
            "the batch", p);
    require(cublasLtMatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &x.stride,
                                             sizeof x.stride),
            "the batch's stride", p);
    return owner;
}

template <class T>
void set(operation const& to, cublasLtMatmulDescAttributes_t attribute, T const& value, product const& p) {
    require(cublasLtMatmulDescSetAttribute(to.get(), attribute, &value, sizeof value),
            "cublasLtMatmulDescSetAttribute", p);
}

/// The largest power of two up to 256 that divides the address of each matrix of the batch.
auto alignment(void const* at, std::int64_t stride_bytes) -> std::uint32_t {
    auto const bits = reinterpret_cast<std::uintptr_t>(at) | static_cast<std::uintptr_t>(stride_bytes) | 256U;
    return static_cast<std::uint32_t>(bits & (~bits + 1));
}

/// One library handle serves all threads and streams.
auto library() -> cublasLtHandle_t {
    static cublasLtHandle_t const handle = [] {
        cublasLtHandle_t made = nullptr;
        require(cublasLtCreate(&made), "cublasLtCreate", {});
        return made;
    }();
    return handle;
}

/// A product with everything that cuBLASLt wants of it: of factors in 16 or 32 bits, as `on` says, summed in 32.
class call {
public:
    call(gpu const& on, product const& p, void const* a, void const* b, float const* bias, float* d)
        : on_(on), p_(p), a_(a), b_(b), bias_(bias), d_(d) {
        cublasLtMatmulDesc_t made = nullptr;
        require(cublasLtMatmulDescCreate(&made, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate", p);
        operation_.reset(made);
        set(operation_, CUBLASLT_MATMUL_DESC_TRANSA, p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N, p);
        set(operation_, CUBLASLT_MATMUL_DESC_TRANSB, p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N, p);
        if (bias) {
            set(operation_, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS, p);
            set(operation_, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias, p);
        }
        cudaDataType_t const factors = on.products == precision::bf16 ? CUDA_R_16BF : CUDA_R_32F;
        layout_a_ = layout_of(p, factors, operand_a(p));
        layout_b_ = layout_of(p, factors, operand_b(p));
        layout_d_ = layout_of(p, CUDA_R_32F, {p.m, p.n, p.lead_d, p.batches, p.stride_d});
    }

    void enqueue() const {
        cublasLtMatmulAlgo_t const how = algorithm();
        require(cublasLtMatmul(library(), operation_.get(), &p_.alpha, a_, layout_a_.get(), b_, layout_b_.get(),
                               &p_.beta, d_, layout_d_.get(), d_, layout_d_.get(), &how, on_.workspace,
                               on_.workspace_bytes, on_.stream),
                "cublasLtMatmul", p_);
    }

private:
    /// What cuBLASLt thinks best, asked once per thread and kind of product.
    [[nodiscard]] auto algorithm() const -> cublasLtMatmulAlgo_t {
        std::int64_t const bytes = on_.products == precision::bf16 ? 2 : 4;
        std::array<std::uint32_t, 3> const aligned{alignment(a_, bytes * p_.stride_a),
                                                   alignment(b_, bytes * p_.stride_b), alignment(d_, 4 * p_.stride_d)};
        std::array<std::int64_t, 19> const kind{
            p_.transpose_a, p_.transpose_b, p_.m,        p_.n,        p_.k,       p_.lead_a,  p_.lead_b,
            p_.lead_d,      p_.batches,     p_.stride_a, p_.stride_b, p_.stride_d, aligned[0], aligned[1],
            aligned[2],     p_.beta != 0,   bias_ != nullptr, on_.products == precision::bf16,
            static_cast<std::int64_t>(on_.workspace_bytes)};
        thread_local std::map<std::array<std::int64_t, 19>, cublasLtMatmulAlgo_t> known;
        auto const found = known.find(kind);
        if (found != known.end()) return found->second;
        return known.emplace(kind, best(aligned)).first->second;
    }
    [[nodiscard]] auto best(std::array<std::uint32_t, 3> const& aligned) const -> cublasLtMatmulAlgo_t {
        cublasLtMatmulPreference_t made = nullptr;
        require(cublasLtMatmulPreferenceCreate(&made), "cublasLtMatmulPreferenceCreate", p_);
        preference const wanted{made};
        auto const prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto const& value) {
            require(cublasLtMatmulPreferenceSetAttribute(made, attribute, &value, sizeof value),
                    "cublasLtMatmulPreferenceSetAttribute", p_);
        };
        prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, on_.workspace_bytes);
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, aligned[0]);
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, aligned[1]);
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, aligned[2]);
        prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, aligned[2]);
        cublasLtMatmulHeuristicResult_t result{};
        int count = 0;
        require(cublasLtMatmulAlgoGetHeuristic(library(), operation_.get(), layout_a_.get(), layout_b_.get(),
                                               layout_d_.get(), layout_d_.get(), made, 1, &result, &count),
                "cublasLtMatmulAlgoGetHeuristic", p_);
        if (count == 0) require(CUBLAS_STATUS_NOT_SUPPORTED, "cublasLtMatmulAlgoGetHeuristic", p_);
        return result.algo;
    }

    gpu const& on_;
    product const& p_;
    void const* a_;
    void const* b_;
    float const* bias_;
    float* d_;
    operation operation_{};
    layout layout_a_{}, layout_b_{}, layout_d_{};
};

/// In bf16 the factors are rounded first, into the beginning of the working memory; but for `a` if it is already.
void multiply(gpu const& on, product const& p, float const* a, float const* b, float* d, float const* bias = nullptr,
              std::uint16_t const* rounded_a = nullptr) {
    if (on.products == precision::f32) return call{on, p, a, b, bias, d}.enqueue();
    auto const needed = static_cast<std::size_t>(bytes_in_bf16(p));
    if (needed > on.workspace_bytes)
        throw cublas_error("a product in bf16 needs " + std::to_string(needed) + " bytes of working memory and got " +
                           std::to_string(on.workspace_bytes));
    auto* const memory = static_cast<std::uint16_t*>(on.workspace);
    std::uint16_t* const rounded_b = memory + bytes_in_bf16(operand_a(p)) / 2;
    if (!rounded_a) round_to_bf16(on, operand_a(p), a, memory);
    round_to_bf16(on, operand_b(p), b, rounded_b);
    gpu const rest{on.stream, on.products, memory + needed / 2, on.workspace_bytes - needed};
    call{rest, in_bf16(p), rounded_a ? rounded_a : memory, rounded_b, bias, d}.enqueue();
}

} // namespace

void linear_forward(gpu const& on, linear_shape s, float const* x, float const* weight, float const* bias, float* y) {
    multiply(on, product_of_linear(s), weight, x, y, bias, on.weight);
}
void linear_backward_input(gpu const& on, linear_shape s, float const* dy, float const* weight, float* dx) {
    multiply(on, product_of_linear_input(s), weight, dy, dx, nullptr, on.weight);
}
void linear_backward_weight(gpu const& on, linear_shape s, float const* x, float const* dy, float* dweight,
                            float* dbias) {
    multiply(on, product_of_linear_weight(s), x, dy, dweight);
    if (dbias) add_column_sums(on, s.rows, s.out, dy, dbias);
}

void attention_forward(gpu const& on, attention_shape s, float const* qkv, float* y, float* probabilities) {
    auto const packed = head_layout::packed(s), plain = head_layout::plain(s);
    std::ptrdiff_t const scores = std::ptrdiff_t{s.heads} * s.time * s.time;
    std::ptrdiff_t const rows = std::ptrdiff_t{s.time} * s.channels;
    for (int b = 0; b < s.batch; ++b)
        multiply(on, product_of_rows(s, packed, packed, score_scale(s)), qkv + 3 * b * rows + s.channels,
                 qkv + 3 * b * rows, probabilities + b * scores);
    causal_softmax(on, s.batch * s.heads * s.time, s.time, probabilities);
    for (int b = 0; b < s.batch; ++b)
        multiply(on, product_of_weights(s, packed, plain, false), qkv + 3 * b * rows + 2 * s.channels,
                 probabilities + b * scores, y + b * rows);
}

void attention_backward(gpu const& on, attention_shape s, float const* dy, float const* qkv,
                        float const* probabilities, float* dqkv, float* scratch) {
    auto const packed = head_layout::packed(s), plain = head_layout::plain(s);
    std::ptrdiff_t const rows = std::ptrdiff_t{s.time} * s.channels;
    for (int b = 0; b < s.batch; ++b) {
        float const* const q = qkv + 3 * b * rows;
        float const* const p = probabilities + std::ptrdiff_t{b} * s.heads * s.time * s.time;
        float const* const dresult = dy + b * rows;
        float* const dq = dqkv + 3 * b * rows;
        multiply(on, product_of_rows(s, plain, packed, 1), q + 2 * s.channels, dresult, scratch);
        multiply(on, product_of_weights(s, plain, packed, true), dresult, p, dq + 2 * s.channels);
        softmax_backward(on, s.heads * s.time, s.time, score_scale(s), p, scratch);
        multiply(on, product_of_weights(s, packed, packed, false), q + s.channels, scratch, dq);
        multiply(on, product_of_weights(s, packed, packed, true), q, scratch, dq + s.channels);
    }
}

} // namespace gpt::on_gpu
