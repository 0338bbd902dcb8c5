// SPDX-License-Identifier: Apache-2.0
// AdamW, the norm of gradients and the job that probes a GPU, on CUDA streams: what a trainer needs beside the device.
// Include it before a trainer of cuda_device is made.
#pragma once

#include "copipe/device/cuda.hpp"
#include "copipe/train/adamw.hpp"
#include "copipe/train/fingerprint.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace copipe {

/// partial[block] = the sum of the squares of x[i] over the block's strides, in 64 bits.
inline constexpr cuda_kernel cuda_square_sums{.name = "copipe_square_sums", .ptx = R"(
.visible .entry copipe_square_sums(.param .u64 partial, .param .u64 x, .param .u64 count)
{
    .reg .pred %end;
    .reg .b32 %block, %thread, %grid, %half, %own, %other;
    .reg .b64 %i, %n, %step, %to, %from, %a;
    .reg .f32 %value;
    .reg .f64 %sum, %addend;
    .shared .align 8 .b8 sums[2048];
    ld.param.u64 %to, [partial];
    ld.param.u64 %from, [x];
    ld.param.u64 %n, [count];
    cvta.to.global.u64 %to, %to;
    cvta.to.global.u64 %from, %from;
    mov.u32 %block, %ctaid.x;
    mov.u32 %thread, %tid.x;
    mov.u32 %grid, %nctaid.x;
    mov.f64 %sum, 0d0000000000000000;
    cvt.u64.u32 %i, %thread;
    mul.wide.u32 %step, %block, 256;
    add.u64 %i, %i, %step;
    mul.wide.u32 %step, %grid, 256;
next:
    setp.ge.u64 %end, %i, %n;
    @%end bra added;
    shl.b64 %a, %i, 2;
    add.u64 %a, %from, %a;
    ld.global.f32 %value, [%a];
    cvt.f64.f32 %addend, %value;
    fma.rn.f64 %sum, %addend, %addend, %sum;
    add.u64 %i, %i, %step;
    bra next;
added:
    mov.u32 %own, sums;
    shl.b32 %other, %thread, 3;
    add.u32 %own, %own, %other;
    st.shared.f64 [%own], %sum;
    mov.u32 %half, 128;
fold:
    bar.sync 0;
    setp.ge.u32 %end, %thread, %half;
    @%end bra folded;
    shl.b32 %other, %half, 3;
    add.u32 %other, %own, %other;
    ld.shared.f64 %sum, [%own];
    ld.shared.f64 %addend, [%other];
    add.rn.f64 %sum, %sum, %addend;
    st.shared.f64 [%own], %sum;
folded:
    shr.u32 %half, %half, 1;
    setp.ne.u32 %end, %half, 0;
    @%end bra fold;
    setp.ne.u32 %end, %thread, 0;
    @%end bra done;
    ld.shared.f64 %sum, [%own];
    mul.wide.u32 %a, %block, 8;
    add.u64 %a, %to, %a;
    st.global.f64 [%a], %sum;
done:
    ret;
}
)"};

/// *total = partial[0] + partial[1] + ..., one after the other. For one block.
inline constexpr cuda_kernel cuda_total{.name = "copipe_total", .ptx = R"(
.visible .entry copipe_total(.param .u64 total, .param .u64 partial, .param .u32 count)
{
    .reg .pred %end;
    .reg .b32 %i, %n;
    .reg .b64 %to, %from;
    .reg .f64 %sum, %addend;
    ld.param.u64 %to, [total];
    ld.param.u64 %from, [partial];
    ld.param.u32 %n, [count];
    cvta.to.global.u64 %to, %to;
    cvta.to.global.u64 %from, %from;
    mov.u32 %i, %tid.x;
    setp.ne.u32 %end, %i, 0;
    @%end bra done;
    mov.f64 %sum, 0d0000000000000000;
next:
    setp.ge.u32 %end, %i, %n;
    @%end bra added;
    ld.global.f64 %addend, [%from];
    add.rn.f64 %sum, %sum, %addend;
    add.u64 %from, %from, 8;
    add.u32 %i, %i, 1;
    bra next;
added:
    st.global.f64 [%to], %sum;
done:
    ret;
}
)"};

