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

// By what a row's sums are multiplied, for 32 partials at once: lane i has those of partial i. A maximum is the same in
// whichever order it is taken, so only the sums wait for each other.
struct FoldedStates {
  parts::Parts parts;
  float sum;      // of partial i, times its part
  float maximum;  // of all partials up to i

  static PAGEDSERVE_DEVICE FoldedStates of(const parts::State& mine, float before) {
    float maximum = mine.maximum;
    PAGEDSERVE_UNROLL
    for (int delta = 1; delta < target::kWarpSize; delta *= 2) {
      const float below = target::shuffle_up(maximum, delta);
      if (target::lane_index() >= delta) maximum = parts::larger(maximum, below);
    }
    maximum = parts::larger(maximum, before);
    const float below = target::shuffle_up(maximum, 1);
    const parts::Parts parts = parts::parts_of(target::lane_index() == 0 ? before : below, mine.maximum);
    return {parts, mine.sum * parts.newer, maximum};
  }
  PAGEDSERVE_DEVICE parts::Parts parts_at(int i) const {
    return {target::shuffle(parts.older, i), target::shuffle(parts.newer, i)};
  }
};

template <int kWarps>
PAGEDSERVE_DEVICE void merge_partials(const DecodeCall& call, const DecodeTask& task) {
  const int head_dim = call.p.head_dim, last = task.num_partials - 1;
  const int stride = call.tile_rows * (head_dim + 2);  // floats of a partial
  const float* partials = call.partial(task.first_partial);
  for (int row = target::warp_index(); row < task.num_rows; row += kWarps) {
    const auto* states = reinterpret_cast<const float*>(call.partial_states(task.first_partial) + row);
    for (int first_dim = 0; first_dim < head_dim; first_dim += 4 * target::kWarpSize) {
      const int dim = first_dim + 4 * target::lane_index();
      const float* values = partials + row * head_dim + (dim < head_dim ? dim : 0);
      parts::State total = parts::empty_state();
      parts::Sums sums{};
      for (int first = 0; first <= last; first += target::kWarpSize) {
        const int own = first + target::lane_index();
        const auto& mine =
            *reinterpret_cast<const parts::State*>(states + static_cast<int64_t>(at_most(own, last)) * stride);
        const FoldedStates folded = FoldedStates::of(own <= last ? mine : parts::empty_state(), total.maximum);
        PAGEDSERVE_ROLLED
        for (int begin = 0; begin < at_most(last + 1 - first, target::kWarpSize); begin += kMergeAhead) {
          parts::Sums ahead[kMergeAhead];
          PAGEDSERVE_UNROLL
          for (int i = 0; i < kMergeAhead; ++i) {
            const int64_t index = at_most(first + begin + i, last);
            ahead[i] = *reinterpret_cast<const parts::Sums*>(values + index * stride);
          }
          PAGEDSERVE_UNROLL
          for (int i = 0; i < kMergeAhead; ++i) {  // behind the last one parts are 1 and 0
            const parts::Parts parts = folded.parts_at(begin + i);
            total.sum = ::fmaf(total.sum, parts.older, target::shuffle(folded.sum, begin + i));
            sums = parts::fold(sums, ahead[i], parts);
          }
        }
        total.maximum = target::shuffle(folded.maximum, target::kWarpSize - 1);
      }
      if (dim < head_dim) write_row(call, task, row, dim, total, sums);
    }
  }
}

}  // namespace pagedserve::kernels
