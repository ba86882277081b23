// SPDX-License-Identifier: Apache-2.0
// merge_states.cpp: o = sum_i exp(lse_i - lse) o_i, lse = log sum_i exp(lse_i)
//
//   states      [num_states, num_tokens, num_heads, head_dim]    f32, bf16, f16
//   state_lse   [num_states, num_tokens, num_heads]              f32    natural log; -inf: an empty state, its o is not
//   read out         [num_tokens, num_heads, head_dim]                like states; 0 where every state is empty lse
//   [num_tokens, num_heads]                          f32
//
// Work     a share of the (token, head) rows a thread
// Sums     f32, over the states in their order
// Traffic  reads states once, writes out
// Source   Dao, Haziza, Massa, Sizov 2023 (Flash-Decoding)
// Oracle   pagedserve/backends/reference/attention.py::merge_states
#include "../kernels.h"
#include "simd.h"

namespace pagedserve::cpu {
namespace {

// weights[i] = e^(lse_i - maximum), 0 for an empty state. Returns the log of the sum of all e^lse_i, and that sum
// over e^maximum. Without a maximum there is either no state, and every weight is 0, or a NaN, which must show.
inline float weigh_states(const float* state_lse, int64_t stride, int num_states, float* weights, float& total) {
  float largest = -kInfinity;
  for (int i = 0; i < num_states; ++i) largest = larger(largest, state_lse[i * stride]);
  const float maximum = largest == -kInfinity ? 0 : largest;
  total = 0;
  for (int i = 0; i < num_states; ++i) total += weights[i] = exp(state_lse[i * stride] - maximum);
  return total == 0 ? -kInfinity : maximum + __builtin_logf(total);
}

template <class T>
inline void merge_row(const MergeStatesParams& p, int64_t row, float* weights) {
  const int64_t num_rows = p.num_tokens * p.num_heads;
  float total;
  const float lse = weigh_states(p.state_lse + row, num_rows, p.num_states, weights, total);
  if (p.lse != nullptr) p.lse[row] = lse;
  const T* states = static_cast<const T*>(p.states) + row * p.head_dim;
  T* out = static_cast<T*>(p.out) + row * p.head_dim;
  for (int d = 0; d < p.head_dim; d += kLanes) {
    Vec o = zero();
    for (int i = 0; i < p.num_states; ++i) {
      if (p.state_lse[i * num_rows + row] == -kInfinity) continue;
      o = fma(splat(weights[i]), load(states + i * num_rows * p.head_dim + d, p.head_dim - d), o);
    }
    store(out + d, total == 0 ? o : o / splat(total), p.head_dim - d);
  }
}

}  // namespace

template <>
void Kernels<kIsa>::merge_states(const MergeStatesParams& p, Worker& worker) {
  const int64_t num_rows = p.num_tokens * p.num_heads;
  const int64_t begin = num_rows * worker.rank() / worker.size(), end = num_rows * (worker.rank() + 1) / worker.size();
  float* weights = static_cast<float*>(worker.scratch((p.num_states + 1) * sizeof(float)));
  with_float_type(p.dtype, [&](auto type) {
    for (int64_t row = begin; row < end; ++row) merge_row<decltype(type)>(p, row, weights);
  });
}

}  // namespace pagedserve::cpu
