// SPDX-License-Identifier: Apache-2.0
// paged_attention.cpp: o[i, h] = softmax(scale * q[i, h] . K) V, over the pages of query i's sequence
//
//   q, out       [num_tokens, num_q_heads, head_dim]               f32, bf16, f16
//   k, v         [num_pages, page_size, num_kv_heads, head_dim]    f32, bf16, f16; i8, fp8 with scales
//   scales       [num_pages, page_size, num_kv_heads]              f32    one per token and head
//   page_table   [num_seqs, max_pages]                             i32    never read past the last visible token
//   kv_lens      [num_seqs]                                        i32    <= 0: o = 0, lse = -inf
//   lse          [num_tokens, num_q_heads]                         f32    natural log
//
// Work     attention_plan.h: a task is some rows of one (sequence, KV head), or few rows of each of several heads;
//          few rows read keys and values straight from the pages, many (a prompt chunk) share staged tiles
// Sums     per split of 256 tokens from position 0: dot products in lanes over head_dim, the maximum, the
//          weights, their sum in lanes by position, o position by position (attention_tokens.h says which token
//          stands where); splits are folded left to right. All in f32, the same additions in the same order
//          whatever the path, the neighbours and the threads. With bf16_products, on a processor that has them: q and
//          weights rounded to bf16, two products an addition (attention_bf16.h)
// Traffic  2 * sum(kv_lens) * num_kv_heads * head_dim * sizeof(KV) bytes; a prompt chunk reads its prefix once per
//          96 rows, from the last cache
// Bound    2 * group_size / sizeof(KV) flop per byte of a decode: memory, up to a group of about 4 in bf16 on Zen 4
//          (84 of 115 GFLOP/s a core in f32 against 17 GB/s a core); prompts: products (bf16 pairs: 190 GFLOP/s on
//          2 cores, f32: 160)
// Source   Dao, Haziza, Massa, Sizov 2023 (Flash-Decoding: splitting along KV); Kwon et al. 2023 (pages)
// Oracle   pagedserve/backends/reference/attention.py
#include "../kernels.h"
#include "attention_plan.h"
#include "attention_scratch.h"

namespace pagedserve::cpu {
namespace {

constexpr int kFirstBytes = 8192;  // fetched before anything is computed
constexpr int kDirectTokens = 64;  // read for all rows before the next: they stay in the first cache

inline int64_t element_bytes(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    default:
      return 1;
  }
}

class Attention {
 public:
  Attention(const PagedAttentionParams& p, Scratch& scratch)
      : p_(p),
        x_(scratch),
        group_(p.num_q_heads / p.num_kv_heads),
        width_(padded(p.head_dim)),
        in_pairs_(kHasBf16Products && p.bf16_products && p.k.dtype == DType::kBF16 && p.v.dtype == DType::kBF16) {
    for (int t = 0; t < kSplit; ++t) x_.tile_offsets[t] = t * width_ * static_cast<int64_t>(sizeof(float));
  }

  // Attends to the task's splits; folds them and writes the rows, or leaves every split's partial.
  void attend(const Task& task, float* partials, int partial_stride) {
    begin(task);
    Ahead ahead = next_ahead();
    ahead.read(kFirstBytes);
    stage_queries();
    for (int split = task.splits.begin; split < task.splits.end; ++split) {
      for (head_ = 0; head_ < task.num_heads; ++head_) {
        attend_split(split, ahead);
        task.partials < 0 ? fold_split() : keep_split(split, partials + task.partials, partial_stride);
      }
    }
    if (task.partials < 0) write();
  }

  // Folds the partials of a cut sequence and writes its rows.
  void fold_partials(const Task& task, const float* partials, int partial_stride) {
    begin(task);
    partials += task.partials;
    for (int split = task.splits.begin; split < task.splits.end; ++split) {
      for (int r = 0; r < num_rows(); ++r, partials += partial_stride) {
        State state;
        memcpy(&state, partials, sizeof(State));
        fold(state, partials + kLanes, width_, x_.totals[r], x_.total_o + r * width_);
      }
    }
    write();
  }

 private:
  void begin(const Task& task) {
    task_ = task;
    seq_ = sequence(p_, task.seq);
    pages_ = p_.page_table + task.seq * p_.page_table_stride;
    num_read_ = 0;
    for (int r = 0; r < num_rows(); ++r) {
      x_.spans[r] = visible(p_, seq_, query(r));
      x_.totals[r] = {-kInfinity, 0};
    }
  }

