// SPDX-License-Identifier: Apache-2.0
// rope.cpp: (a, b) = (a cos - b sin, b cos + a sin) for the pairs of each head's first rotary_dim elements, in place
//
//   x           [num_tokens, num_heads, head_dim]   f32, f16, bf16
//   positions   [num_tokens]                        i32, within the table
//   cos_sin     [max_position, rotary_dim]          f32: cosines, then sines
//
// Work     each worker takes a contiguous range of (token, head) rows
// Traffic  the rotated elements twice
// Bound    memory
// Source   Su et al. 2021 (interleaved pairs); GPT-NeoX (pairs half a rotary_dim apart)
// Oracle   pagedserve/backends/reference/: rope
#include "../kernels.h"
#include "simd.h"

namespace pagedserve::cpu {
namespace {

template <class T>
void rotate_halves(T* x, const float* cos, const float* sin, int pairs) {
  for (int i = 0; i < pairs; i += kLanes) {
    const int n = smaller(pairs - i, kLanes);
    const Vec a = load(x + i, n), b = load(x + pairs + i, n), c = load(cos + i, n), s = load(sin + i, n);
    store(x + i, a * c - b * s, n);
    store(x + pairs + i, b * c + a * s, n);
  }
}

template <class T>
void rotate_interleaved(T* x, const float* cos, const float* sin, int pairs) {
  for (int i = 0; i < pairs; i += kLanes) {
    const int n = smaller(pairs - i, kLanes);
    float values[2 * kLanes];
    store(values, load(x + 2 * i, smaller(2 * n, kLanes)));
    if (2 * n > kLanes) store(values + kLanes, load(x + 2 * i + kLanes, 2 * n - kLanes));
    for (int j = 0; j < n; ++j) {
      const float a = values[2 * j], b = values[2 * j + 1];
      values[2 * j] = a * cos[i + j] - b * sin[i + j];
      values[2 * j + 1] = b * cos[i + j] + a * sin[i + j];
    }
    store(x + 2 * i, load(values), smaller(2 * n, kLanes));
    if (2 * n > kLanes) store(x + 2 * i + kLanes, load(values + kLanes), 2 * n - kLanes);
  }
}

}  // namespace

template <>
void Kernels<kIsa>::rope(const RopeParams& p, Worker& worker) {
  const Range rows = worker.share(p.num_tokens * p.num_heads);
  const int pairs = p.rotary_dim / 2;
  with_float_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const int64_t token = row / p.num_heads;
      T* x = static_cast<T*>(p.x) + token * p.token_stride + row % p.num_heads * p.head_stride;
      const float* cos = p.cos_sin + int64_t{p.positions[token]} * p.rotary_dim;
      if (p.interleaved) {
        rotate_interleaved(x, cos, cos + pairs, pairs);
      } else {
        rotate_halves(x, cos, cos + pairs, pairs);
      }
    }
  });
}

}  // namespace pagedserve::cpu
