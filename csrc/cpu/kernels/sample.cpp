// SPDX-License-Identifier: Apache-2.0
// sample.cpp: tokens[r] = argmax over kept of s + noise,  s = (l - max l) / temperature,  l the penalised logits
//
//   logits         [num_rows, vocab_size]             f32   values that are not finite are never chosen
//   history        [history_starts[num_rows]]         i32   prompt, then output, of each row
//   tokens         [num_rows]                         i32   -1 where nothing can be chosen
//   logprobs       [num_rows]                         f32   log softmax of the raw logits at the choice
//   top_tokens     [num_rows, num_top]                i32   by falling logit, then rising id; -1 beyond the finite ones
//
// Work     maximum and sum of exponentials: a task = (row, block of the vocabulary); the rest: a task = a row
// Sums     f32 in a vector's lanes, then f64 over blocks in their order: the bits depend on the row alone
// Filters  a cut (value, id) in the order "falling s, rising id". It is found by halving a bracket of values, one
//          pass each, until few tokens stand in it; those are sorted. The vocabulary never is
// Noise    argmax of s + noise is argmin of E / w, E = -log(u), w = exp(s). As E >= 1 - u, a token whose
//          (1 - u) / w is above the best so far is passed over by a vector compare; only the others take logarithms
// Traffic  the logits twice; a row and its weights (8 bytes a token) stay in L2
// Bound    greedy: the exponentials of the log-sum-exp; with filters: passes over L2
// Source   Salmon et al. 2011 (Philox); Gumbel 1954 (argmax of logits plus noise)
// Oracle   pagedserve/backends/reference/sampling.py::sample
#include <float.h>
#include <math.h>

#include "../kernels.h"
#include "simd.h"

namespace pagedserve::cpu {

namespace {

constexpr int kBlock = 4096;     // tokens of a stats task: 16 KB, so its second pass reads L1
constexpr int kPad = 64;         // rows in scratch are padded to whole groups of noise
constexpr int kFewTokens = 256;  // sorting so many costs about as much as one more pass over 49152

// Values that are not finite become -inf.
Vec finite(Vec x) { return select(less(abs(x), splat(kInfinity)), x, splat(-kInfinity)); }

float finite(float x) { return fabsf(x) <= FLT_MAX ? x : -kInfinity; }

// exp(s) of s <= 0; 0 below -87, so that no subnormal number slows a row down.
Vec weight(Vec s) {
  const Vec lowest = splat(-87.f);
  return select(less(s, lowest), zero(), exp(max(s, lowest)));
}

Vec one_where(Mask mask) { return select(mask, splat(1.f), zero()); }

struct Stats {
  float largest;  // over finite logits; -inf where there is none
  float sum;      // of exp(logit - largest)
};

Stats block_stats(const float* x, int count) {
  const int whole = count / kLanes * kLanes, rest = count - whole;
  Vec top = select(first(rest), finite(load(x + whole, rest)), splat(-kInfinity));
  const Vec tail = top;
  for (int i = 0; i < whole; i += kLanes) top = max(top, finite(load(x + i)));
  const float largest = max_lane(top);
  if (largest == -kInfinity) return {largest, 0.f};
  Vec total = weight(tail - splat(largest));
  for (int i = 0; i < whole; i += kLanes) total = total + weight(finite(load(x + i)) - splat(largest));
  return {largest, sum(total)};
}

int32_t first_equal(const float* x, float value) {
  int32_t i = 0;
  while (x[i] != value) ++i;
  return i;
}

// The first token of the largest finite logit, from the maximum of each block.
int32_t first_largest(const float* x, const Stats* blocks, float largest) {
  int32_t begin = 0;
  while (blocks[begin / kBlock].largest != largest) begin += kBlock;
  return begin + first_equal(x + begin, largest);
}

// The log of the sum of exp(logit - largest).
double log_sum(const Stats* blocks, int num_blocks, float largest) {
  double total = 0;
  for (int b = 0; b < num_blocks; ++b) {
    if (blocks[b].sum > 0) total += blocks[b].sum * ::exp(static_cast<double>(blocks[b].largest) - largest);
  }
  return ::log(total);
}

float logprob(float logit, float largest, double log_total) {
  return static_cast<float>(static_cast<double>(logit) - largest - log_total);
}

// One row in a thread's scratch. Arrays are padded with what can never be chosen.
struct Row {
  int padded;      // vocab_size rounded up to kPad
  float* values;   // [padded]  logits, then s
  float* weights;  // [padded]  exp(s); 0 where a filter took the token out
  int32_t* ids;    // [padded]  counts of the history, or candidates