  // Rows of the task: those of its first KV head, then those of the next.
  int num_rows() const { return task_.num_heads * task_.num_rows; }
  int query(int row) const { return (task_.first_row + row % task_.num_rows) / group_; }
  int q_head(int row) const {
    return (task_.kv_head + row / task_.num_rows) * group_ + (task_.first_row + row % task_.num_rows) % group_;
  }
  int row_bytes(const KvPages& kv) const {
    return kv.dtype == DType::kI4 ? p_.head_dim / 2 : p_.head_dim * static_cast<int>(element_bytes(kv.dtype));
  }
  // Where positions that are read for all rows before the next end: never between a pair.
  static int run_end(int t, int end) { return smaller((t / kDirectTokens + 1) * kDirectTokens, end); }

  // Rows that see the whole split, none of it through a tree mask.
  Span whole_rows(int split) const {
    const Span all{split * kSplit, (split + 1) * kSplit};
    if (p_.tree_mask != nullptr && all.end > seq_.kv_len - seq_.q_len) return {0, 0};
    int begin = 0, end = task_.num_rows;
    while (begin < end && x_.spans[begin].end < all.end) ++begin;
    while (begin < end && x_.spans[end - 1].begin > all.begin) --end;
    return {begin, end};
  }

  // The tokens of a split that any of the rows sees.
  Span tokens(int split, Span rows) const {
    const int begin = larger(split * kSplit, x_.spans[rows.begin].begin);
    return {begin, smaller((split + 1) * kSplit, x_.spans[rows.end - 1].end)};
  }

  // ---- where keys and values lie ----

  void list(Span tokens, bool streamed, TokenList& list) const {
    list.tokens = tokens;
    list.streamed = streamed;
    const auto fill = [&](int64_t page_step, int64_t step, int64_t* out) {
      list_offsets(tokens, streamed, p_.page_size, step, [&](int i) { return pages_[i] * page_step; }, out);
    };
    const auto fill_both = [&](const KvPages& kv, int64_t* rows, int64_t* scales) {
      fill(kv.page_stride * element_bytes(kv.dtype), kv.token_stride * element_bytes(kv.dtype), rows);
      if (kv.scales != nullptr) fill(kv.scale_page_stride, kv.scale_token_stride, scales);
    };
    fill_both(p_.k, list.keys, list.key_scales);
    fill_both(p_.v, list.values, list.value_scales);
  }

  // Lists the split as those rows read it that see all of it, if any do.
  void list_split(int split) const {
    const Span whole = whole_rows(split);
    const bool streamed = whole.begin < whole.end;
    list(tokens(split, streamed ? whole : Span{0, task_.num_rows}), streamed, x_.lists[split % 2]);
  }

  Rows rows_of(const KvPages& kv, const int64_t* offsets, int head) const {
    const int64_t step = kv.head_stride * element_bytes(kv.dtype);
    return {static_cast<const char*>(kv.data) + (task_.kv_head + head) * step, offsets};
  }
  Rows keys(const TokenList& list) const { return rows_of(p_.k, list.keys, head_); }
  Rows values(const TokenList& list) const { return rows_of(p_.v, list.values, head_); }

  // A task reads keys and values of its first head, then of the next, split by split: a stretch each.
  int split_stretches() const { return 2 * task_.num_heads; }
  int num_stretches() const { return split_stretches() * (task_.splits.end - task_.splits.begin); }
  int split_of(int stretch) const { return task_.splits.begin + stretch / split_stretches(); }
  const TokenList& list_of(int stretch) const { return x_.lists[split_of(stretch) % 2]; }
  static bool of_keys(int stretch) { return stretch % 2 == 0; }
  const KvPages& kv_of(int stretch) const { return of_keys(stretch) ? p_.k : p_.v; }

  // Appends the pieces of a stretch's rows to those to fetch; lists its split first, if it is a split's first.
  void fetch_stretch(int stretch) {
    if (stretch % split_stretches() == 0) list_split(split_of(stretch));
    const TokenList& list = list_of(stretch);
    const KvPages& kv = kv_of(stretch);
    const Rows rows = rows_of(kv, of_keys(stretch) ? list.keys : list.values, stretch / 2 % task_.num_heads);
    num_pieces_ += list_pieces(rows, list.count(), row_bytes(kv), x_.pieces + kAgain + num_pieces_);
  }

