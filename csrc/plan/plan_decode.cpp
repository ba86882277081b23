// SPDX-License-Identifier: Apache-2.0
// plan_decode.cpp: the plan of a decode (decode_plan.h), made on the host.
//
// Work     one pass over sequences, two over blocks
// Oracle   pagedserve/backends/reference/plan.py::plan_decode
#include "plan_decode.h"

#include "decode_plan.h"

namespace pagedserve::plan {

bool plan_decode(const PlanDecodeParams& p) {
  const Workspace w = workspace_of(p);
  if (w.max_partials < 0) return false;

  w.seq_starts[0] = 0;
  for (int32_t seq = 0; seq < p.num_seqs; ++seq) w.seq_starts[seq + 1] = w.seq_starts[seq] + work_of_seq(p, seq);
  const int64_t payload = payload_of(p, w.seq_starts[p.num_seqs]);

  for (int32_t block = 0; block <= p.num_blocks; ++block) w.cuts[block] = cut_at(p, w, block * payload);
  w.partial_starts[0] = 0;
  for (int32_t block = 0; block < p.num_blocks; ++block) {
    w.partial_starts[block + 1] = w.partial_starts[block] + partials_of_block(p, w, block);
  }

  int32_t num_tasks = 0;
  for (int32_t block = 0; block < p.num_blocks; ++block) {
    write_block(p, w, payload, block, num_tasks);
    num_tasks += w.blocks[block].num_tasks;
  }
  for (int32_t block = p.num_blocks; block < kMaxBlocks; ++block) write_idle_block(p, w, block);
  for (int32_t i = 0; i < 2 * kMaxBlocks; ++i) w.counters[i] = 0;
  *w.header = header_of(p, w, payload, num_tasks);
  return true;
}

}  // namespace pagedserve::plan
