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
constexpr int kFirstBytes = 8192;  // fetched before anything is computed

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
  const char** addresses;   // of the keys or values that are read
  const char** value_rows;  // of value_tile
  const char** pieces;      // to fetch, of two stretches

  size_t carve(void* base, int rows, int width) {
    Carver carver(base);
    q = carver.take<float>(rows * width);
    logits = carver.take<float>(rows * kLogitStride);
    o = carver.take<float>(rows * width);
    total_o = carver.take<float>(rows * width);
    key_tile = carver.take<float>(kSplit * width);
    value_tile = carver.take<float>(kSplit * width);
    key_factors = carver.take<float>(kLogitStride);
    value_scales = carver.take<float>(kLogitStride);
    states = carver.take<State>(rows);
    totals = carver.take<State>(rows);
    spans = carver.take<Span>(rows);
    addresses = carver.take<const char*>(kSplit);
    value_rows = carver.take<const char*>(kSplit);
    pieces = carver.take<const char*>(2 * kSplit * ceil_div(width * sizeof(float), kPieceBytes));
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
    num_read_ = num_fetched_ = 0;
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
  // The tokens of a split that any row of the task sees.
  Span tokens(int split) const {
    const int begin = larger(split * kSplit, x_.spans[0].begin);
    return {begin, smaller((split + 1) * kSplit, x_.spans[task_.num_rows - 1].end)};
  }

  // Where tokens that are read for all rows before the next end: never between a pair of tokens.
  static int run_end(int token, int end) { return smaller((token / kDirectTokens + 1) * kDirectTokens, end); }

  // Calls body(page run's first row, rows) for each run of tokens of a head that lie in one page.
  template <class Body>
  void for_each_run(const KvPages& kv, Span tokens, int head, const Body& body) const {
    const int page_size = p_.page_size;
    const int64_t size = element_bytes(kv.dtype), page_step = kv.page_stride * size, step = kv.token_stride * size;
    const char* data = static_cast<const char*>(kv.data) + head * kv.head_stride * size;
    const int32_t* page = pages_ + tokens.begin / page_size;
    int in_page = tokens.begin % page_size;
    for (int left = tokens.end - tokens.begin; left > 0; ++page, in_page = 0) {
      const int count = smaller(left, page_size - in_page);
      body(data + *page * page_step + in_page * step, count);
      left -= count;
    }
  }

  // The addresses of a head's rows.
  void list(const KvPages& kv, Span tokens) const {
    const int64_t step = kv.token_stride * element_bytes(kv.dtype);
    const char** out = x_.addresses;
    for_each_run(kv, tokens, task_.kv_head + head_, [&](const char* first, int count) {
      for (int i = 0; i < count; ++i) *out++ = first + i * step;
    });
  }

  // A task reads keys and values of its first head, then of the next, split by split.
  int num_stretches() const { return 2 * task_.num_heads * (task_.splits.end - task_.splits.begin); }
  const KvPages& pages_of(int stretch) const { return stretch % 2 == 0 ? p_.k : p_.v; }
  Span tokens_of(int stretch) const { return tokens(task_.splits.begin + stretch / (2 * task_.num_heads)); }

  const char** list_stretch(int stretch, const char** out) const {
    const KvPages& kv = pages_of(stretch);
    const int head = task_.kv_head + stretch / 2 % task_.num_heads;
    const int64_t step = kv.token_stride * element_bytes(kv.dtype);
    const int64_t bytes = row_bytes(kv);
    for_each_run(kv, tokens_of(stretch), head,
                 [&](const char* first, int count) { out = list_pieces(first, count, step, bytes, out); });
    return out;
  }

  // What to fetch while the next stretch is read: a stretch further on, and one more until that is kAheadBytes off.
  Ahead next_ahead() {
    const int stretch = num_read_++;
    if (stretch >= num_stretches()) return {};
    // Tiles want most of the second cache.
    const int64_t bytes = staged() ? 1 : kAheadBytes;
    const int distance = static_cast<int>(ceil_div(bytes, kSplit * row_bytes(p_.k)));
    const int last = smaller(stretch + distance, num_stretches() - 1);
    const char** end = x_.pieces;
    for (int i = 0; i < 2 && num_fetched_ <= last; ++i) end = list_stretch(num_fetched_++, end);
    const int count = tokens_of(stretch).end - tokens_of(stretch).begin;
    int64_t read = count * row_bytes(pages_of(stretch));
    if (stretch % 2 == 0) read += ceil_div(count, kLanes) * task_.num_rows * kWeightsBytes;
    return Ahead(x_.pieces, end, read);
  }

  void gather_scales(const KvPages& kv, Span tokens, float factor, float* out) const {
    for (int t = tokens.begin; t < tokens.end; ++t) {
      const int64_t page = pages_[t / p_.page_size];
      out[t - origin_] = factor * kv.scales[page * kv.scale_page_stride + t % p_.page_size * kv.scale_token_stride +
                                            (task_.kv_head + head_) * kv.scale_head_stride];
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
    const Span span = tokens(split);
    origin_ = split * kSplit;
    num_tokens_ = span.end - span.begin;
    const int first = span.begin - origin_;
    const float* q = x_.q + head_ * task_.num_rows * width_;
    memset(x_.o, 0, task_.num_rows * width_ * sizeof(float));
    list(p_.k, span);
    if (in_pairs_) return attend_in_pairs(span, ahead);
    with_kv_type(p_.k.dtype, [&](auto type) {
      using T = decltype(type);
      if (!staged()) return dot_direct<T>(q, first, p_.head_dim, ahead);
      stage_keys<T>(x_.addresses, num_tokens_, p_.head_dim, ahead, x_.key_tile);
      dot_staged<float>(q, x_.key_tile, width_, first);
    });
    weigh(span, ahead, [](float* row, int t, Vec weights) { store(row + t, weights); });
    list(p_.v, span);
    ahead = next_ahead();
    with_kv_type(p_.v.dtype, [&](auto type) {
      staged() ? sum_staged<decltype(type)>(first, ahead) : sum_direct<decltype(type)>(first, ahead);
    });
    ahead = next_ahead();
  }

  bool staged() const { return task_.num_rows > kDirectRows; }

  template <class T, class Q, class Dim>
  void dot_direct(const Q* q, int first, Dim head_dim, Ahead& ahead) {
    for (int t = first, end; t < first + num_tokens_; t = end) {
      end = run_end(t, first + num_tokens_);
      Ahead none;
      for (int r = 0; r < task_.num_rows; r += kBlockRows) {
        dot_rows<T>(q + r * width_, smaller(kBlockRows, task_.num_rows - r), x_.addresses + (t - first), end - t,
                    head_dim, r == 0 ? ahead : none, x_.logits + r * kLogitStride + t);
      }
    }
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

  template <class Store>
  void weigh(Span span, Ahead& ahead, const Store& store_weights) {
    const bool key_scales = p_.k.scales != nullptr, value_scales = p_.v.scales != nullptr;
    if (key_scales) gather_scales(p_.k, span, p_.scale, x_.key_factors);
    if (value_scales) gather_scales(p_.v, span, 1, x_.value_scales);
    for (int r = 0; r < task_.num_rows; ++r) {
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
                           tree(r),
                           tree_begin()};
      x_.states[r] = make_weights(rule, value_scales ? x_.value_scales : nullptr, ahead, store_weights,
                                  x_.logits + r * kLogitStride);
    }
  }

  template <class T>
  void sum_direct(int first, Ahead& ahead) {
    for_each_sum<1>({first, first + num_tokens_}, ahead, [&](int row, int rows, Span seen, Ahead& here) {
      sum_rows<T>(x_.logits + row * kLogitStride + seen.begin, rows, x_.addresses + (seen.begin - first),
                  seen.end - seen.begin, p_.head_dim, here, x_.o + row * width_);
    });
  }

  template <class T>
  void sum_staged(int first, Ahead& ahead) {
    stage_values<T>(x_.addresses, num_tokens_, p_.head_dim, ahead, x_.value_tile);
    for (int t = 0; t < num_tokens_; ++t) x_.value_rows[t] = reinterpret_cast<const char*>(x_.value_tile + t * width_);
    Ahead none;
    for (int r = 0; r < task_.num_rows; r += kSumRows) {
      sum_seen<1>(r, {first, first + num_tokens_}, [&](int row, int rows, Span seen, bool) {
        sum_rows<float>(x_.logits + row * kLogitStride + seen.begin, rows, x_.value_rows + (seen.begin - first),
                        seen.end - seen.begin, width_, none, x_.o + row * width_);
      });
    }
  }

  // The same on products of bf16 pairs.
  void attend_in_pairs(Span span, Ahead& ahead) {
#if defined(__AVX512BF16__)
    const Span tokens{span.begin - origin_, span.end - origin_};
    const Bf16* q = reinterpret_cast<const Bf16*>(x_.q) + head_ * task_.num_rows * width_;
    if (staged()) {
      auto* tile = reinterpret_cast<Bf16Pair*>(x_.key_tile);
      stage_keys(x_.addresses, num_tokens_, p_.head_dim, ahead, tile);
      dot_staged<Bf16Pair>(reinterpret_cast<const Bf16Pair*>(q), tile, width_ / 2, tokens.begin);
    } else {
      with_head_dim(p_.head_dim, [&](auto head_dim) { dot_direct<Bf16>(q, tokens.begin, head_dim, ahead); });
    }
    weigh(span, ahead, [](float* row, int t, Vec weights) { store_narrow(row, t, weights); });
    const auto sum = [&](int row, int rows, Span seen, const auto& values, auto head_dim, Ahead& fetch) {
      sum_pairs(reinterpret_cast<const Bf16*>(x_.logits + row * kLogitStride), rows, values, seen, head_dim, fetch,
                x_.o + row * width_);
    };
    list(p_.v, span);
    ahead = next_ahead();
    if (staged()) {
      auto* tile = reinterpret_cast<Bf16Pair*>(x_.value_tile);
      stage_values(x_.addresses, tokens, p_.head_dim, ahead, tile);
      const StagedValues values{tile, tokens.begin / 2 * 2, width_};
      Ahead none;
      for (int r = 0; r < task_.num_rows; r += kSumRows) {
        sum_seen<2>(r, tokens,
                    [&](int row, int rows, Span seen, bool) { sum(row, rows, seen, values, p_.head_dim, none); });
      }
    } else {
      const PagedValues values{x_.addresses, tokens.begin, p_.head_dim};
      with_head_dim(p_.head_dim, [&](auto head_dim) {
        for_each_sum<2>(tokens, ahead, [&](int row, int rows, Span seen, Ahead& here) {
          sum(row, rows, seen, values, head_dim, here);
        });
      });
    }
    ahead = next_ahead();
#else
    (void)span, (void)ahead;
#endif
  }

  // Calls sum(row, rows, seen, ahead) for all rows of each run of tokens; what is fetched ahead with the first rows.
  template <int kAlign, class Sum>
  void for_each_sum(Span tokens, Ahead& ahead, const Sum& sum) {
    for (int t = tokens.begin, end; t < tokens.end; t = end) {
      end = run_end(t, tokens.end);
      for (int r = 0; r < task_.num_rows; r += kSumRows) {
        sum_seen<kAlign>(r, {t, end}, [&](int row, int rows, Span seen, bool common) {
          Ahead none;
          sum(row, rows, seen, common && r == 0 ? ahead : none);
        });
      }
    }
  }

  // Calls sum(row, rows, tokens, common) for those of `tokens` that kSumRows rows from `row` on see: what all of them
  // see at once, cut to multiples of kAlign, the rest row by row. A weight of 0 would not do, for 0 * NaN.
  template <int kAlign, class Sum>
  void sum_seen(int row, Span tokens, const Sum& sum) {
    const int num_rows = smaller(kSumRows, task_.num_rows - row);
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
  int origin_ = 0;                      // the split's first token
  int num_tokens_ = 0;                  // of the split that any row sees
  int head_ = 0;                        // of the task
  int num_read_ = 0, num_fetched_ = 0;  // stretches
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