  // What to fetch while the next stretch is read: the one behind it, and of a task's first what is not read at once.
  Ahead next_ahead() {
    const int stretch = num_read_++;
    if (stretch >= num_stretches()) return {};
    if (stretch == 0) {
      num_pieces_ = 0;
      fetch_stretch(0);
      for (int i = 0; i < kAgain; ++i) x_.pieces[i] = x_.pieces[kAgain];
    } else {
      memmove(x_.pieces, x_.pieces + num_pieces_, kAgain * sizeof(const char*));
      num_pieces_ = 0;
    }
    const int count = list_of(stretch).count();
    int64_t read = count * row_bytes(kv_of(stretch));
    if (of_keys(stretch)) read += ceil_div(count, kLanes) * task_.num_rows * kWeightsBytes;
    if (stretch + 1 < num_stretches()) fetch_stretch(stretch + 1);
    return {x_.pieces, num_pieces_, row_bytes(kv_of(stretch + 1)), read};
  }

  void gather_scales(const KvPages& kv, const int64_t* offsets, const TokenList& list, float factor, float* out) const {
    const float* scales = kv.scales + (task_.kv_head + head_) * kv.scale_head_stride;
    const int first = list.positions().begin;
    for (int i = 0; i < list.count(); ++i) out[first + i] = factor * scales[offsets[i]];
  }

  template <class T>
  void narrow_row(const T* from, Bf16* to) const {
    for (int d = 0; d < width_; d += kLanes) {
      store(to + d, d < p_.head_dim ? load(from + d, p_.head_dim - d) : zero());
    }
  }

  void stage_queries() {
    with_float_type(p_.q_dtype, [&](auto type) {
      using T = decltype(type);
      for (int r = 0; r < num_rows(); ++r) {
        const T* row = static_cast<const T*>(p_.q) + (seq_.first_token + query(r)) * p_.q_token_stride +
                       q_head(r) * p_.q_head_stride;
        if (in_pairs_) {
          narrow_row(row, reinterpret_cast<Bf16*>(x_.q) + r * width_);
        } else {
          load_row(row, p_.head_dim, order_of(p_.k.dtype), x_.q + r * width_);
        }
      }
    });
  }

  void write() {
    with_float_type(p_.q_dtype, [&](auto type) {
      using T = decltype(type);
      for (int r = 0; r < num_rows(); ++r) {
        const int64_t token = seq_.first_token + query(r);
        const float* sink = p_.sinks == nullptr ? nullptr : p_.sinks + q_head(r);
        const float lse = finish(x_.totals[r], sink, width_, x_.total_o + r * width_);
        if (p_.lse != nullptr) p_.lse[token * p_.num_q_heads + q_head(r)] = lse;
        store_row(x_.total_o + r * width_, p_.head_dim, in_pairs_ ? Order::kUnpacked : order_of(p_.v.dtype),
                  static_cast<T*>(p_.out) + token * p_.out_token_stride + q_head(r) * p_.out_head_stride);
      }
    });
  }

  void fold_split() {
    for (int r = 0; r < task_.num_rows; ++r) {
      const int row = head_ * task_.num_rows + r;
      fold(x_.states[r], x_.o + r * width_, width_, x_.totals[row], x_.total_o + row * width_);
    }
  }

  void keep_split(int split, float* partials, int partial_stride) const {
    partials += static_cast<int64_t>(split - task_.first_split) * task_.num_rows * partial_stride;
    partials += head_ * task_.head_partials;
    for (int r = 0; r < task_.num_rows; ++r, partials += partial_stride) {
      memcpy(partials, &x_.states[r], sizeof(State));
      memcpy(partials + kLanes, x_.o + r * width_, width_ * sizeof(float));
    }
  }

  // Fills states and o of the split and head; `ahead` is that of its keys, and then that of the next ones.
  void attend_split(int split, Ahead& ahead) {
    const TokenList& list = x_.lists[split % 2];
    origin_ = split * kSplit;
    memset(x_.o, 0, task_.num_rows * width_ * sizeof(float));
    rows_ = list.streamed ? whole_rows(split) : Span{0, task_.num_rows};
    weigh_keys(list, ahead);
    ahead = next_ahead();
    add_values(list, ahead);
    ahead = next_ahead();
    if (!list.streamed) return;
    const Span whole = rows_;
    for (const Span rest : {Span{0, whole.begin}, Span{whole.end, task_.num_rows}}) {
      if (rest.begin < rest.end) attend_part(split, rest);
    }
  }

