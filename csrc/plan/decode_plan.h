// SPDX-License-Identifier: Apache-2.0
// decode_plan.h: which block of a decode attends to which splits, as records in the caller's workspace.
//
//   strand    a sequence with one KV head and one tile of rows; row r is query r / group_size, head r % group_size
//   split     tokens [i * kSplitTokens, (i + 1) * kSplitTokens) of a sequence, counted from position 0
//   group     splits [i * kGroupSplits, (i + 1) * kGroupSplits) of a sequence, as far as a strand has them
//   piece     consecutive splits of one strand that one block attends to
//
// Strands lie end to end on a line, by sequence, KV head and tile; each takes its tokens and then kPieceCost. The line
// is cut into windows of `payload` tokens, one a block, and a block has the splits that begin in its window. So every
// split has one block, no block has more than payload + kSplitTokens + kPieceCost, and a block's records follow from
// the lengths alone, without looking at another block's.
//
// Splits fold left to right into their group, groups left to right into the strand: the same bits wherever the strand
// was cut, so a plan changes time and nothing else. A strand that is cut has a partial's place for each split, in their
// order. What a piece has of a group from its begin on, it folds into the place of the last split of it; a split
// behind a cut stays alone in its own. Who ends a cut group last folds these, and who ends the strand's last group the
// groups. A strand that is not cut leaves no partial. Where partials run out, a strand stays whole.
//
// Host (plan_decode.cpp) and device (plan_decode.cuh) compile this same arithmetic. Everything here is constexpr, which
// nvcc lets a kernel call (--expt-relaxed-constexpr).
// Source   FlashMLA's scheduler (payload with a fixed cost a piece); Osama et al. 2023 (Stream-K: cut the line of work)
// Oracle   pagedserve/backends/reference/plan.py::plan_decode
#pragma once

#include "../params.h"