  static size_t bytes(int vocab_size) { return size_t{12} * ((vocab_size + kPad - 1) / kPad * kPad); }
  Row(void* scratch, int vocab_size) : padded((vocab_size + kPad - 1) / kPad * kPad) {
    values = static_cast<float*>(scratch);
    weights = values + padded;
    ids = reinterpret_cast<int32_t*>(weights + padded);
  }
};

void copy_finite(const Row& row, const float* logits, int vocab_size) {
  const int whole = vocab_size / kLanes * kLanes;
  for (int i = 0; i < whole; i += kLanes) store(row.values + i, finite(load(logits + i)));
  for (int i = whole; i < vocab_size; ++i) row.values[i] = finite(logits[i]);
  for (int i = vocab_size; i < row.padded; ++i) row.values[i] = -kInfinity;
}

bool has_penalties(const SampleParams& p, int r) {
  return p.history != nullptr && p.history_starts[r] < p.history_starts[r + 1] &&
         (p.repetition[r] != 1.f || p.presence[r] != 0.f || p.frequency[r] != 0.f);
}

void penalise(const SampleParams& p, int r, const Row& row) {
  constexpr int32_t kDone = -1;
  const int32_t* begin = p.history + p.history_starts[r];
  const int32_t* output = p.history + p.output_starts[r];
  const int32_t* end = p.history + p.history_starts[r + 1];
  int32_t* counts = row.ids;  // only at tokens of the history
  for (const int32_t* t = begin; t < end; ++t) counts[*t] = 0;
  for (const int32_t* t = output; t < end; ++t) ++counts[*t];
  for (const int32_t* t = begin; t < end; ++t) {
    const int32_t count = counts[*t];
    if (count == kDone) continue;
    counts[*t] = kDone;
    const float l = row.values[*t];
    const float repeated = l > 0 ? l / p.repetition[r] : l * p.repetition[r];
    const float present = count > 0 ? p.presence[r] : 0.f;
    row.values[*t] = finite((repeated - p.frequency[r] * static_cast<float>(count)) - present);
  }
}

float largest_value(const Row& row) {
  Vec top = splat(-kInfinity);
  for (int i = 0; i < row.padded; i += kLanes) top = max(top, load(row.values + i));
  return max_lane(top);
}

// Tokens in the order "falling value, rising id" up to and with this one.
struct Cut {
  float value;
  int32_t id;
};

// How much of a row lies above a value: tokens, or their weights.
struct Amount {
  int32_t count;
  double mass;
};

template <bool by_mass>
Amount amount_above(const Row& row, float value) {
  constexpr int kChunk = 2048;  // tokens whose weights are added in float32
  Vec count = zero();           // whole numbers: exact below 2^24
  double mass = 0;
  for (int begin = 0; begin < row.padded; begin += kChunk) {
    Vec part = zero();
    for (int i = begin, end = smaller(begin + kChunk, row.padded); i < end; i += kLanes) {
      const Mask above = less(splat(value), load(row.values + i));
      count = count + one_where(above);
      if (by_mass) part = part + select(above, load(row.weights + i), zero());
    }
    if (by_mass) mass += sum(part);
  }
  return {static_cast<int32_t>(sum(count)), mass};
}

bool before(const float* values, int32_t a, int32_t b) {
  return values[a] > values[b] || (values[a] == values[b] && a < b);
}

// Sinks ids[i] into the heap below it, whose root is the last in order.
void sink(const float* values, int32_t* ids, int i, int n) {
  for (int child = 2 * i + 1; child < n; i = child, child = 2 * i + 1) {
    if (child + 1 < n && before(values, ids[child], ids[child + 1])) ++child;
    if (!before(values, ids[i], ids[child])) return;
    const int32_t last = ids[child];
    ids[child] = ids[i];
    ids[i] = last;
  }
}

void heap_sort(const float* values, int32_t* ids, int n) {
  for (int i = n / 2 - 1; i >= 0; --i) sink(values, ids, i, n);
  for (int end = n - 1; end > 0; --end) {
    const int32_t last = ids[0];
    ids[0] = ids[end];
    ids[end] = last;
    sink(values, ids, 0, end);
  }
}

// Ids with low < value <= high into row.ids, in order.
int collect(const Row& row, float low, float high) {
  int n = 0;
  bool sorted = true;
  for (int begin = 0; begin < row.padded; begin += kPad) {
    Vec hits = zero();
    for (int i = begin; i < begin + kPad; i += kLanes) {
      const Vec v = load(row.values + i);
      hits = max(hits, select(less(splat(high), v), zero(), one_where(less(splat(low), v))));
    }
    if (max_lane(hits) == 0.f) continue;
    for (int i = begin; i < begin + kPad; ++i) {
      if (!(row.values[i] > low && row.values[i] <= high)) continue;
      sorted = sorted && (n == 0 || before(row.values, row.ids[n - 1], i));
      row.ids[n++] = i;
    }
  }
  if (!sorted) heap_sort(row.values, row.ids, n);
  return n;
}

// The first token at which the tokens before and with it amount to `target`: their number, or with by_mass
// their weights. largest is the largest value.
template <bool by_mass>
Cut find_cut(const Row& row, double target, float largest) {
  // The bracket: the cut's value is in (low, high]; `above` is the amount above high.
  float low = -kInfinity, high = largest;
  int32_t count_low = row.padded, count_high = 0;
  double above = 0;
  float reach = 8;
  while (count_low - count_high > kFewTokens) {
    const float middle = low == -kInfinity ? largest - reach : low + (high - low) / 2;
    if (!(middle > low && middle < high)) {
      if (low != -kInfinity || !(middle > low)) break;  // nothing between: one value is left, or none
      reach *= 2;                                       // so large that largest - reach is largest
      continue;
    }
    const Amount amount = amount_above<by_mass>(row, middle);
    const double measured = by_mass ? amount.mass : amount.count;
    if (measured >= target) {
      low = middle;
      count_low = amount.count;
    } else {
      high = middle;
      count_high = amount.count;
      above = measured;
    }
    reach *= 2;
  }
  const int n = collect(row, low, high);
  if (n == 0) return {-kInfinity, row.padded};  // fewer tokens than the target: nothing is cut
  int last = 0;
  for (; last < n; ++last) {
    above += by_mass ? row.weights[row.ids[last]] : 1;
    if (above >= target) break;
  }
  const int32_t id = row.ids[smaller(last, n - 1)];
  return {row.values[id], id};
}

void keep_to(const Row& row, Cut cut) {
  for (int i = 0; i < row.padded; i += kLanes) {
    store(row.weights + i, select(less(load(row.values + i), splat(cut.value)), zero(), load(row.weights + i)));
  }
  for (int i = cut.id + 1; i < row.padded; ++i) {
    if (row.values[i] == cut.value) row.weights[i] = 0;
  }
}

struct Philox {
  uint32_t key[2];
  uint32_t offset[2];