  // The same for rows that see less of the split than others, which have brought it into the caches.
  void attend_part(int split, Span rows) {
    rows_ = rows;
    for (int r = rows.begin; r < rows.end; ++r) x_.states[r] = {-kInfinity, 0};
    const Span seen = tokens(split, rows);
    if (seen.begin >= seen.end) return;
    list(seen, false, x_.lists[2]);
    Ahead none;
    weigh_keys(x_.lists[2], none);
    add_values(x_.lists[2], none);
  }

  // Turns the keys of rows_ into weights.
  void weigh_keys(const TokenList& list, Ahead& ahead) {
    const Span positions = list.positions();
    const int64_t first_row = head_ * task_.num_rows * width_;
    if (in_pairs_) return weigh_keys_in_pairs(list, reinterpret_cast<const Bf16*>(x_.q) + first_row, ahead);
    const float* q = x_.q + first_row;
    with_kv_type(p_.k.dtype, [&](auto type) {
      using T = decltype(type);
      if (!staged()) return dot_direct<T>(q, keys(list), positions, p_.head_dim, ahead);
      stage_keys<T>(keys(list), list.count(), p_.head_dim, ahead, x_.key_tile);
      dot_staged<float>(q, x_.key_tile, width_, positions);
    });
    weigh(list, ahead, [](float* row, int t, Vec weights) { store(row + t, weights); });
  }

  // Adds the weighted values to o of rows_.
  void add_values(const TokenList& list, Ahead& ahead) {
    if (in_pairs_) return add_values_in_pairs(list, ahead);
    with_kv_type(p_.v.dtype, [&](auto type) {
      using T = decltype(type);
      staged() ? sum_staged<T>(list, ahead) : sum_direct<T>(list, ahead);
    });
  }

  bool staged() const { return rows_.end - rows_.begin > kDirectRows; }

  template <class T, class Q, class Dim>
  void dot_direct(const Q* q, const Rows& keys, Span positions, Dim head_dim, Ahead& ahead) {
    for (int t = positions.begin, end; t < positions.end; t = end) {
      end = run_end(t, positions.end);
      Ahead none;
      for (int r = rows_.begin; r < rows_.end; r += kBlockRows) {
        dot_rows<T>(q + r * width_, smaller(kBlockRows, rows_.end - r), keys.from(t - positions.begin), end - t,
                    head_dim, r == rows_.begin ? ahead : none, x_.logits + r * kLogitStride + t);
      }
    }
  }

  // Of a key tile whose rows, like those of q, have `width` elements.
  template <class T>
  void dot_staged(const T* q, const T* tile, int width, Span positions) {
    for (int t = positions.begin; t < positions.end; t += kLanes, tile += width * kLanes) {
      for (int r = rows_.begin; r < rows_.end; r += kTileRows) {
        const int rows = smaller(kTileRows, rows_.end - r);
        if (in_split(r).begin >= t + kLanes || in_split(r + rows - 1).end <= t) continue;
        dot_tile(q + r * width, rows, tile, width, x_.logits + r * kLogitStride + t);
      }
    }
  }

  // The part of a row's span that lies in this split, from the split's first token.
  Span in_split(int row) const {
    const int begin = larger(x_.spans[row].begin - origin_, 0), end = smaller(x_.spans[row].end - origin_, kSplit);
    return {begin, larger(begin, end)};
  }

  // The row's bits of the tree mask, of token tree_begin() and on.
  const uint8_t* tree(int row) const {
    if (p_.tree_mask == nullptr) return nullptr;
    return p_.tree_mask + (static_cast<int64_t>(task_.seq) * seq_.q_len + query(row)) * seq_.q_len;
  }
  int tree_begin() const { return seq_.kv_len - seq_.q_len - origin_; }

