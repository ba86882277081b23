// SPDX-License-Identifier: Apache-2.0
// attention_bf16.h: attention_rows.h and attention_tile.h on the processor's products of bf16 pairs.
//
//   q            [num_rows, width]                                bf16   0 beyond head_dim
//   weights      [num_rows, 2 * kLogitStride]                     bf16   by position in the split, over the logits
//   key_tile     [ceil(num_tokens / kLanes), width / 2, kLanes]   pairs  of elements; blocks of tokens, transposed
//   value_tile   [ceil(num_tokens / 2), width]                    pairs  of positions, from an even one on; o's order
//   o            [num_rows, width]                                f32    in the order that unpacking two rows gives
//
// Sums    a dot product adds pairs of elements along head_dim in each lane, then the lanes as sum() does; a weighted
//         sum adds pairs of tokens, the first at an even place of the split. A token that a row does not see is a
//         weight of 0 and a value of 0 in its pair. Direct or staged, the bits are the same
// Bound   half the operations of the products in f32, and none to widen keys and values
#pragma once

#include "attention_tile.h"

namespace pagedserve::cpu {
namespace {

#if defined(__AVX512BF16__)
constexpr bool kHasBf16Products = true;

using Pairs = __m512i;

struct Bf16Pair {
  uint32_t bits;  // the first in the low half
};

ALWAYS_INLINE Vec add_pairs(Pairs a, Pairs b, Vec sum) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}
ALWAYS_INLINE Pairs load_pairs(const void* p) { return _mm512_loadu_si512(p); }
ALWAYS_INLINE Pairs load_pairs(const void* p, int elements) {
  return _mm512_maskz_loadu_epi16(elements >= kPair ? ~0u : (1u << elements) - 1, p);
}
ALWAYS_INLINE Vec add_product(const Bf16Pair* q, const Bf16Pair* keys, Vec sum) {
  return add_pairs(_mm512_set1_epi32(static_cast<int>(q->bits)), load_pairs(keys), sum);
}

// logits[r, j] = q[r] . keys[j]
template <class T, int kRows, class Dim>
ALWAYS_INLINE void dot_block(const Bf16* q, int width, const T* const (&keys)[kBlockTokens], Dim head_dim, Ahead& ahead,
                             float* logits) {
  Vec sums[kRows][kBlockTokens];
  UNROLL
  for (int r = 0; r < kRows; ++r) {
    UNROLL
    for (int j = 0; j < kBlockTokens; ++j) sums[r][j] = zero();
  }
  const auto add = [&](int d, const Pairs(&k)[kBlockTokens]) {
    UNROLL
    for (int r = 0; r < kRows; ++r) {
      const Pairs row = load_pairs(q + r * width + d);
      UNROLL
      for (int j = 0; j < kBlockTokens; ++j) sums[r][j] = add_pairs(row, k[j], sums[r][j]);
    }
  };
  Pairs k[kBlockTokens];
  int d = 0;
  for (; d + kPair <= head_dim; d += kPair) {
    ahead.read(bytes_of<T>(kBlockTokens * kPair));
    UNROLL
    for (int j = 0; j < kBlockTokens; ++j) k[j] = load_pairs(keys[j] + d);
    add(d, k);
  }
  if (d < head_dim) {
    UNROLL
    for (int j = 0; j < kBlockTokens; ++j) k[j] = load_pairs(keys[j] + d, head_dim - d);
    add(d, k);
  }
  store_sums(logits, kLogitStride, sums);
}

inline void stage_keys(const Rows& keys, int num_tokens, int head_dim, Ahead& ahead, Bf16Pair* tile) {
  const int width = padded(head_dim);
  for (int t = 0; t < num_tokens; t += kLanes, tile += width / 2 * kLanes) {
    const Bf16* rows[kLanes];
    for (int j = 0; j < kLanes; ++j) {
      rows[j] = reinterpret_cast<const Bf16*>(keys[smaller(t + j, num_tokens - 1)]);
    }
    for (int d = 0; d < width; d += kPair) {
      ahead.read(bytes_of<Bf16>(kLanes * kPair));
      Vec pairs[kLanes];
      for (int j = 0; j < kLanes; ++j) pairs[j] = _mm512_castsi512_ps(load_pairs(rows[j] + d, head_dim - d));
      transpose(pairs);
      for (int j = 0; j < kLanes; ++j) {
        _mm512_storeu_si512(tile + (d / 2 + j) * kLanes, _mm512_castps_si512(pairs[j]));
      }
    }
  }
}

// Where kPair elements of a token go in o, and so in a pair of tokens: first those that unpack "low", then "high".
constexpr int unpacked_place(int element) { return element / 8 * 4 + element % 4 + (element % 8 < 4 ? 0 : kLanes); }
ALWAYS_INLINE void unpack(Pairs even, Pairs odd, Pairs& low, Pairs& high) {
  low = _mm512_unpacklo_epi16(even, odd);
  high = _mm512_unpackhi_epi16(even, odd);
}

// Over logits that have been read.
ALWAYS_INLINE void store_narrow(float* row, int t, Vec weights) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(reinterpret_cast<Bf16*>(row) + t),
                      reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(weights)));
}