  Philox(uint64_t seed, uint64_t position)
      : key{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)},
        offset{static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32)} {}

  // 1 - u of kPad tokens from `token` on, exactly.
  void complements(uint32_t token, float out[kPad]) const {
    constexpr int kQuads = kPad / 4;
    uint32_t c0[kQuads], c1[kQuads], c2[kQuads], c3[kQuads];
    for (int i = 0; i < kQuads; ++i) {
      c0[i] = token / 4 + i;
      c1[i] = 0;
      c2[i] = offset[0];
      c3[i] = offset[1];
    }
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; ++round) {
      for (int i = 0; i < kQuads; ++i) {
        const uint64_t a = uint64_t{0xD2511F53} * c0[i], b = uint64_t{0xCD9E8D57} * c2[i];
        c0[i] = static_cast<uint32_t>(b >> 32) ^ c1[i] ^ k0;
        c1[i] = static_cast<uint32_t>(b);
        c2[i] = static_cast<uint32_t>(a >> 32) ^ c3[i] ^ k1;
        c3[i] = static_cast<uint32_t>(a);
      }
      k0 += 0x9E3779B9;
      k1 += 0xBB67AE85;
    }
    for (int i = 0; i < kQuads; ++i) {
      out[4 * i] = complement(c0[i]);
      out[4 * i + 1] = complement(c1[i]);
      out[4 * i + 2] = complement(c2[i]);
      out[4 * i + 3] = complement(c3[i]);
    }
  }

  static float complement(uint32_t bits) {
    return (static_cast<float>(static_cast<int32_t>(0x7FFFFF - (bits >> 9))) + 0.5f) * 0x1p-23f;
  }
};