  template <class Store>
  void weigh(const TokenList& list, Ahead& ahead, const Store& store_weights) {
    const bool key_scales = p_.k.scales != nullptr, value_scales = p_.v.scales != nullptr;
    if (key_scales) gather_scales(p_.k, list.key_scales, list, p_.scale, x_.key_factors);
    if (value_scales) gather_scales(p_.v, list.value_scales, list, 1, x_.value_scales);
    for (int r = rows_.begin; r < rows_.end; ++r) {
      const Span seen = in_split(r);
      const int position = seq_.kv_len - seq_.q_len + query(r);
      const float* slope = p_.alibi_slopes == nullptr ? nullptr : p_.alibi_slopes + q_head(head_ * task_.num_rows + r);
      const LogitRule rule{key_scales ? x_.key_factors : nullptr,
                           p_.scale,
                           p_.soft_cap,
                           slope == nullptr ? 0 : *slope,
                           position - origin_,
                           seen.begin,
                           seen.end,
                           list.streamed,
                           tree(r),
                           tree_begin()};
      x_.states[r] = make_weights(rule, value_scales ? x_.value_scales : nullptr, ahead, store_weights,
                                  x_.logits + r * kLogitStride);
    }
  }

  template <class T>
  void sum_direct(const TokenList& list, Ahead& ahead) {
    const Span positions = list.positions();
    for_each_sum<1>(positions, ahead, [&](int row, int rows, Span seen, Ahead& here) {
      sum_rows<T>(x_.logits + row * kLogitStride + seen.begin, rows, values(list).from(seen.begin - positions.begin),
                  seen.end - seen.begin, p_.head_dim, here, x_.o + row * width_);
    });
  }

  template <class T>
  void sum_staged(const TokenList& list, Ahead& ahead) {
    const Span positions = list.positions();
    const Rows tile{reinterpret_cast<const char*>(x_.value_tile), x_.tile_offsets};
    stage_values<T>(values(list), list.count(), p_.head_dim, ahead, x_.value_tile);
    Ahead none;
    for (int r = rows_.begin; r < rows_.end; r += kSumRows) {
      sum_seen<1>(r, positions, [&](int row, int rows, Span seen, bool) {
        sum_rows<float>(x_.logits + row * kLogitStride + seen.begin, rows, tile.from(seen.begin - positions.begin),
                        seen.end - seen.begin, width_, none, x_.o + row * width_);
      });
    }
  }

  // ---- the same on products of bf16 pairs ----

  void weigh_keys_in_pairs(const TokenList& list, const Bf16* q, Ahead& ahead) {
#if defined(__AVX512BF16__)
    const Span positions = list.positions();
    if (staged()) {
      auto* tile = reinterpret_cast<Bf16Pair*>(x_.key_tile);
      stage_keys(keys(list), list.count(), p_.head_dim, ahead, tile);
      dot_staged<Bf16Pair>(reinterpret_cast<const Bf16Pair*>(q), tile, width_ / 2, positions);
    } else {
      with_head_dim(p_.head_dim, [&](auto head_dim) { dot_direct<Bf16>(q, keys(list), positions, head_dim, ahead); });
    }
    weigh(list, ahead, [](float* row, int t, Vec weights) { store_narrow(row, t, weights); });
#else
    (void)list, (void)q, (void)ahead;
#endif
  }

  void add_values_in_pairs(const TokenList& list, Ahead& ahead) {
#if defined(__AVX512BF16__)
    const Span positions = list.positions();
    const auto sum = [&](int row, int rows, Span seen, const auto& values, auto head_dim, Ahead& fetch) {
      sum_pairs(reinterpret_cast<const Bf16*>(x_.logits + row * kLogitStride), rows, values, seen, head_dim, fetch,
                x_.o + row * width_);
    };
    if (staged()) {
      auto* tile = reinterpret_cast<Bf16Pair*>(x_.value_tile);
      stage_values(values(list), positions, p_.head_dim, ahead, tile);
      const StagedValues staged{tile, positions.begin / 2 * 2, width_};
      Ahead none;
      for (int r = rows_.begin; r < rows_.end; r += kSumRows) {
        sum_seen<2>(r, positions,
                    [&](int row, int rows, Span seen, bool) { sum(row, rows, seen, staged, p_.head_dim, none); });
      }
    } else {
      const PagedValues paged{values(list), positions.begin, p_.head_dim};
      with_head_dim(p_.head_dim, [&](auto head_dim) {
        for_each_sum<2>(positions, ahead, [&](int row, int rows, Span seen, Ahead& here) {
          sum(row, rows, seen, paged, head_dim, here);
        });
      });
    }
#else
    (void)list, (void)ahead;
#endif
  }

