// SPDX-License-Identifier: Apache-2.0
// attention_plan.h: who attends to what.
//
// A row is one query with one of the query heads of a KV head; a sequence has q_len * group_size rows per
// KV head, query-major. A task is a run of rows of one (sequence, KV head), over all their splits; where the
// sequences have few rows and there are tasks enough, of several KV heads, so that a page is read as it lies.
// Where there are too few tasks, sequences with few rows are cut: a task is then a run of splits, every split
// leaves its partial in memory, and the partials are folded in split order afterwards. The plan depends
// on the threads; what a row adds up, and in which order, does not.
#pragma once

#include "attention_rows.h"

namespace pagedserve::cpu {
namespace {

// Up to here keys and values are converted as they are used, else staged once. Measured in bf16 with AVX-512 on
// Zen 4, staging wins from 12 rows on at head_dim 64, and from 24 on at 128.
constexpr int kDirectRows = 16;
constexpr int kMaxStagedRows = 96;  // 0.5 MiB of tiles, logits and the rows' own state at head_dim 128
constexpr int kMinStagedRows = 24;
constexpr int kTasksPerThread = 8;
constexpr int kRowsTogether = 32;  // of several KV heads

struct Sequence {
  int64_t first_token;  // of q
  int q_len, kv_len;
};

struct Task {
  int seq, kv_head, num_heads;
  int first_row, num_rows;  // of each head
  Span splits;              // those to attend to, or to fold
  int first_split;          // of the sequence, where partials begin
  int64_t partials;         // where they lie; -1: not cut
  int64_t head_partials;    // floats from one head's to the next one's
};

inline Sequence sequence(const PagedAttentionParams& p, int seq) {
  const int kv_len = larger(p.kv_lens[seq], 0);
  if (p.q_starts == nullptr) return {static_cast<int64_t>(seq) * p.q_len, p.q_len, kv_len};
  return {p.q_starts[seq], p.q_starts[seq + 1] - p.q_starts[seq], kv_len};
}

// The tokens a query sees, or of which its tree mask chooses.
inline Span visible(const PagedAttentionParams& p, const Sequence& s, int query) {
  const int position = s.kv_len - s.q_len + query;
  if (position < 0) return {0, 0};
  const int end = p.tree_mask == nullptr ? position + 1 : s.kv_len;
  const int begin = p.window > 0 ? larger(position - p.window + 1, 0) : 0;
  return {smaller(begin, end), end};
}

// The splits that any of the queries first_query to last_query sees.
inline Span visible_splits(const PagedAttentionParams& p, const Sequence& s, int first_query, int last_query) {
  const int begin = visible(p, s, first_query).begin, end = visible(p, s, last_query).end;
  return {begin / kSplit, begin < end ? static_cast<int>(ceil_div(end, kSplit)) : begin / kSplit};
}

class Plan {
 public:
  Plan(const PagedAttentionParams& p, int num_threads)
      : p_(p), group_(p.num_q_heads / p.num_kv_heads), partial_stride_(padded(p.head_dim) + kLanes) {
    choose_cut(num_threads);
    for (staged_rows_ = kMaxStagedRows; staged_rows_ > kMinStagedRows; staged_rows_ /= 2) {
      if (count_tasks() >= kTasksPerThread / 2 * num_threads) break;
    }
    num_tasks_ = count_tasks();
  }

  int64_t num_tasks() const { return num_tasks_; }
  int64_t num_folds() const { return num_folds_; }
  int64_t partial_floats() const { return partial_floats_; }
  int partial_stride() const { return partial_stride_; }  // floats of one row: a State, and o from kLanes on
  int max_rows() const { return larger(staged_rows_, kRowsTogether); }

  // Task number n; numbers asked for on one Plan must rise. Long ones come first, so that threads end together.
  Task task(int64_t n) {
    while (n >= first_ + tasks_of(seq_)) {
      first_ += tasks_of(seq_);
      if (cut(seq_) && !staging_) partials_ += partials_of(seq_);
      if (++seq_ == p_.num_seqs) seq_ = 0, staging_ = false;
    }
    return staging_ ? staged_task(static_cast<int>(n - first_)) : direct_task(static_cast<int>(n - first_));
  }

  // Fold number n: a task over all splits of a cut (sequence, KV head).
  Task fold(int64_t n) {
    staging_ = false;
    int64_t first = 0, partials = 0;
    int seq = 0;
    for (; !cut(seq) || n >= first + p_.num_kv_heads; ++seq) {
      if (!cut(seq)) continue;
      first += p_.num_kv_heads;
      partials += partials_of(seq);
    }
    const int head = static_cast<int>(n - first);
    const Span splits = all_splits(seq);
    return {seq, head, 1, 0, rows(seq), splits, splits.begin, partials + head * head_partials(seq), 0};
  }

