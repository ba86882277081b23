// SPDX-License-Identifier: Apache-2.0
// decode_merge.cuh: folds the partials of a strand that several blocks attended to, in the order of their splits.
//
//   partials   [num_partials, tile_rows * head_dim + tile_rows * 2]    f32: o, then (maximum, sum)
//
// Work     a warp a row, 4 elements a lane; the block that ends a strand last does it all
// Sums     as a block folds its own splits: parts/online_softmax.cuh
// Traffic  once what was written, mostly from the second cache
#pragma once

#include "decode_queries.cuh"

namespace pagedserve::kernels {

// True in the block that ends its strand's last piece, which then sees what all others wrote. The counter counts
// num_pieces and is 0 again.
template <class C>
PAGEDSERVE_DEVICE bool ends_strand(const DecodeCall& call, DecodeShared<C>& shared, const DecodeTask& task) {
  target::sync_threads();
  if (target::thread_index() == 0) {
    const uint32_t last = static_cast<uint32_t>(task.num_pieces - 1);
    uint32_t* counter = call.counters + task.counter;
    shared.ends_strand = target::atomic_increment_wrap<target::Order::kAcqRel>(counter, last) == last;
  }
  target::sync_threads();
  return shared.ends_strand != 0;
}

constexpr int kMergeAhead = 8;  // partials that are read before the first of them is folded

template <int kWarps>
PAGEDSERVE_DEVICE void merge_partials(const DecodeCall& call, const DecodeTask& task) {
  const int head_dim = call.p.head_dim;
  for (int row = target::warp_index(); row < task.num_rows; row += kWarps) {
    for (int dim = 4 * target::lane_index(); dim < head_dim; dim += 4 * target::kWarpSize) {
      parts::State total = parts::empty_state();
      parts::Sums sums{};
      for (int first = 0; first < task.num_partials; first += kMergeAhead) {
        parts::State states[kMergeAhead];
        parts::Sums values[kMergeAhead];
        PAGEDSERVE_UNROLL
        for (int i = 0; i < kMergeAhead; ++i) {
          const int index = first + i < task.num_partials ? first + i : task.num_partials - 1;
          const float* o = call.partial(task.first_partial + index) + static_cast<int64_t>(row) * head_dim + dim;
          states[i] = call.partial_states(task.first_partial + index)[row];
          values[i] = *reinterpret_cast<const parts::Sums*>(o);
        }
        PAGEDSERVE_UNROLL
        for (int i = 0; i < kMergeAhead; ++i) {
          if (first + i >= task.num_partials) break;
          const parts::Parts parts = parts::fold(total, states[i]);
          sums = parts::fold(sums, values[i], parts);
        }
      }
      write_row(call, task, row, dim, total, sums);
    }
  }
}

}  // namespace pagedserve::kernels
