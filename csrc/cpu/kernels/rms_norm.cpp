// SPDX-License-Identifier: Apache-2.0
// rms_norm.cpp: out = x / sqrt(mean(x^2) + eps) * weight (+ out), with residual += x first where there is one
//
//   x, residual, out   [num_tokens, num_heads, hidden]   f32, f16, bf16
//   weight             [hidden]                          f32
//   quantized          out as quantize_rows writes it    may be null; f32 with num_heads 1
//
// Work     each worker takes a contiguous range of (token, head) rows
// Sums     four f32 vectors of squares, in an order fixed by hidden alone; a residual's sum is rounded to its dtype
//          before it is squared
// Traffic  x, residual and out once each: a row stays in L1 between its two passes
// Bound    memory
// Source   Zhang & Sennrich 2019
// Oracle   pagedserve/backends/reference/: rms_norm
#include "../kernels.h"
#include "quantize_row.h"
#include "simd.h"

namespace pagedserve::cpu {
namespace {

template <class T>
void add_row(const T* x, T* residual, int hidden) {
  for (int i = 0; i < hidden; i += kLanes) {
    const int n = smaller(hidden - i, kLanes);
    store(residual + i, load(residual + i, n) + load(x + i, n), n);
  }
}

template <class T>
float sum_of_squares(const T* x, int hidden) {
  constexpr int kChains = 4;
  Vec sums[kChains] = {zero(), zero(), zero(), zero()};
  int i = 0;
  for (; i + kChains * kLanes <= hidden; i += kChains * kLanes) {
    for (int chain = 0; chain < kChains; ++chain) {
      const Vec v = load(x + i + chain * kLanes);
      sums[chain] = fma(v, v, sums[chain]);
    }
  }
  for (; i < hidden; i += kLanes) {
    const Vec v = load(x + i, smaller(hidden - i, kLanes));
    sums[0] = fma(v, v, sums[0]);
  }
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <class T>
void norm_row(const RmsNormParams& p, const T* x, T* out) {
  const float mean = sum_of_squares(x, p.hidden) / static_cast<float>(p.hidden);
  const Vec scale = splat(1.f / __builtin_sqrtf(mean + p.eps));
  for (int i = 0; i < p.hidden; i += kLanes) {
    const int n = smaller(p.hidden - i, kLanes);
    Vec v = load(x + i, n) * scale * load(p.weight + i, n);
    if (p.accumulate) v += load(out + i, n);
    store(out + i, v, n);
  }
}

}  // namespace

template <>
void Kernels<kIsa>::rms_norm(const RmsNormParams& p, Worker& worker) {
  const Range rows = worker.share(p.num_tokens * p.num_heads);
  with_float_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const int64_t token = row / p.num_heads, head = row % p.num_heads;
      const T* x = static_cast<const T*>(p.x) + token * p.x_token_stride + head * p.x_head_stride;
      T* out = static_cast<T*>(p.out) + token * p.out_token_stride + head * p.out_head_stride;
      if (p.residual != nullptr) {
        T* residual = static_cast<T*>(p.residual) + token * p.residual_token_stride + head * p.x_head_stride;
        add_row(x, residual, p.hidden);
        x = residual;
      }
      norm_row(p, x, out);
      if constexpr (sizeof(T) == sizeof(float)) {
        if (p.quantized != nullptr) quantize_part(out, 0, p.hidden, token, tile_of(p.quantized, token, p.hidden));
      }
    }
  });
}

}  // namespace pagedserve::cpu