// Pairs of values straight from their rows: of tokens t and t + 1, t even.
struct PagedValues {
  Rows rows;  // of token `begin` and on
  int begin, head_dim;

  ALWAYS_INLINE const Bf16* row(int t) const { return reinterpret_cast<const Bf16*>(rows[t - begin]); }
  ALWAYS_INLINE void load(int t, int d, Pairs& low, Pairs& high) const {
    unpack(load_pairs(row(t) + d), load_pairs(row(t + 1) + d), low, high);
  }
  ALWAYS_INLINE void load(int t, int d, int n, Pairs& low, Pairs& high) const {
    unpack(load_pairs(row(t) + d, n), load_pairs(row(t + 1) + d, n), low, high);
  }
  // With 0 for the other token of t's pair.
  void load_single(int t, int d, Pairs& low, Pairs& high) const {
    const Pairs own = load_pairs(row(t) + d, head_dim - d), other = _mm512_setzero_si512();
    t % 2 == 0 ? unpack(own, other, low, high) : unpack(other, own, low, high);
  }
};

// Pairs of values from the tile, which begins at token `begin`, an even one.
struct StagedValues {
  const Bf16Pair* tile;
  int begin, width;

  ALWAYS_INLINE const Bf16Pair* pair(int t, int d) const { return tile + (t - begin) / 2 * width + d; }
  ALWAYS_INLINE void load(int t, int d, Pairs& low, Pairs& high) const {
    low = load_pairs(pair(t, d)), high = load_pairs(pair(t, d) + kLanes);
  }
  ALWAYS_INLINE void load(int t, int d, int, Pairs& low, Pairs& high) const { load(t, d, low, high); }
  void load_single(int t, int d, Pairs& low, Pairs& high) const {
    const Pairs own = _mm512_set1_epi32(t % 2 == 0 ? 0xffff : static_cast<int>(0xffff0000));
    load(t, d, low, high);
    low = _mm512_and_si512(low, own), high = _mm512_and_si512(high, own);
  }
};

inline void stage_values(const Rows& values, Span tokens, int head_dim, Ahead& ahead, Bf16Pair* tile) {
  const PagedValues source{values, tokens.begin, head_dim};
  const int width = padded(head_dim);
  for (int t = tokens.begin / 2 * 2; t < tokens.end; t += 2, tile += width) {
    const bool whole = t >= tokens.begin && t + 1 < tokens.end;
    for (int d = 0; d < width; d += kPair) {
      ahead.read(bytes_of<Bf16>(2 * kPair));
      Pairs low, high;
      if (whole) {
        source.load(t, d, head_dim - d, low, high);
      } else {
        source.load_single(larger(t, tokens.begin), d, low, high);
      }
      _mm512_storeu_si512(tile + d, low);
      _mm512_storeu_si512(tile + d + kLanes, high);
    }
  }
}

