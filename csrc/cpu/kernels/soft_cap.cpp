// SPDX-License-Identifier: Apache-2.0
// soft_cap.cpp: x = cap * tanh(x / cap), in place
//
//   x   [num_tokens, hidden]   f32
//
// Work     each worker takes a contiguous range of slices of 1024 elements
// Traffic  x twice
// Bound    about 40 vector operations per vector: compute
// Source   Gemma 2 technical report 2024, section 2
// Oracle   pagedserve/backends/reference/: soft_cap
#include "../kernels.h"
#include "simd.h"

namespace pagedserve::cpu {

template <>
void Kernels<kIsa>::soft_cap(const SoftCapParams& p, Worker& worker) {
  constexpr int kSlice = 1024;
  const int64_t slices = ceil_div(p.hidden, kSlice);
  const Range own = worker.share(p.num_tokens * slices);
  const Vec cap = splat(p.cap);
  for (int64_t task = own.begin; task < own.end; ++task) {
    const int64_t first = task % slices * kSlice;
    float* x = p.x + task / slices * p.x_stride + first;
    const int size = static_cast<int>(smaller<int64_t>(kSlice, p.hidden - first));
    for (int i = 0; i < size; i += kLanes) {
      const int n = smaller(size - i, kLanes);
      store(x + i, cap * tanh(load(x + i, n) / cap), n);
    }
  }
}

}  // namespace pagedserve::cpu