// -log(-log(u)), each logarithm rounded to float32. 1 - (1 - u) is exact.
float gumbel(float complement) {
  const double u = 1.0 - static_cast<double>(complement);
  const float exponential = -static_cast<float>(::log(u));
  return -static_cast<float>(::log(static_cast<double>(exponential)));
}

int32_t race(const SampleParams& p, int r, const Row& row, int32_t likeliest) {
  constexpr float kMargin = 1.001f;  // covers the rounding of scores, weights and logarithms
  const Philox philox(p.seeds[r], p.offsets[r]);
  float complements[kPad];
  int32_t best = likeliest;
  philox.complements(likeliest / kPad * kPad, complements);
  float best_score = row.values[likeliest] + gumbel(complements[likeliest % kPad]);
  float limit = expf(-best_score) * kMargin;
  for (int begin = 0; begin < row.padded; begin += kPad) {
    Vec heaviest = zero();
    for (int i = begin; i < begin + kPad; i += kLanes) heaviest = max(heaviest, load(row.weights + i));
    if (!(max_lane(heaviest) * limit > 0x1p-24f)) continue;  // the least 1 - u there is
    philox.complements(begin, complements);
    Vec hits = zero();
    for (int i = 0; i < kPad; i += kLanes) {
      const Vec bar = load(row.weights + begin + i) * splat(limit);
      hits = max(hits, one_where(less(load(complements + i), bar)));
    }
    if (max_lane(hits) == 0.f) continue;
    for (int i = 0; i < kPad; ++i) {
      if (!(complements[i] < row.weights[begin + i] * limit)) continue;
      const float score = row.values[begin + i] + gumbel(complements[i]);
      if (score > best_score || (score == best_score && begin + i < best)) {
        best = begin + i;
        best_score = score;
        limit = expf(-best_score) * kMargin;
      }
    }
  }
  return best;
}