ALWAYS_INLINE uint32_t weight_bits(const Bf16* weights, int t) {
  uint32_t bits;
  memcpy(&bits, weights + t, sizeof(bits));
  return bits;
}

// o[r, first..] += weights[r, t] values[t, first..] for the whole pairs from begin to end; kPairs vectors of a row.
template <int kRows, int kPairs, class Values, class Dim>
inline void add_weighted_pairs(const Bf16* weights, const Values& values, int begin, int end, int first, Dim head_dim,
                               Ahead& ahead, float* o) {
  const int width = padded(head_dim), left = head_dim - first - (kPairs - 1) * kPair;
  const int tail = head_dim % kPair == 0 ? kPair : smaller(left, kPair);  // of the last vector
  o += first;
  Ahead here = ahead;
  Vec sums[kRows][2 * kPairs];
  UNROLL
  for (int r = 0; r < kRows; ++r) {
    UNROLL
    for (int i = 0; i < 2 * kPairs; ++i) sums[r][i] = load(o + r * width + i * kLanes);
  }
  for (int t = begin; t < end; t += 2) {
    here.read(bytes_of<Bf16>(2 * kPairs * kPair));
    Pairs v[2 * kPairs];
    UNROLL
    for (int i = 0; i + 1 < kPairs; ++i) values.load(t, first + i * kPair, v[2 * i], v[2 * i + 1]);
    if (tail == kPair) {
      values.load(t, first + (kPairs - 1) * kPair, v[2 * kPairs - 2], v[2 * kPairs - 1]);
    } else {
      values.load(t, first + (kPairs - 1) * kPair, tail, v[2 * kPairs - 2], v[2 * kPairs - 1]);
    }
    UNROLL
    for (int r = 0; r < kRows; ++r) {
      const Pairs weight = _mm512_set1_epi32(static_cast<int>(weight_bits(weights + r * 2 * kLogitStride, t)));
      UNROLL
      for (int i = 0; i < 2 * kPairs; ++i) sums[r][i] = add_pairs(weight, v[i], sums[r][i]);
    }
  }
  UNROLL
  for (int r = 0; r < kRows; ++r) {
    UNROLL
    for (int i = 0; i < 2 * kPairs; ++i) store(o + r * width + i * kLanes, sums[r][i]);
  }
  ahead = here;
}

// o += weight of token t times its value, in t's pair with a weight of 0.
template <class Values>
inline void add_single(const Bf16* weights, const Values& values, int t, int width, float* o) {
  const uint32_t own = t % 2 == 0 ? 0xffff : 0xffff0000;
  const Pairs weight = _mm512_set1_epi32(static_cast<int>(weight_bits(weights, t / 2 * 2) & own));
  for (int d = 0; d < width; d += kPair) {
    Pairs low, high;
    values.load_single(t, d, low, high);
    store(o + d, add_pairs(weight, low, load(o + d)));
    store(o + d + kLanes, add_pairs(weight, high, load(o + d + kLanes)));
  }
}

// o[r, :] += sum over `tokens` of weights[r, t] values[t, :], for at most kSumRows rows; one row where an end is odd.
template <class Values, class Dim>
inline void sum_pairs(const Bf16* weights, int num_rows, const Values& values, Span tokens, Dim head_dim, Ahead& ahead,
                      float* o) {
  const int width = padded(head_dim), begin = tokens.begin + tokens.begin % 2, end = tokens.end / 2 * 2;
  if (begin != tokens.begin) add_single(weights, values, tokens.begin, width, o);
  if (begin < end) {
    with_count<kSumRows>(num_rows, [&](auto rows) {
      for (int d = 0; d < head_dim; d += kSumPairs * kPair) {
        with_count<kSumPairs>(smaller(kSumPairs, (width - d) / kPair), [&](auto count) {
          add_weighted_pairs<rows.value, count.value>(weights, values, begin, end, d, head_dim, ahead, o);
        });
      }
    });
  }
  if (end != tokens.end && end >= tokens.begin) add_single(weights, values, end, width, o);
}

#else
constexpr bool kHasBf16Products = false;
#endif

}  // namespace
}  // namespace pagedserve::cpu
