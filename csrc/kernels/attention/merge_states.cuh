// SPDX-License-Identifier: Apache-2.0
// merge_states.cuh: o = sum_i exp(lse_i - lse) o_i, lse = log sum_i exp(lse_i), over the leading axis
//
//   states      [num_states, num_tokens, num_heads, head_dim]    f32, bf16, f16
//   state_lse   [num_states, num_tokens, num_heads]              f32    natural log; -inf: an empty state, not read
//   out         [num_tokens, num_heads, head_dim]                like states; 0 where every state is empty
//   lse         [num_tokens, num_heads]                          f32
//
// Work     a warp a (token, head), 4 elements a lane
// Sums     f32, over the states in their order
// Traffic  reads states once, writes out
// Source   Dao, Haziza, Massa, Sizov 2023 (Flash-Decoding)
// Oracle   pagedserve/backends/reference/attention.py::merge_states
#pragma once

#include "../../params.h"
#include "../../parts/online_softmax.cuh"

namespace pagedserve::kernels {

constexpr int kMergeThreads = 128;

template <class T>
PAGEDSERVE_KERNEL(kMergeThreads, 4)
merge_states(PAGEDSERVE_GRID_CONSTANT MergeStatesParams p) {
  const int64_t num_rows = p.num_tokens * p.num_heads;
  const int64_t row =
      static_cast<int64_t>(target::block_index().x) * (kMergeThreads / target::kWarpSize) + target::warp_index();
  if (row >= num_rows) return;
  float largest = -parts::infinity();
  for (int i = 0; i < p.num_states; ++i) largest = parts::larger(largest, p.state_lse[i * num_rows + row]);
  // Without a maximum there is either no state, and every weight is 0, or a NaN, which must show.
  const float shift = parts::shift_of(largest) * parts::kLog2E;
  float total = 0.f;
  for (int i = 0; i < p.num_states; ++i) {
    total += target::exp2_approx(p.state_lse[i * num_rows + row] * parts::kLog2E - shift);
  }
  if (target::lane_index() == 0 && p.lse != nullptr) {
    p.lse[row] =
        total == 0.f ? -parts::infinity() : parts::shift_of(largest) + target::log2_approx(total) * parts::kLn2;
  }
  for (int dim = 4 * target::lane_index(); dim < p.head_dim; dim += 4 * target::kWarpSize) {
    const int count = p.head_dim - dim < 4 ? p.head_dim - dim : 4;
    float sums[4] = {};
    for (int i = 0; i < p.num_states; ++i) {
      const float state_lse = p.state_lse[i * num_rows + row];
      if (state_lse == -parts::infinity()) continue;
      const float weight = target::exp2_approx(state_lse * parts::kLog2E - shift);
      const T* state = static_cast<const T*>(p.states) + (i * num_rows + row) * p.head_dim + dim;
      for (int j = 0; j < count; ++j) sums[j] += target::to_float(state[j]) * weight;
    }
    T* out = static_cast<T*>(p.out) + row * p.head_dim + dim;
    for (int j = 0; j < count; ++j) out[j] = target::from_float<T>(total == 0.f ? 0.f : sums[j] / total);
  }
}

}  // namespace pagedserve::kernels
