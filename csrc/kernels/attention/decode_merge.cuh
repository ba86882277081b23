// SPDX-License-Identifier: Apache-2.0
// decode_merge.cuh: folds what several blocks left of a strand: a cut group's splits, then the strand's groups, each in
// their order. Nobody waits: who ends a group last folds it, and who ends the strand's last group folds these.
//
//   partials   [num_partials, tile_rows * head_dim + tile_rows * 2]    f32: o, then (maximum, sum)
//
// Work     a warp a row, 4 elements a lane; at most kGroupSplits partials of a group, then one of each group
// Sums     as a block folds its own splits: parts/online_softmax.cuh
// Traffic  once what was written, mostly from the second cache
#pragma once

#include "decode_queries.cuh"

namespace pagedserve::kernels {

// Adds to a counter what this block has ended. Sets `is_last` in the block that makes it `all`, which then sees what
// all others wrote; the counter is 0 again. `is_last` lies in shared memory.
PAGEDSERVE_DEVICE bool ends_last(const DecodeCall& call, int32_t& is_last, int counter, int ended, int all) {
  target::sync_threads();
  if (target::thread_index() == 0) {
    uint32_t* address = call.counters + counter;
    const uint32_t added = static_cast<uint32_t>(ended);
    is_last = target::atomic_add<target::Order::kAcqRel>(address, added) + added == static_cast<uint32_t>(all);
    if (is_last) target::atomic_store(address, 0u);
  }
  target::sync_threads();
  return is_last != 0;
}

constexpr int kMergeAhead = 16;  // partials that are on their way while another is folded

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

// Places of partials, counted from the strand's first: equal steps, but for the last.
struct Places {
  int first, step, last, count;

  PAGEDSERVE_DEVICE int at(int i) const { return at_most(first + i * step, last); }
};

// Folds partials into the last of them or, where they are all of the strand, into the output.
template <class C>
PAGEDSERVE_DEVICE void merge_partials(const DecodeCall& call, const DecodeTask& task, const Places& places,
                                      bool is_output) {
  constexpr int kRunDims = 4 * target::kWarpSize;  // that a warp folds at once
  const int head_dim = call.p.head_dim;
  const int32_t partial_bytes = 4 * call.tile_rows * (head_dim + 2);
  const auto at = [&](float* of_first, int place) {
    return reinterpret_cast<char*>(of_first) + static_cast<int64_t>(place) * partial_bytes;
  };
  float* partials = call.partial(task.partial);
  for (int row = target::warp_index(); row < task.num_rows; row += C::kWarps) {
    auto* states = reinterpret_cast<float*>(call.partial_states(task.partial) + row);
    for (int first_dim = 0; first_dim < (C::kHeadDim > kRunDims ? head_dim : 1); first_dim += kRunDims) {
      const int dim = first_dim + 4 * target::lane_index();
      float* values = partials + row * head_dim + (dim < head_dim ? dim : 0);
      const auto sums_of = [&](int i) { return *reinterpret_cast<const parts::Sums*>(at(values, places.at(i))); };
      parts::State total = parts::empty_state();
      parts::Sums sums{};
      for (int first = 0; first < places.count; first += target::kWarpSize) {
        const int own = first + target::lane_index();
        const auto mine = *reinterpret_cast<const parts::State*>(at(states, places.at(own)));
        parts::Sums ahead[kMergeAhead];
        const auto read = [&](int begin) {
          PAGEDSERVE_UNROLL
          for (int i = 0; i < kMergeAhead; ++i) ahead[i] = sums_of(begin + i);
        };
        read(first);  // on its way while states become parts
        const FoldedStates folded = FoldedStates::of(own < places.count ? mine : parts::empty_state(), total.maximum);
        PAGEDSERVE_ROLLED
        for (int begin = 0;; read(first + begin)) {
          PAGEDSERVE_UNROLL
          for (int i = 0; i < kMergeAhead; ++i) {  // behind the last one parts are 1 and 0
            const parts::Parts parts = folded.parts_at(begin + i);
            total.sum = ::fmaf(total.sum, parts.older, target::shuffle(folded.sum, begin + i));
            sums = parts::fold(sums, ahead[i], parts);
          }
          begin += kMergeAhead;
          if (begin >= at_most(places.count - first, target::kWarpSize)) break;
        }
        total.maximum = target::shuffle(folded.maximum, target::kWarpSize - 1);
      }
      target::sync_warp();  // all lanes have read the last partial
      if (is_output) {
        if (dim < head_dim) write_row(call, task, row, dim, total, sums);
      } else {
        if (dim < head_dim) *reinterpret_cast<parts::Sums*>(at(values, places.last)) = sums;
        if (first_dim + kRunDims >= head_dim && target::lane_index() == 0) {
          *reinterpret_cast<parts::State*>(at(states, places.last)) = total;
        }
      }
    }
  }
}

// Ends a piece of a cut strand, whose partials are written: counts its groups, and folds what it ends last. The head
// was counted when it ended.
template <class C>
PAGEDSERVE_DEVICE void end_piece(const DecodeCall& call, DecodeShared<C>& shared, const DecodeTask& task) {
  const int last_split = (task.kv_len - 1) / kSplitTokens;  // of the strand
  const int num_groups = last_split / kGroupSplits - task.strand_split / kGroupSplits + 1;
  int ended = (task.first_split + task.num_splits - 1) / kGroupSplits - task.first_split / kGroupSplits + 1;
  ended -= (task.head.counter >= 0) + (task.tail.counter >= 0);
  PAGEDSERVE_ROLLED
  for (int step = 0; step < 3; ++step) {  // the head, the tail, the strand
    const bool is_strand = step == 2;
    if (is_strand && (num_groups == 1 || ended == 0)) return;
    const CutGroup group = is_strand ? CutGroup{task.counter, 0, num_groups} : step == 1 ? task.tail : task.head;
    if (group.counter < 0) continue;
    const bool is_last = step == 0
                             ? shared.ends_head != 0
                             : ends_last(call, shared.is_last, group.counter, is_strand ? ended : 1, group.num_pieces);
    if (!is_last) continue;
    const int first = is_strand ? group_end(task.strand_split) - 1 : group.cut - 1;
    const int last = is_strand ? last_split : at_most(group_end(first) - 1, last_split);
    const int count = is_strand ? num_groups : last - first + 1;
    const Places places = {first - task.strand_split, is_strand ? kGroupSplits : 1, last - task.strand_split, count};
    merge_partials<C>(call, task, places, is_strand || num_groups == 1);
    ++ended;
  }
}

}  // namespace pagedserve::kernels
