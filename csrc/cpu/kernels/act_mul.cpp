// SPDX-License-Identifier: Apache-2.0
// act_mul.cpp: out = act(gate) * up, act silu or tanh's gelu
//
//   gate_up   [num_tokens, 2 * intermediate]   f32, f16, bf16; gate in the first half
//   out       [num_tokens, intermediate]       the same
//   quantized out as quantize_rows writes it   may be null; f32
//
// Work     each worker takes a contiguous range of slices of 256 elements
// Traffic  gate_up and out once
// Bound    about 20 vector operations per 3 vectors of memory: compute in cache, memory outside
// Source   Shazeer 2020 (GLU variants); Hendrycks & Gimpel 2016 (gelu)
// Oracle   pagedserve/backends/reference/: silu_mul, gelu_mul
#include "../kernels.h"
#include "quantize_row.h"
#include "simd.h"

namespace pagedserve::cpu {
namespace {

constexpr int kSlice = 256;

inline Vec silu(Vec x) { return x / (splat(1.f) + exp(zero() - x)); }

inline Vec gelu(Vec x) {
  const Vec inner = splat(0.79788456080286536f) * (x + splat(0.044715f) * x * x * x);
  return splat(0.5f) * x * (splat(1.f) + tanh(inner));
}

template <Activation activation, class T>
void act_slice(const T* gate, const T* up, T* out, int size) {
  for (int i = 0; i < size; i += kLanes) {
    const int n = smaller(size - i, kLanes);
    const Vec g = load(gate + i, n), u = load(up + i, n);
    store(out + i, (activation == Activation::kSilu ? silu(g) : gelu(g)) * u, n);
  }
}

}  // namespace

template <>
void Kernels<kIsa>::act_mul(const ActMulParams& p, Worker& worker) {
  const int64_t slices = ceil_div(p.intermediate, kSlice);
  const Range own = worker.share(p.num_tokens * slices);
  with_float_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    for (int64_t task = own.begin; task < own.end; ++task) {
      const int64_t token = task / slices, first = task % slices * kSlice;
      const T* gate = static_cast<const T*>(p.gate_up) + token * p.gate_up_stride + first;
      T* out = static_cast<T*>(p.out) + token * p.out_stride + first;
      const int size = static_cast<int>(smaller<int64_t>(kSlice, p.intermediate - first));
      if (p.activation == Activation::kSilu) {
        act_slice<Activation::kSilu>(gate, gate + p.intermediate, out, size);
      } else {
        act_slice<Activation::kGeluTanh>(gate, gate + p.intermediate, out, size);
      }
      if constexpr (sizeof(T) == sizeof(float)) {
        if (p.quantized == nullptr) continue;
        quantize_part(out, static_cast<int32_t>(first), size, token, tile_of(p.quantized, token, p.intermediate));
      }
    }
  });
}

}  // namespace pagedserve::cpu
