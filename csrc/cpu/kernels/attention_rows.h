// SPDX-License-Identifier: Apache-2.0
// attention_rows.h: dot products with keys, and weighted sums of values, for a handful of query rows.
//
//   q        [num_rows, width]            f32   in the keys' staged order, 0 beyond head_dim
//   logits   [num_rows, kLogitStride]     f32   by position in the split
//   o        [num_rows, width]            f32   in the values' staged order
//   rows     [num_tokens]                       each token's key or value, by position (attention_tokens.h)
//
// Staged order is load_pair's: for bf16 the even elements of a pair come before the odd ones.
// Sums    a dot product adds along head_dim in each lane, then the lanes as sum() does; a weighted sum
//         adds position by position. attention_tile.h gives the same bits.
#pragma once

#include "attention_ahead.h"

namespace pagedserve::cpu {
namespace {

constexpr int kLogitStride = kSplit + 16;  // dot products come in groups, and the last may run over
constexpr int kPair = 2 * kLanes;
constexpr int kBlockTokens = 4;
constexpr int kBlockRows = kLanes == 16 ? 4 : 2;  // of a dot product: 16 sums in 32 registers, 8 in 16
constexpr int kSumRows = kLanes == 16 ? 6 : 4;    // of a weighted sum
constexpr int kSumPairs = kLanes == 16 ? 2 : 1;

template <int n>
struct Count {
  static constexpr int value = n;
  constexpr operator int() const { return n; }
};

// Calls body(Count<n>()), 1 <= n <= kMax.
template <int kMax, class Body>
inline void with_count(int n, const Body& body) {
  if constexpr (kMax > 1) {
    if (n < kMax) return with_count<kMax - 1>(n, body);
  }
  body(Count<kMax>());
}

// Calls body(head_dim), the usual ones as constants: 14.7 ns a token and KV head of a decode where it was 16.6 (Zen 4,
// head_dim 128, a group of 4, keys and values in the second cache).
template <class Body>
inline void with_head_dim(int head_dim, const Body& body) {
  if (head_dim == 64) return body(Count<64>());
  if (head_dim == 128) return body(Count<128>());
  body(head_dim);
}

constexpr int padded(int head_dim) { return static_cast<int>(ceil_div(head_dim, kPair)) * kPair; }

template <int kRows>
ALWAYS_INLINE void add_products(const float* q, int width, const Vec (&a)[kBlockTokens], const Vec (&b)[kBlockTokens],
                                Vec (&sums)[kRows][kBlockTokens]) {
  UNROLL
  for (int r = 0; r < kRows; ++r) {
    const Vec q_a = load(q + r * width), q_b = load(q + r * width + kLanes);
    UNROLL
    for (int j = 0; j < kBlockTokens; ++j) sums[r][j] = fma(q_a, a[j], sums[r][j]);
    UNROLL
    for (int j = 0; j < kBlockTokens; ++j) sums[r][j] = fma(q_b, b[j], sums[r][j]);
  }
}

// logits[r, j] = q[r] . keys[j]
template <class T, int kRows, class Dim>
ALWAYS_INLINE void dot_block(const float* q, int width, const T* const (&keys)[kBlockTokens], Dim head_dim,
                             Ahead& ahead, float* logits) {
  Vec sums[kRows][kBlockTokens];
  UNROLL
  for (int r = 0; r < kRows; ++r) {
    UNROLL
    for (int j = 0; j < kBlockTokens; ++j) sums[r][j] = zero();
  }
  Vec a[kBlockTokens], b[kBlockTokens];
  int d = 0;
  if (sizeof(T) == 1) ahead.read(bytes_of<T>(kBlockTokens * head_dim));
  for (; d + kPair <= head_dim; d += kPair) {
    if (sizeof(T) > 1) ahead.read(bytes_of<T>(kBlockTokens * kPair));
    UNROLL
    for (int j = 0; j < kBlockTokens; ++j) load_pair(at(keys[j], d), a[j], b[j]);
    add_products<kRows>(q + d, width, a, b, sums);
  }
  if (d < head_dim) {
    UNROLL
    for (int j = 0; j < kBlockTokens; ++j) load_pair(at(keys[j], d), a[j], b[j], head_dim - d);
    add_products<kRows>(q + d, width, a, b, sums);
  }
  store_sums(logits, kLogitStride, sums);
}

// logits[r, t] = q[r] . keys[t] for num_tokens tokens and at most kBlockRows rows.
template <class T, class Q, class Dim>
inline void dot_rows(const Q* q, int num_rows, const Rows& keys, int num_tokens, Dim head_dim, Ahead& ahead,
                     float* logits) {
  const int width = padded(head_dim);
  with_count<kBlockRows>(num_rows, [&](auto rows) {
    Ahead here = ahead;
    for (int t = 0; t < num_tokens; t += kBlockTokens) {
      const T* block[kBlockTokens];
      UNROLL
      for (int j = 0; j < kBlockTokens; ++j) {
        block[j] = reinterpret_cast<const T*>(keys[smaller(t + j, num_tokens - 1)]);
      }
      dot_block<T, rows.value>(q, width, block, head_dim, here, logits + t);
    }
    ahead = here;
  });
}

// o[r, :] += weights[r, t] values[t, :] for num_tokens tokens; kPairs pairs, the last with `tail` elements.
template <class T, int kRows, int kPairs>
inline void add_weighted(const float* weights, const Rows& values, int num_tokens, int first, int tail, Ahead& ahead,
                         float* o, int width) {
  Ahead here = ahead;
  Vec sums[kRows][2 * kPairs];
  UNROLL
  for (int r = 0; r < kRows; ++r) {
    UNROLL
    for (int i = 0; i < 2 * kPairs; ++i) sums[r][i] = load(o + r * width + i * kLanes);
  }
  for (int t = 0; t < num_tokens; ++t) {
    const T* value = at(reinterpret_cast<const T*>(values[t]), first);
    if (sizeof(T) > 1 || t % 4 == 0) here.read(bytes_of<T>(kPairs * kPair) * (sizeof(T) > 1 ? 1 : 4));
    Vec v[2 * kPairs];
    UNROLL
    for (int i = 0; i + 1 < kPairs; ++i) load_pair(at(value, i * kPair), v[2 * i], v[2 * i + 1]);
    if (tail == kPair) {
      load_pair(at(value, (kPairs - 1) * kPair), v[2 * kPairs - 2], v[2 * kPairs - 1]);
    } else {
      load_pair(at(value, (kPairs - 1) * kPair), v[2 * kPairs - 2], v[2 * kPairs - 1], tail);
    }
    UNROLL
    for (int r = 0; r < kRows; ++r) {
      const Vec weight = splat(weights[r * kLogitStride + t]);
      UNROLL
      for (int i = 0; i < 2 * kPairs; ++i) sums[r][i] = fma(weight, v[i], sums[r][i]);
    }
  }
  UNROLL
  for (int r = 0; r < kRows; ++r) {
    UNROLL
    for (int i = 0; i < 2 * kPairs; ++i) store(o + r * width + i * kLanes, sums[r][i]);
  }
  ahead = here;
}

// o[r, :] += sum over t of weights[r, t] values[t, :], for at most kSumRows rows.
template <class T>
inline void sum_rows(const float* weights, int num_rows, const Rows& values, int num_tokens, int head_dim, Ahead& ahead,
                     float* o) {
  const int width = padded(head_dim);
  with_count<kSumRows>(num_rows, [&](auto rows) {
    for (int d = 0; d < head_dim; d += kSumPairs * kPair) {
      const int left = smaller(kSumPairs * kPair, head_dim - d);
      const int pairs = static_cast<int>(ceil_div(left, kPair));
      with_count<kSumPairs>(pairs, [&](auto count) {
        add_weighted<T, rows.value, count.value>(weights, values, num_tokens, d, left - (pairs - 1) * kPair, ahead,
                                                 o + d, width);
      });
    }
  });
}

}  // namespace
}  // namespace pagedserve::cpu