 private:
  int rows(int seq) const { return sequence(p_, seq).q_len * group_; }
  bool staged(int seq) const { return rows(seq) > kDirectRows; }
  Span all_splits(int seq) const {
    const Sequence s = sequence(p_, seq);
    if (s.q_len == 0) return {0, 0};
    return visible_splits(p_, s, 0, s.q_len - 1);
  }
  int num_splits(int seq) const { return all_splits(seq).end - all_splits(seq).begin; }
  bool cut(int seq) const { return cut_splits_ > 0 && !staged(seq) && num_splits(seq) > cut_splits_; }
  int64_t head_partials(int seq) const { return static_cast<int64_t>(num_splits(seq)) * rows(seq) * partial_stride_; }
  int64_t partials_of(int seq) const { return p_.num_kv_heads * head_partials(seq); }
  // KV heads of a task of few rows.
  int heads(int seq) const { return larger(smaller(heads_together_, kRowsTogether / rows(seq)), 1); }

  void choose_cut(int num_threads) {
    int64_t splits = 0;
    for (int seq = 0; seq < p_.num_seqs; ++seq) {
      if (!staged(seq)) splits += num_splits(seq);
    }
    const bool together = splits >= kTasksPerThread * num_threads;
    heads_together_ = together ? smaller(p_.num_kv_heads, kRowsTogether) : 1;
    if (num_threads == 1) return;
    if (!together) splits *= p_.num_kv_heads;
    cut_splits_ = static_cast<int>(larger<int64_t>(ceil_div(splits, kTasksPerThread * num_threads), 1));
    for (int seq = 0; seq < p_.num_seqs; ++seq) {
      if (!cut(seq)) continue;
      num_folds_ += p_.num_kv_heads;
      partial_floats_ += partials_of(seq);
    }
  }

  int64_t tasks_of(int seq) const {
    if (staged(seq) != staging_) return 0;
    if (staging_) return ceil_div(rows(seq), staged_rows_) * p_.num_kv_heads;
    if (rows(seq) == 0) return 0;
    return (cut(seq) ? ceil_div(num_splits(seq), cut_splits_) : 1) * ceil_div(p_.num_kv_heads, heads(seq));
  }

  int64_t count_tasks() {
    int64_t count = 0;
    for (const bool staging : {false, true}) {
      staging_ = staging;
      for (int seq = 0; seq < p_.num_seqs; ++seq) count += tasks_of(seq);
    }
    return count;
  }

  // The last rows of a prompt see the most.
  Task staged_task(int n) const {
    const int last = static_cast<int>(ceil_div(rows(seq_), staged_rows_)) - 1;
    const int first_row = (last - n / p_.num_kv_heads) * staged_rows_;
    const int num_rows = smaller(staged_rows_, rows(seq_) - first_row);
    const Span splits = visible_splits(p_, sequence(p_, seq_), first_row / group_, (first_row + num_rows - 1) / group_);
    return {seq_, n % p_.num_kv_heads, 1, first_row, num_rows, splits, splits.begin, -1, 0};
  }

  Task direct_task(int n) const {
    const Span all = all_splits(seq_);
    const int cuts = cut(seq_) ? static_cast<int>(ceil_div(num_splits(seq_), cut_splits_)) : 1;
    const int head = n / cuts * heads(seq_), num_heads = smaller(heads(seq_), p_.num_kv_heads - head);
    if (!cut(seq_)) return {seq_, head, num_heads, 0, rows(seq_), all, all.begin, -1, 0};
    const int begin = all.begin + n % cuts * cut_splits_;
    const Span splits{begin, smaller(begin + cut_splits_, all.end)};
    const int64_t partials = partials_ + head * head_partials(seq_);
    return {seq_, head, num_heads, 0, rows(seq_), splits, all.begin, partials, head_partials(seq_)};
  }

  const PagedAttentionParams& p_;
  int group_, partial_stride_;
  int staged_rows_ = kMaxStagedRows, cut_splits_ = 0, heads_together_ = 1;
  int64_t num_tasks_ = 0, num_folds_ = 0, partial_floats_ = 0;
  bool staging_ = true;  // task() walks the sequences with many rows first
  int seq_ = 0;
  int64_t first_ = 0, partials_ = 0;  // tasks and partials of the sequences behind
};

}  // namespace
}  // namespace pagedserve::cpu
