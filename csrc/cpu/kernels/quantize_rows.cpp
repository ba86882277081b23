// SPDX-License-Identifier: Apache-2.0
// quantize_rows.cpp: x as q8 and q4 linear layers read it, once for all layers that share it
//
//   x           [num_tokens, width]   f32, width a multiple of 32
//   quantized   tiles of 8 tokens     int8 codes, a scale and sums per 32 elements (quantized_rows.h)
//
// Work     each worker takes a contiguous range of tokens
// Traffic  x once, 11 bytes per 8 elements written
// Bound    two divisions per block of 32: compute
// Oracle   pagedserve/backends/reference/linear.py::quantise_activations
#include "../kernels.h"
#include "quantize_row.h"

namespace pagedserve::cpu {

template <>
void Kernels<kIsa>::quantize_rows(const QuantizeRowsParams& p, Worker& worker) {
  quantize_rows_of(p, worker.share(p.num_tokens));
}

}  // namespace pagedserve::cpu
