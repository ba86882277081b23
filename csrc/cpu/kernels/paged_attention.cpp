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
//          weights, their sum in lanes by position, o token by token; splits are folded left to right. All in
//          f32, the same additions in the same order whatever the path, the neighbours and the threads. With
//          bf16_products, on a processor that has them: q and weights rounded to bf16, two products an addition
//          (attention_bf16.h)
// Traffic  2 * sum(kv_lens) * num_kv_heads * head_dim * sizeof(KV) bytes; a prompt chunk reads its prefix once per
//          96 rows, from the last cache
// Bound    2 * group_size / sizeof(KV) flop per byte of a decode: memory, up to a group of about 4 in bf16 on Zen 4
//          (84 of 115 GFLOP/s a core in f32 against 17 GB/s a core); prompts: products (bf16 pairs: 190 GFLOP/s on
//          2 cores, f32: 160)
// Source   Dao, Haziza, Massa, Sizov 2023 (Flash-Decoding: splitting along KV); Kwon et al. 2023 (pages)
// Oracle   pagedserve/backends/reference/attention.py
#include "../kernels.h"
#include "attention_bf16.h"
#include "attention_plan.h"
#include "attention_softmax.h"

namespace pagedserve::cpu {
namespace {

constexpr int kDirectTokens = 64;  // read for all rows before the next: they stay in the first cache
constexpr int kAheadBytes = 8192;  // fetched before they are needed; 4 to 16 KiB do as well
constexpr int kMaxAhead = 64;      // rows
constexpr Ahead kNothingAhead{nullptr, 0, 0};

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

// Hands out pieces of one allocation, or measures how large it must be.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += ceil_div(count * sizeof(T), 64) * 64;
    return piece;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

struct Scratch {
  float *q, *logits, *o, *total_o, *key_tile, *value_tile, *key_factors, *value_scales;
  State *states, *totals;
  Span* spans;              // [rows] tokens of the sequence
  const char** addresses;   // of the rows in reading order: keys, values, the next split's keys
  const char** value_rows;  // of value_tile

  size_t carve(void* base, int rows, int heads, int width) {
    Carver carver(base);
    q = carver.take<float>(rows * width);
    logits = carver.take<float>(rows * kLogitStride);
    o = carver.take<float>(rows * width);
    total_o = carver.take<float>(rows * width);
    key_tile = carver.take<float>(kSplit * width);
    value_tile = carver.take<float>(kSplit * width);
    key_factors = carver.take<float>(heads * kLogitStride);
    value_scales = carver.take<float>(heads * kLogitStride);
    states = carver.take<State>(rows);
    totals = carver.take<State>(rows);
    spans = carver.take<Span>(rows);
    addresses = carver.take<const char*>(3 * kSplit * heads + kMaxAhead);
    value_rows = carver.take<const char*>(kSplit);
    return carver.used();
  }
};

// How kPair elements of a row lie in o, and in the q of products in f32.
enum class Order { kPlain, kEvenOdd, kUnpacked };

inline int place(Order order, int element) {
  switch (order) {
    case Order::kEvenOdd:
      return element % 2 * kLanes + element / 2;
#if defined(__AVX512BF16__)
    case Order::kUnpacked:
      return unpacked_place(element);
#endif
    default:
      return element;
  }
}

template <class T>
inline void load_row(const T* from, int head_dim, Order order, float* to) {
  float plain[kPair];
  for (int d = 0; d < head_dim; d += kPair, to += kPair) {
    const Vec a = load(from + d, head_dim - d);
    const Vec b = head_dim - d > kLanes ? load(from + d + kLanes, head_dim - d - kLanes) : zero();
    if (order == Order::kPlain) {
      store(to, a);
      store(to + kLanes, b);
      continue;
    }
    store(plain, a);
    store(plain + kLanes, b);
    for (int j = 0; j < kPair; ++j) to[place(order, j)] = plain[j];
  }
}

template <class T>
inline void store_row(const float* from, int head_dim, Order order, T* to) {
  float plain[kPair];
  for (int d = 0; d < head_dim; d += kPair, from += kPair) {
    for (int j = 0; j < kPair; ++j) plain[j] = from[place(order, j)];
    store(to + d, load(plain), head_dim - d);
    if (head_dim - d > kLanes) store(to + d + kLanes, load(plain + kLanes), head_dim - d - kLanes);
  }
}

inline Order order_of(DType dtype) { return dtype == DType::kBF16 ? Order::kEvenOdd : Order::kPlain; }

class Attention {
 public:
  Attention(const PagedAttentionParams& p, const Scratch& scratch)
      : p_(p),
        x_(scratch),
        group_(p.num_q_heads / p.num_kv_heads),
        width_(padded(p.head_dim)),
        in_pairs_(kHasBf16Products && p.bf16_products && p.k.dtype == DType::kBF16 && p.v.dtype == DType::kBF16) {}

