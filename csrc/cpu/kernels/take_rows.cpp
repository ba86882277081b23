// SPDX-License-Identifier: Apache-2.0
// take_rows.cpp: out[r] = x[rows[r]]
//
//   x      [num_tokens, hidden]   f32
//   rows   [num_rows]             i32, within x
//   out    [num_rows, hidden]     f32
//
// Work     each worker takes a contiguous range of rows
// Traffic  2 * num_rows * hidden * 4 bytes
// Bound    memory
// Oracle   pagedserve/backends/reference/: take_rows
#include "../kernels.h"
#include "simd.h"

namespace pagedserve::cpu {

template <>
void Kernels<kIsa>::take_rows(const TakeRowsParams& p, Worker& worker) {
  const Range rows = worker.share(p.num_rows);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    memcpy(p.out + row * p.out_stride, p.x + int64_t{p.rows[row]} * p.x_stride, p.hidden * sizeof(float));
  }
}

}  // namespace pagedserve::cpu