namespace pagedserve::plan {

constexpr int32_t kPieceCost = 64;   // tokens that starting a piece costs; a guess: no GPU has measured it
constexpr int64_t kAlignment = 128;  // of what lies in a workspace; the workspace itself is aligned to 16 bytes

// Where a window begins: the first split at or behind it. split 0 begins a strand.
struct Cut {
  int32_t strand;
  int32_t split;  // counted from the strand's first
};

// What a workspace holds. Pointers to its parts, for num_seqs sequences.
struct Workspace {
  PlanHeader* header;
  PlannedBlock* blocks;     // [kMaxBlocks]           those behind num_blocks have no task, and no first one
  uint32_t* counters;       // [2, kMaxBlocks]        of strands and of groups, by where they begin; 0 between launches
  Cut* cuts;                // [num_blocks + 1]       while planning
  int64_t* partial_starts;  // [num_blocks + 1]       while planning
  int64_t* seq_starts;      // [num_seqs + 1]         while planning: where a sequence begins on the line
  DecodeTask* tasks;        // [num_strands + kMaxBlocks]       by block; a block's first is in blocks, not here
  float* partials;          // [num_totals + max_partials, partial_floats]   o [tile_rows, head_dim], then [tile_rows]
                            // of max, sum; the first num_totals are those of whole strands
  int64_t max_partials;     // below 0: the workspace is too small for a plan
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t aligned(int64_t bytes) { return ceil_div(bytes, kAlignment) * kAlignment; }

constexpr int32_t group_size(const PlanDecodeParams& p) { return p.num_q_heads / p.num_kv_heads; }
constexpr int32_t num_rows(const PlanDecodeParams& p) { return group_size(p) * p.q_len; }
// Rows of a strand: the f32 sums of a tile live in registers, and so do the queries where CUDA cores multiply.
constexpr int32_t max_tile_rows(int32_t group_size, int32_t head_dim) {
  if (group_size == 1) return head_dim <= 128 ? 4 : 2;
  return head_dim <= 64 ? 32 : head_dim <= 128 ? 16 : 8;
}
constexpr int32_t num_tiles(const PlanDecodeParams& p) {
  return static_cast<int32_t>(ceil_div(num_rows(p), max_tile_rows(group_size(p), p.head_dim)));
}
// Rows that a strand has at most: tiles are alike, rather than full but for the last. A matrix instruction has 8
// columns; 2 rows keep partials aligned to 16 bytes.
constexpr int32_t tile_rows(const PlanDecodeParams& p) {
  const int32_t unit = group_size(p) == 1 ? 2 : 8;
  return static_cast<int32_t>(ceil_div(ceil_div(num_rows(p), num_tiles(p)), unit) * unit);
}
constexpr int64_t strands_of_seq(const PlanDecodeParams& p) {
  return static_cast<int64_t>(p.num_kv_heads) * num_tiles(p);
}
constexpr int64_t num_strands(const PlanDecodeParams& p) { return p.num_seqs * strands_of_seq(p); }
constexpr int64_t partial_floats(const PlanDecodeParams& p) {
  return static_cast<int64_t>(tile_rows(p)) * (p.head_dim + 2);
}
// Whole strands that are being attended to at once: a block has one, and no strand has two.
constexpr int32_t num_totals(const PlanDecodeParams& p) {
  return num_strands(p) < kMaxBlocks ? static_cast<int32_t>(num_strands(p)) : kMaxBlocks;
}

template <class T>
constexpr T* take(const PlanDecodeParams& p, int64_t& offset, int64_t count) {
  T* part = reinterpret_cast<T*>(static_cast<char*>(p.workspace) + offset);
  offset += aligned(count * static_cast<int64_t>(sizeof(T)));
  return part;
}

template <class P>  // a template, so that a constexpr function may cast pointers
constexpr Workspace workspace_of(const P& p) {
  Workspace w{};
  int64_t offset = 0;
  w.header = take<PlanHeader>(p, offset, 1);
  w.blocks = take<PlannedBlock>(p, offset, kMaxBlocks);
  w.counters = take<uint32_t>(p, offset, 2 * kMaxBlocks);
  w.cuts = take<Cut>(p, offset, kMaxBlocks + 1);
  w.partial_starts = take<int64_t>(p, offset, kMaxBlocks + 1);
  w.seq_starts = take<int64_t>(p, offset, p.num_seqs + 1);
  w.tasks = take<DecodeTask>(p, offset, num_strands(p) + kMaxBlocks);
  w.partials = take<float>(p, offset, 0);
  const int64_t partial_bytes = partial_floats(p) * static_cast<int64_t>(sizeof(float));
  const int64_t left = p.workspace_bytes - offset - num_totals(p) * partial_bytes, most = 0x7fffffff - kMaxBlocks;
  w.max_partials = left < 0 ? -1 : left / partial_bytes < most ? left / partial_bytes : most;
  return w;
}

// ---- a sequence ----

// What all strands of a sequence have in common.
struct Strand {
  int32_t kv_len, first_split, num_splits;
  int64_t work;  // on the line
};

constexpr Strand strand_of(const PlanDecodeParams& p, int32_t length) {
  if (length <= 0) return {0, 0, 0, kPieceCost};
  // Nobody sees what lies before the first query's window.
  const int64_t window_begin = static_cast<int64_t>(length) - p.q_len - p.window + 1;
  const int32_t first = p.window > 0 && window_begin > 0 ? static_cast<int32_t>(window_begin / kSplitTokens) : 0;
  const int32_t end = static_cast<int32_t>(ceil_div(length, kSplitTokens));
  const int64_t tokens = static_cast<int64_t>(length) - static_cast<int64_t>(first) * kSplitTokens;
  return {length, first, end - first, tokens + kPieceCost};
}

constexpr int64_t work_of_seq(const PlanDecodeParams& p, int seq) {
  return strands_of_seq(p) * strand_of(p, p.kv_lens[seq]).work;
}

// Where a strand begins on the line.
constexpr int64_t strand_start(const PlanDecodeParams& p, const Workspace& w, int32_t strand) {
  const int64_t seq = strand / strands_of_seq(p);
  return w.seq_starts[seq] + strand % strands_of_seq(p) * strand_of(p, p.kv_lens[seq]).work;
}

// ---- the line ----

// Below kSplitTokens a window might hold no split between two that do.
constexpr int64_t payload_of(const PlanDecodeParams& p, int64_t work) {
  const int64_t share = ceil_div(work, p.num_blocks);
  return share < kSplitTokens ? kSplitTokens : share;
}

// The first split that begins at or behind a position.
constexpr Cut cut_at(const PlanDecodeParams& p, const Workspace& w, int64_t position) {
  if (position >= w.seq_starts[p.num_seqs]) return {static_cast<int32_t>(num_strands(p)), 0};
  int32_t seq = 0, end = p.num_seqs;  // the last sequence that begins at or before the position
  while (end - seq > 1) {
    const int32_t middle = seq + (end - seq) / 2;
    if (w.seq_starts[middle] <= position) {
      seq = middle;
    } else {
      end = middle;
    }
  }
  const Strand s = strand_of(p, p.kv_lens[seq]);
  const int64_t offset = position - w.seq_starts[seq];
  const int32_t strand = static_cast<int32_t>(seq * strands_of_seq(p) + offset / s.work);
  const int64_t split = ceil_div(offset % s.work, kSplitTokens);
  if (split == 0) return {strand, 0};
  if (split >= s.num_splits) return {strand + 1, 0};
  return {strand, static_cast<int32_t>(split)};
}

constexpr bool begins_in(const Cut& from, int32_t strand) {
  return from.strand < strand || (from.strand == strand && from.split == 0);
}

// Partials of the strand that begins in window `block` and that the window's end cuts: at most one.
constexpr int64_t partials_of_block(const PlanDecodeParams& p, const Workspace& w, int32_t block) {
  const Cut end = w.cuts[block + 1];
  if (end.split == 0 || !begins_in(w.cuts[block], end.strand)) return 0;
  return strand_of(p, p.kv_lens[end.strand / strands_of_seq(p)]).num_splits;
}

// ---- a block ----

// Where block `block` begins once strands without room for their partials are whole: they belong to the block that
// they begin in.
constexpr Cut begin_of_block(const PlanDecodeParams& p, const Workspace& w, int64_t payload, int32_t block) {
  const Cut cut = w.cuts[block];
  if (cut.split == 0) return cut;
  const int64_t owner = strand_start(p, w, cut.strand) / payload;
  return w.partial_starts[owner + 1] <= w.max_partials ? cut : Cut{cut.strand + 1, 0};
}

constexpr int32_t num_tasks_between(const Cut& begin, const Cut& end) {
  return end.strand - begin.strand + (end.split > 0 && (begin.strand < end.strand || begin.split < end.split) ? 1 : 0);
}

constexpr int32_t group_begin(const Strand& s, int32_t split) {
  const int32_t begin = split / kGroupSplits * kGroupSplits;
  return begin < s.first_split ? s.first_split : begin;
}
constexpr int32_t group_end(const Strand& s, int32_t split) {
  const int32_t end = (split / kGroupSplits + 1) * kGroupSplits, strand_end = s.first_split + s.num_splits;
  return end < strand_end ? end : strand_end;
}
// The window in which a split begins; `start`: where its strand begins on the line.
constexpr int32_t window_of(int64_t payload, const Strand& s, int64_t start, int32_t split) {
  return static_cast<int32_t>((start + static_cast<int64_t>(split - s.first_split) * kSplitTokens) / payload);
}

// The group of a cut strand that begins with a split, and that the end of its window cuts: of all groups that begin in
// a window at most one.
constexpr CutGroup cut_group(const Workspace& w, int64_t payload, const Strand& s, int64_t start, int32_t begin) {
  const int32_t owner = window_of(payload, s, start, begin);
  const int32_t last = window_of(payload, s, start, group_end(s, begin) - 1);
  return {kMaxBlocks + owner, s.first_split + w.cuts[owner + 1].split, last - owner + 1};
}

// The piece of `strand` in a block whose pieces reach from begin to end.
constexpr DecodeTask task_of(const PlanDecodeParams& p, const Workspace& w, int64_t payload, const Cut& begin,
                             const Cut& end, int32_t strand) {
  const int32_t seq = static_cast<int32_t>(strand / strands_of_seq(p));
  const int32_t in_seq = static_cast<int32_t>(strand % strands_of_seq(p));
  const Strand s = strand_of(p, p.kv_lens[seq]);
  const int32_t first = strand == begin.strand ? begin.split : 0;
  const int32_t behind = strand == end.strand ? end.split : s.num_splits;
  DecodeTask t{};
  t.seq = seq;
  t.kv_head = in_seq / num_tiles(p);
  t.first_row = in_seq % num_tiles(p) * tile_rows(p);
  const int32_t rows_left = num_rows(p) - t.first_row;
  t.num_rows = rows_left < tile_rows(p) ? rows_left : tile_rows(p);
  t.kv_len = s.kv_len;
  t.first_split = s.first_split + first;
  t.num_splits = behind - first;
  t.strand_split = s.first_split;
  t.counter = t.head.counter = t.tail.counter = -1;
  const int64_t start = strand_start(p, w, strand);
  const int32_t owner = window_of(payload, s, start, s.first_split);
  if (t.num_splits == s.num_splits) {
    t.partial = num_strands(p) < kMaxBlocks ? strand : owner;
    return t;
  }
  t.partial = static_cast<int32_t>(num_totals(p) + w.partial_starts[owner]);
  t.counter = owner;
  const int32_t end_split = t.first_split + t.num_splits;
  const int32_t head = group_begin(s, t.first_split), tail = group_begin(s, end_split - 1);
  if (head < t.first_split) t.head = cut_group(w, payload, s, start, head);
  if (tail >= t.first_split && group_end(s, tail) > end_split) t.tail = cut_group(w, payload, s, start, tail);
  return t;
}

// Writes where block `block` begins, and its records; first_task: as many records come before it.
constexpr void write_block(const PlanDecodeParams& p, const Workspace& w, int64_t payload, int32_t block,
                           int32_t first_task) {
  const Cut begin = begin_of_block(p, w, payload, block), end = begin_of_block(p, w, payload, block + 1);
  const int32_t count = num_tasks_between(begin, end);
  PlannedBlock& here = w.blocks[block];
  here.num_blocks = p.num_blocks;
  here.num_tasks = count;
  here.next_task = first_task + 1;
  here.spare = 0;
  for (int32_t i = 0; i < count; ++i) {
    (i == 0 ? here.first : w.tasks[first_task + i]) = task_of(p, w, payload, begin, end, begin.strand + i);
  }
}

// What a block behind the planned ones finds.
constexpr void write_idle_block(const PlanDecodeParams& p, const Workspace& w, int32_t block) {
  w.blocks[block].num_blocks = p.num_blocks;
}

constexpr PlanHeader header_of(const PlanDecodeParams& p, const Workspace& w, int64_t payload, int32_t num_tasks) {
  PlanHeader h{};
  h.num_seqs = p.num_seqs;
  h.num_q_heads = p.num_q_heads;
  h.num_kv_heads = p.num_kv_heads;
  h.head_dim = p.head_dim;
  h.q_len = p.q_len;
  h.window = p.window;
  h.num_blocks = p.num_blocks;
  h.num_tasks = num_tasks;
  h.wanted_partials = w.partial_starts[p.num_blocks];
  h.max_partials = w.max_partials;
  h.work = w.seq_starts[p.num_seqs];
  h.payload = payload;
  return h;
}

}  // namespace pagedserve::plan