// row.values hold penalised logits.
int32_t draw(const SampleParams& p, int r, const Row& row, float largest) {
  const int32_t likeliest = first_equal(row.values, largest);
  const float temperature = p.temperature[r];
  if (!(temperature > 0)) return likeliest;
  for (int i = 0; i < row.padded; i += kLanes) {
    const Vec s = finite((load(row.values + i) - splat(largest)) / splat(temperature));
    store(row.values + i, s);
    store(row.weights + i, weight(s));
  }
  const int top_k = p.top_k[r];
  if (top_k > 0 && top_k < p.vocab_size) keep_to(row, find_cut<false>(row, top_k, 0.f));
  if (p.top_p[r] < 1.f) {
    const double mass = amount_above<true>(row, -kInfinity).mass;
    keep_to(row, find_cut<true>(row, p.top_p[r] * mass, 0.f));
  }
  if (p.min_p[r] > 0.f) {
    for (int i = 0; i < row.padded; i += kLanes) {
      const Vec w = load(row.weights + i);
      store(row.weights + i, select(less(w, splat(p.min_p[r])), zero(), w));
    }
  }
  return race(p, r, row, likeliest);
}

// row.values hold the row's finite logits.
void write_top(const SampleParams& p, int r, const Row& row, float largest, double log_total) {
  int32_t* tokens = p.top_tokens + int64_t{r} * p.num_top;
  float* logprobs = p.top_logprobs + int64_t{r} * p.num_top;
  const Cut cut = find_cut<false>(row, smaller(p.num_top, p.vocab_size), largest);
  const int n = smaller(collect(row, nextafterf(cut.value, -kInfinity), largest), p.num_top);
  for (int i = 0; i < n; ++i) {
    tokens[i] = row.ids[i];
    logprobs[i] = logprob(row.values[row.ids[i]], largest, log_total);
  }
}

void sample_row(const SampleParams& p, int r, const Row& row, const Stats* blocks, int num_blocks) {
  const float* logits = p.logits + r * p.logits_stride;
  p.tokens[r] = -1;
  p.logprobs[r] = -kInfinity;
  for (int64_t i = int64_t{r} * p.num_top, end = i + p.num_top; i < end; ++i) {
    p.top_tokens[i] = -1;
    p.top_logprobs[i] = -kInfinity;
  }
  float largest = -kInfinity;
  for (int b = 0; b < num_blocks; ++b) largest = larger(largest, blocks[b].largest);
  if (largest == -kInfinity) return;
  const double log_total = log_sum(blocks, num_blocks, largest);
  const bool penalties = has_penalties(p, r);
  int32_t token;
  if (!penalties && !(p.temperature[r] > 0)) {
    token = first_largest(logits, blocks, largest);
    if (p.num_top > 0) copy_finite(row, logits, p.vocab_size);
  } else {
    copy_finite(row, logits, p.vocab_size);
    if (penalties) penalise(p, r, row);
    const float penalised_max = penalties ? largest_value(row) : largest;
    if (penalised_max == -kInfinity) return;
    token = draw(p, r, row, penalised_max);
    if (p.num_top > 0) copy_finite(row, logits, p.vocab_size);
  }
  p.tokens[r] = token;
  p.logprobs[r] = logprob(logits[token], largest, log_total);
  if (p.num_top > 0) write_top(p, r, row, largest, log_total);
}

}  // namespace

template <>
void Kernels<kIsa>::sample(const SampleParams& p, Worker& worker) {
  const int num_blocks = (p.vocab_size + kBlock - 1) / kBlock;
  auto* stats = static_cast<Stats*>(worker.shared_scratch(sizeof(Stats) * p.num_rows * num_blocks));
  const int64_t num_tasks = int64_t{p.num_rows} * num_blocks;
  for (int64_t task = worker.take(); task < num_tasks; task = worker.take()) {
    const int64_t r = task / num_blocks;
    const int begin = static_cast<int>(task % num_blocks) * kBlock;
    stats[task] = block_stats(p.logits + r * p.logits_stride + begin, smaller(kBlock, p.vocab_size - begin));
  }
  worker.barrier();
  const Row row(worker.scratch(Row::bytes(p.vocab_size)), p.vocab_size);
  for (int64_t r = worker.take(); r < p.num_rows; r = worker.take()) {
    sample_row(p, static_cast<int>(r), row, stats + r * num_blocks, num_blocks);
  }
}

}  // namespace pagedserve::cpu
