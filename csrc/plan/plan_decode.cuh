// SPDX-License-Identifier: Apache-2.0
// plan_decode.cuh: the plan of a decode (decode_plan.h), made on the device once per step
//
//   kv_lens      [num_seqs]           i32
//   workspace    [workspace_bytes]    header, blocks, counters, scratch, tasks; partials are left as they are
//
// Work     one block; a thread per sequence, then per planned block: cuts, partials and tasks are prefix sums
// Traffic  4 bytes a sequence, 64 bytes a task
// Bound    latency: 8 barriers for up to 256 sequences and 256 blocks, then 2 for every 256 more of either
// Source   Hillis & Steele 1986 (scan)
// Oracle   pagedserve/backends/reference/plan.py::plan_decode; plan_decode.cpp, byte for byte
#pragma once

#include "../target/target.cuh"
#include "decode_plan.h"

namespace pagedserve::plan {

constexpr int kPlanThreads = 256;

// Calls store(i, value(0) + ... + value(i - 1)) for every i below count; returns the whole sum, behind a barrier.
template <class Value, class Store>
PAGEDSERVE_DEVICE int64_t scan(int32_t count, const Value& value, const Store& store) {
  PAGEDSERVE_SHARED(warp_sums, int64_t[kPlanThreads / target::kWarpSize]);
  int64_t carry = 0;
  for (int32_t base = 0; base < count; base += kPlanThreads) {
    const int32_t i = base + target::thread_index();
    const int64_t own = i < count ? value(i) : 0;
    int64_t sum = own;
    for (int delta = 1; delta < target::kWarpSize; delta *= 2) {
      const int64_t below = target::shuffle_up(sum, delta);
      if (target::lane_index() >= delta) sum += below;
    }
    if (target::lane_index() == target::kWarpSize - 1) warp_sums[target::warp_index()] = sum;
    target::sync_threads();
    int64_t before = 0, all = 0;
    for (int warp = 0; warp < kPlanThreads / target::kWarpSize; ++warp) {
      if (warp == target::warp_index()) before = all;
      all += warp_sums[warp];
    }
    if (i < count) store(i, carry + before + sum - own);
    carry += all;
    target::sync_threads();
  }
  return carry;
}

PAGEDSERVE_KERNEL(kPlanThreads, 1) plan_decode_kernel(PAGEDSERVE_GRID_CONSTANT PlanDecodeParams p) {
  const Workspace w = workspace_of(p);
  const int32_t thread = target::thread_index();
  target::wait_for_previous_kernel();

  const int64_t work = scan(
      p.num_seqs, [&](int32_t seq) { return work_of_seq(p, seq); },
      [&](int32_t seq, int64_t start) { w.seq_starts[seq] = start; });
  if (thread == 0) w.seq_starts[p.num_seqs] = work;
  for (int32_t i = thread; i < 2 * kMaxBlocks; i += kPlanThreads) w.counters[i] = 0;
  for (int32_t i = p.num_blocks + thread; i < kMaxBlocks; i += kPlanThreads) write_idle_block(p, w, i);
  target::sync_threads();

  const int64_t payload = payload_of(p, work);
  for (int32_t block = thread; block <= p.num_blocks; block += kPlanThreads) {
    w.cuts[block] = cut_at(p, w, block * payload);
  }
  target::sync_threads();

  const int64_t partials = scan(
      p.num_blocks, [&](int32_t block) { return partials_of_block(p, w, block); },
      [&](int32_t block, int64_t first) { w.partial_starts[block] = first; });
  if (thread == 0) w.partial_starts[p.num_blocks] = partials;
  target::sync_threads();

  const int64_t num_tasks = scan(
      p.num_blocks,
      [&](int32_t block) -> int64_t {
        return num_tasks_between(begin_of_block(p, w, payload, block), begin_of_block(p, w, payload, block + 1));
      },
      [&](int32_t block, int64_t first) { write_block(p, w, payload, block, static_cast<int32_t>(first)); });
  if (thread == 0) *w.header = header_of(p, w, payload, static_cast<int32_t>(num_tasks));
}

}  // namespace pagedserve::plan