/// The update of adamw_update for host streams, operation by operation. The parameter is an adamw_arguments.
inline constexpr cuda_kernel cuda_adamw{.name = "copipe_adamw", .ptx = R"(
.visible .entry copipe_adamw(.param .align 8 .b8 with[80])
{
    .reg .pred %end;
    .reg .b32 %block, %size, %thread, %grid;
    .reg .b64 %i, %n, %step, %value, %gradient, %mean, %square, %at, %a;
    .reg .f32 %scale, %kept, %beta1, %rest1, %beta2, %rest2, %step_size, %root_size, %epsilon;
    .reg .f32 %g, %m, %s, %x, %y;
    ld.param.u64 %value, [with];
    ld.param.u64 %gradient, [with+8];
    ld.param.u64 %mean, [with+16];
    ld.param.u64 %square, [with+24];
    ld.param.u64 %n, [with+32];
    ld.param.f32 %scale, [with+40];
    ld.param.f32 %kept, [with+44];
    ld.param.f32 %beta1, [with+48];
    ld.param.f32 %rest1, [with+52];
    ld.param.f32 %beta2, [with+56];
    ld.param.f32 %rest2, [with+60];
    ld.param.f32 %step_size, [with+64];
    ld.param.f32 %root_size, [with+68];
    ld.param.f32 %epsilon, [with+72];
    cvta.to.global.u64 %value, %value;
    cvta.to.global.u64 %gradient, %gradient;
    cvta.to.global.u64 %mean, %mean;
    cvta.to.global.u64 %square, %square;
    mov.u32 %block, %ctaid.x;
    mov.u32 %size, %ntid.x;
    mov.u32 %thread, %tid.x;
    mov.u32 %grid, %nctaid.x;
    cvt.u64.u32 %i, %thread;
    mul.wide.u32 %step, %block, %size;
    add.u64 %i, %i, %step;
    mul.wide.u32 %step, %grid, %size;
next:
    setp.ge.u64 %end, %i, %n;
    @%end bra done;
    shl.b64 %at, %i, 2;
    add.u64 %a, %gradient, %at;
    ld.global.f32 %g, [%a];
    mul.rn.f32 %g, %g, %scale;
    add.u64 %a, %mean, %at;
    ld.global.f32 %m, [%a];
    mul.rn.f32 %m, %beta1, %m;
    mul.rn.f32 %x, %rest1, %g;
    add.rn.f32 %m, %m, %x;
    st.global.f32 [%a], %m;
    add.u64 %a, %square, %at;
    ld.global.f32 %s, [%a];
    mul.rn.f32 %s, %beta2, %s;
    mul.rn.f32 %x, %g, %g;
    mul.rn.f32 %x, %rest2, %x;
    add.rn.f32 %s, %s, %x;
    st.global.f32 [%a], %s;
    sqrt.rn.f32 %y, %s;
    mul.rn.f32 %y, %y, %root_size;
    add.rn.f32 %y, %y, %epsilon;
    mul.rn.f32 %x, %step_size, %m;
    div.rn.f32 %x, %x, %y;
    add.u64 %a, %value, %at;
    ld.global.f32 %y, [%a];
    mul.rn.f32 %y, %y, %kept;
    sub.rn.f32 %y, %y, %x;
    st.global.f32 [%a], %y;
    add.u64 %i, %i, %step;
    bra next;
done:
    ret;
}
)"};
static_assert(offsetof(adamw_arguments, count) == 32 && offsetof(adamw_arguments, gradient_scale) == 40 &&
                  offsetof(adamw_arguments, epsilon) == 72 && sizeof(adamw_arguments) == 80,
              "the kernel reads its parameters by their offsets");

/// c = a b, square matrices of `size` rows, one after the other in `abc`; a thread for each element of c.
inline constexpr cuda_kernel cuda_product{.name = "copipe_product", .ptx = R"(
.visible .entry copipe_product(.param .u64 abc, .param .u32 size)
{
    .reg .pred %end;
    .reg .b32 %block, %threads, %thread, %grid, %n, %all, %i, %step, %row, %column, %k;
    .reg .b64 %a, %b, %c, %bytes, %left, %right, %to;
    .reg .f32 %x, %y, %sum;
    ld.param.u64 %a, [abc];
    ld.param.u32 %n, [size];
    cvta.to.global.u64 %a, %a;
    mul.lo.u32 %all, %n, %n;
    mul.wide.u32 %bytes, %all, 4;
    add.u64 %b, %a, %bytes;
    add.u64 %c, %b, %bytes;
    mul.wide.u32 %bytes, %n, 4;
    mov.u32 %block, %ctaid.x;
    mov.u32 %threads, %ntid.x;
    mov.u32 %thread, %tid.x;
    mov.u32 %grid, %nctaid.x;
    mad.lo.u32 %i, %block, %threads, %thread;
    mul.lo.u32 %step, %grid, %threads;
next:
    setp.ge.u32 %end, %i, %all;
    @%end bra done;
    div.u32 %row, %i, %n;
    rem.u32 %column, %i, %n;
    mul.lo.u32 %row, %row, %n;
    mul.wide.u32 %left, %row, 4;
    add.u64 %left, %a, %left;
    mul.wide.u32 %right, %column, 4;
    add.u64 %right, %b, %right;
    mov.f32 %sum, 0f00000000;
    mov.u32 %k, 0;
along:
    setp.ge.u32 %end, %k, %n;
    @%end bra summed;
    ld.global.f32 %x, [%left];
    ld.global.f32 %y, [%right];
    fma.rn.f32 %sum, %x, %y, %sum;
    add.u64 %left, %left, 4;
    add.u64 %right, %right, %bytes;
    add.u32 %k, %k, 1;
    bra along;
summed:
    mul.wide.u32 %to, %i, 4;
    add.u64 %to, %c, %to;
    st.global.f32 [%to], %sum;
    add.u32 %i, %i, %step;
    bra next;
done:
    ret;
}
)"};

inline void adamw_update(cuda_stream& stream, adamw_arguments const& with) {
    if (with.count != 0) stream.launch(cuda_adamw, cuda_kernel::blocks(with.count), with);
}

/// In two kernels, on 256 blocks or fewer; the order depends on the number of elements alone.
inline void square_sum(cuda_stream& stream, parameter const& p, double* out) {
    unsigned const blocks = std::min(cuda_kernel::blocks(p.count()), 256U);
    tensor const partial{*stream.memory(), {2 * (std::int64_t{blocks} + 1)}}; // of 64-bit numbers, the total last
    auto* const sums = partial.data<double>();
    stream.launch(cuda_square_sums, blocks, sums, p.gradient.data(), std::uint64_t{p.count()});
    stream.launch(cuda_total, 1, sums + blocks, static_cast<double const*>(sums), blocks);
    stream.copy(out, sums + blocks, sizeof *out);
}

/// See probe_product for host streams. Plain arithmetic, no tensor cores: it tells how fast a GPU is beside others.
inline void probe_product(cuda_stream& stream, float* abc, int size) {
    auto const n = static_cast<std::uint32_t>(size);
    stream.launch(cuda_product, cuda_kernel::blocks(std::size_t{n} * n), abc, n);
}

static_assert(optimizer<adamw, cuda_stream> && probed_stream<cuda_stream>);

} // namespace copipe