  // Attends to the task's splits; folds them and writes the rows, or leaves every split's partial.
  void attend(const Task& task, float* partials, int partial_stride) {
    begin(task);
    const char** next = list_keys(task.splits.begin, x_.addresses);
    const int num_first = static_cast<int>(next - x_.addresses);
    for (int i = 0; i < smaller(num_first, ahead_rows(p_.k)); ++i) {
      Ahead{x_.addresses, 0, static_cast<int>(row_bytes(p_.k))}.fetch(i);
    }
    stage_queries();
    for (int split = task.splits.begin; split < task.splits.end; ++split) {
      if (split > task.splits.begin) next = carry_keys(next);
      next = attend_split(split, next);
      task.partials < 0 ? fold_split() : keep_split(split, partials + task.partials, partial_stride);
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
  int64_t row_bytes(const KvPages& kv) const {
    return kv.dtype == DType::kI4 ? p_.head_dim / 2 : p_.head_dim * element_bytes(kv.dtype);
  }
  int ahead_rows(const KvPages& kv) const {
    return static_cast<int>(smaller<int64_t>(kMaxAhead, larger<int64_t>(4, kAheadBytes / row_bytes(kv))));
  }

  // The tokens of a split that any row of the task sees.
  Span tokens(int split) const {
    const int begin = larger(split * kSplit, x_.spans[0].begin);
    return {begin, smaller((split + 1) * kSplit, x_.spans[task_.num_rows - 1].end)};
  }

  // Where tokens that are read for all rows before the next end: never between a pair of tokens.
  static int run_end(int token, int end) { return smaller((token / kDirectTokens + 1) * kDirectTokens, end); }

  // Addresses in reading order: for each run of tokens those of the first head, then those of the next.
  const char** list(const KvPages& kv, Span tokens, const char** out) const {
    for (int t = tokens.begin, end; t < tokens.end; t = end) {
      end = run_end(t, tokens.end);
      for (int head = task_.kv_head; head < task_.kv_head + task_.num_heads; ++head) {
        out = list_run(kv, {t, end}, head, out);
      }
    }
    return out;
  }

  const char** list_run(const KvPages& kv, Span tokens, int head, const char** out) const {
    const int64_t size = element_bytes(kv.dtype), step = kv.token_stride * size;
    int page = tokens.begin / p_.page_size, in_page = tokens.begin % p_.page_size;
    for (int left = tokens.end - tokens.begin; left > 0; ++page, in_page = 0) {
      const int count = smaller(left, p_.page_size - in_page);
      const int64_t element = pages_[page] * kv.page_stride + in_page * kv.token_stride + head * kv.head_stride;
      const char* first = static_cast<const char*>(kv.data) + element * size;
      for (int i = 0; i < count; ++i) out[i] = first + i * step;
      out += count, left -= count;
    }
    return out;
  }

  const char** list_keys(int split, const char** out) const {
    return split < task_.splits.end ? list(p_.k, tokens(split), out) : out;
  }

  // Brings the keys listed last to the front.
  const char** carry_keys(const char** end) const {
    const char** begin = x_.addresses + 2 * num_listed();
    memmove(x_.addresses, begin, (end - begin) * sizeof(*begin));
    return x_.addresses + (end - begin);
  }

  void gather_scales(const KvPages& kv, Span tokens, float factor, float* out) const {
    for (int head = task_.kv_head; head < task_.kv_head + task_.num_heads; ++head, out += kLogitStride) {
      for (int t = tokens.begin; t < tokens.end; ++t) {
        const int64_t page = pages_[t / p_.page_size];
        out[t - origin_] = factor * kv.scales[page * kv.scale_page_stride + t % p_.page_size * kv.scale_token_stride +
                                              head * kv.scale_head_stride];
      }
    }
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
    for (int r = 0; r < num_rows(); ++r) {
      fold(x_.states[r], x_.o + r * width_, width_, x_.totals[r], x_.total_o + r * width_);
    }
  }

  void keep_split(int split, float* partials, int partial_stride) const {
    partials += static_cast<int64_t>(split - task_.first_split) * task_.num_rows * partial_stride;
    for (int r = 0; r < num_rows(); ++r) {
      float* to = partials + r / task_.num_rows * task_.head_partials + r % task_.num_rows * partial_stride;
      memcpy(to, &x_.states[r], sizeof(State));
      memcpy(to + kLanes, x_.o + r * width_, width_ * sizeof(float));
    }
  }

  // Fills states and o from the split whose keys are listed up to `end`; returns the end of the next split's.
  const char** attend_split(int split, const char** end) {
    const Span span = tokens(split);
    origin_ = split * kSplit;
    num_tokens_ = span.end - span.begin;
    end = list(p_.v, span, end);
    end = list_keys(split + 1, end);
    const char* last = end[-1];
    for (int i = 0; i < kMaxAhead; ++i) end[i] = last;

    const bool staged = task_.num_rows > kDirectRows;
    const int first = span.begin - origin_;
    const Ahead ahead{x_.addresses, ahead_rows(p_.k), static_cast<int>(row_bytes(p_.k))};
    const Ahead value_ahead{x_.addresses + num_listed(), ahead_rows(p_.v), static_cast<int>(row_bytes(p_.v))};
    memset(x_.o, 0, num_rows() * width_ * sizeof(float));
    if (in_pairs_) {
      attend_in_pairs(span, staged, ahead, value_ahead);
      return end;
    }
    with_kv_type(p_.k.dtype, [&](auto type) {
      using T = decltype(type);
      if (!staged) return dot_direct<T>(x_.q, first, ahead);
      stage_keys<T>(x_.addresses, num_tokens_, p_.head_dim, ahead, x_.key_tile);
      dot_staged<float>(x_.q, x_.key_tile, width_, first);
    });
    weigh(span);
    with_kv_type(p_.v.dtype, [&](auto type) {
      staged ? sum_staged<decltype(type)>(first, value_ahead) : sum_direct<decltype(type)>(first, value_ahead);
    });
    return end;
  }

  int num_listed() const { return num_tokens_ * task_.num_heads; }

  // Calls body(run, first row, listed before it) for each run of tokens of each head, as they are listed.
  template <class Body>
  void for_each_run(Span tokens, const Body& body) const {
    int listed = 0;
    for (int t = tokens.begin, end; t < tokens.end; t = end) {
      end = run_end(t, tokens.end);
      for (int head = 0; head < task_.num_heads; ++head, listed += end - t) {
        body(Span{t, end}, head * task_.num_rows, listed);
      }
    }
  }

  template <class T, class Q>
  void dot_direct(const Q* q, int first, Ahead ahead) {
    for_each_run({first, first + num_tokens_}, [&](Span run, int first_row, int listed) {
      Ahead here = ahead.from(listed);
      for (int r = first_row, end = first_row + task_.num_rows; r < end; r += kBlockRows) {
        dot_rows<T>(q + r * width_, smaller(kBlockRows, end - r), x_.addresses + listed, run.end - run.begin,
                    p_.head_dim, here, x_.logits + r * kLogitStride + run.begin);
        here.rows = nullptr;
      }
    });
  }

  // Of a key tile whose rows, like those of q, have `width` elements.
  template <class T>
  void dot_staged(const T* q, const T* tile, int width, int first) {
    for (int t = first; t < first + num_tokens_; t += kLanes, tile += width * kLanes) {
      for (int r = 0; r < task_.num_rows; r += kTileRows) {
        const int rows = smaller(kTileRows, task_.num_rows - r);
        if (x_.spans[r].begin >= origin_ + t + kLanes || x_.spans[r + rows - 1].end <= origin_ + t) continue;
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

  void weigh(Span span) {
    const bool key_scales = p_.k.scales != nullptr, value_scales = p_.v.scales != nullptr;
    if (key_scales) gather_scales(p_.k, span, p_.scale, x_.key_factors);
    if (value_scales) gather_scales(p_.v, span, 1, x_.value_scales);
    for (int r = 0; r < num_rows(); ++r) {
      const int head = r / task_.num_rows * kLogitStride;
      const Span seen = in_split(r);
      const int position = seq_.kv_len - seq_.q_len + query(r);
      const LogitRule rule{key_scales ? x_.key_factors + head : nullptr,
                           p_.scale,
                           p_.soft_cap,
                           p_.alibi_slopes == nullptr ? 0 : p_.alibi_slopes[q_head(r)],
                           position - origin_,
                           seen.begin,
                           seen.end,
                           tree(r),
                           tree_begin()};
      x_.states[r] = make_weights(rule, value_scales ? x_.value_scales + head : nullptr, x_.logits + r * kLogitStride);
    }
  }

  template <class T>
  void sum_direct(int first, Ahead ahead) {
    for_each_run({first, first + num_tokens_}, [&](Span run, int first_row, int listed) {
      const char* const* values = x_.addresses + num_listed() + listed;
      for (int r = first_row, end = first_row + task_.num_rows; r < end; r += kSumRows) {
        sum_seen<1>(r, end, run, [&](int row, int rows, Span seen, bool common) {
          const int skipped = seen.begin - run.begin;
          sum_rows<T>(x_.logits + row * kLogitStride + seen.begin, rows, values + skipped, seen.end - seen.begin,
                      p_.head_dim, common && r == first_row ? ahead.from(listed + skipped) : kNothingAhead,
                      x_.o + row * width_);
        });
      }
    });
  }

  template <class T>
  void sum_staged(int first, Ahead ahead) {
    stage_values<T>(x_.addresses + num_listed(), num_tokens_, p_.head_dim, ahead, x_.value_tile);
    for (int t = 0; t < num_tokens_; ++t) x_.value_rows[t] = reinterpret_cast<const char*>(x_.value_tile + t * width_);
    for (int r = 0; r < task_.num_rows; r += kSumRows) {
      sum_seen<1>(r, task_.num_rows, {first, first + num_tokens_}, [&](int row, int rows, Span seen, bool) {
        sum_rows<float>(x_.logits + row * kLogitStride + seen.begin, rows, x_.value_rows + (seen.begin - first),
                        seen.end - seen.begin, width_, kNothingAhead, x_.o + row * width_);
      });
    }
  }

  // The same on products of bf16 pairs.
  void attend_in_pairs(Span span, bool staged, Ahead ahead, Ahead value_ahead) {
#if defined(__AVX512BF16__)
    const Span tokens{span.begin - origin_, span.end - origin_};
    const Bf16* q = reinterpret_cast<const Bf16*>(x_.q);
    if (staged) {
      auto* tile = reinterpret_cast<Bf16Pair*>(x_.key_tile);
      stage_keys(x_.addresses, num_tokens_, p_.head_dim, ahead, tile);
      dot_staged<Bf16Pair>(reinterpret_cast<const Bf16Pair*>(q), tile, width_ / 2, tokens.begin);
    } else {
      dot_direct<Bf16>(q, tokens.begin, ahead);
    }
    weigh(span);
    for (int r = 0; r < num_rows(); ++r) narrow_in_place(x_.logits + r * kLogitStride, in_split(r));
    const auto sum = [&](int row, int rows, Span seen, const auto& values, Ahead fetch) {
      sum_pairs(reinterpret_cast<const Bf16*>(x_.logits + row * kLogitStride), rows, values, seen, p_.head_dim, fetch,
                x_.o + row * width_);
    };
    const char* const* rows_of_values = x_.addresses + num_listed();
    if (staged) {
      auto* tile = reinterpret_cast<Bf16Pair*>(x_.value_tile);
      stage_values(rows_of_values, tokens, p_.head_dim, value_ahead, tile);
      const StagedValues values{tile, tokens.begin / 2 * 2, width_};
      for (int r = 0; r < task_.num_rows; r += kSumRows) {
        sum_seen<2>(r, task_.num_rows, tokens,
                    [&](int row, int rows, Span seen, bool) { sum(row, rows, seen, values, kNothingAhead); });
      }
      return;
    }
    for_each_run(tokens, [&](Span run, int first_row, int listed) {
      const PagedValues values{rows_of_values + listed, run.begin, p_.head_dim};
      for (int r = first_row, end = first_row + task_.num_rows; r < end; r += kSumRows) {
        sum_seen<2>(r, end, run, [&](int row, int rows, Span seen, bool common) {
          sum(row, rows, seen, values, common && r == first_row ? value_ahead.from(listed) : kNothingAhead);
        });
      }
    });
#else
    (void)span, (void)staged, (void)ahead, (void)value_ahead;
#endif
  }

  // Calls sum(row, rows, tokens, common) for those of `tokens` that kSumRows rows from `row` on see, or those up to
  // end_row: what all of them see at once, cut to multiples of kAlign, the rest row by row. A weight of 0 would not do,
  // for 0 * NaN.
  template <int kAlign, class Sum>
  void sum_seen(int row, int end_row, Span tokens, const Sum& sum) {
    const int num_rows = smaller(kSumRows, end_row - row);
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
  const Scratch& x_;
  const int group_, width_;
  const bool in_pairs_;  // products of bf16
  Task task_ = {};
  Sequence seq_ = {};
  const int32_t* pages_ = nullptr;
  int origin_ = 0;      // the split's first token
  int num_tokens_ = 0;  // of the split that any row sees
};

}  // namespace

template <>
void Kernels<kIsa>::paged_attention(const PagedAttentionParams& p, Worker& worker) {
  Plan plan(p, worker.size());
  Scratch scratch;
  const int width = padded(p.head_dim);
  const size_t bytes = scratch.carve(nullptr, plan.max_rows(), plan.max_heads(), width);
  scratch.carve(worker.scratch(bytes), plan.max_rows(), plan.max_heads(), width);
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