  // Calls sum(row, rows, seen, ahead) for all rows of each run of tokens; what is fetched ahead with the first rows.
  template <int kAlign, class Sum>
  void for_each_sum(Span tokens, Ahead& ahead, const Sum& sum) {
    for (int t = tokens.begin, end; t < tokens.end; t = end) {
      end = run_end(t, tokens.end);
      for (int r = rows_.begin; r < rows_.end; r += kSumRows) {
        sum_seen<kAlign>(r, {t, end}, [&](int row, int rows, Span seen, bool common) {
          Ahead none;
          sum(row, rows, seen, common && r == rows_.begin ? ahead : none);
        });
      }
    }
  }

  // Calls sum(row, rows, tokens, common) for those of `tokens` that kSumRows rows from `row` on see: what all of them
  // see at once, cut to multiples of kAlign, the rest row by row. A weight of 0 would not do, for 0 * NaN.
  template <int kAlign, class Sum>
  void sum_seen(int row, Span tokens, const Sum& sum) {
    const int num_rows = smaller(kSumRows, rows_.end - row);
    Span common = tokens;
    for (int r = row; r < row + num_rows; ++r) {
      const Span seen = in_split(r);
      common = {larger(common.begin, seen.begin), smaller(common.end, seen.end)};
    }
    if (p_.tree_mask != nullptr) common.end = smaller(common.end, tree_begin());
    common.begin += (kAlign - common.begin % kAlign) % kAlign;
    common.end -= larger(common.end, 0) % kAlign;
    if (common.end < common.begin) common.end = common.begin = smaller(common.begin, tokens.end);
    const auto alone = [&](int begin, int end) {
      for (int r = row; r < row + num_rows; ++r) {
        const Span seen = in_split(r);
        for_each_seen(r, larger(begin, seen.begin), smaller(end, seen.end), [&](int from, int to) {
          if (from < to) sum(r, 1, Span{from, to}, false);
        });
      }
    };
    alone(tokens.begin, common.begin);
    if (common.begin < common.end) sum(row, num_rows, common, true);
    alone(common.end, tokens.end);
  }

  // Calls body(from, to) for every run of tokens that the row's tree mask lets through.
  template <class Body>
  void for_each_seen(int row, int begin, int end, const Body& body) const {
    const uint8_t* mask = tree(row);
    if (mask == nullptr) return body(begin, end);
    const auto seen = [&](int t) { return t < tree_begin() || mask[t - tree_begin()] != 0; };
    for (int t = begin; t < end; ++t) {
      if (!seen(t)) continue;
      const int from = t;
      while (t < end && seen(t)) ++t;
      body(from, t);
    }
  }

  const PagedAttentionParams& p_;
  Scratch& x_;
  const int group_, width_;
  const bool in_pairs_;  // products of bf16
  Task task_ = {};
  Sequence seq_ = {};
  const int32_t* pages_ = nullptr;
  int origin_ = 0;      // the split's first token
  Span rows_ = {};      // of the head that attend now
  int head_ = 0;        // of the task
  int num_read_ = 0;    // stretches
  int num_pieces_ = 0;  // of x_.pieces, to fetch
};

}  // namespace

template <>
void Kernels<kIsa>::paged_attention(const PagedAttentionParams& p, Worker& worker) {
  Plan plan(p, worker.size());
  Scratch scratch;
  const int width = padded(p.head_dim);
  const size_t bytes = scratch.carve(nullptr, plan.max_rows(), width);
  scratch.carve(worker.scratch(bytes), plan.max_rows(), width);
  float* partials = nullptr;
  if (plan.num_folds() > 0) {
    partials = static_cast<float*>(worker.shared_scratch(plan.partial_floats() * sizeof(float)));
  }
  Attention attention(p, scratch);
  for (int64_t n = worker.take(); n < plan.num_tasks(); n = worker.take()) {
    attention.attend(plan.task(n), partials, plan.partial_stride());
  }
  if (plan.num_folds() == 0) return;
  worker.barrier();
  for (int64_t n = worker.take(); n < plan.num_folds(); n = worker.take()) {
    attention.fold_partials(plan.fold(n), partials, plan.partial_stride());
  }
}

}  // namespace pagedserve::cpu
