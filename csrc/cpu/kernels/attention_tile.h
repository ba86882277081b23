// SPDX-License-Identifier: Apache-2.0
// attention_tile.h: keys and values staged as f32 once for many query rows.
//
//   key_tile    [ceil(num_tokens / kLanes), width, kLanes]    f32   blocks of tokens, transposed
//   value_tile  [num_tokens, width]                           f32   staged order
//
// Work   per block of keys every row reads the same width * kLanes floats: they stay in the first cache
// Sums   lane l of attention_rows.h's dot product holds the elements l, l + kLanes, ...: here each such
//        class is added on its own, and the classes then in sum()'s order, so the bits are the same
#pragma once

#include "attention_rows.h"

namespace pagedserve::cpu {
namespace {

constexpr int kTileRows = kLanes == 16 ? 4 : 2;

template <class T>
inline void stage_keys(const Rows& keys, int num_tokens, int head_dim, Ahead& ahead, float* tile) {
  const int width = padded(head_dim);
  for (int t = 0; t < num_tokens; t += kLanes, tile += width * kLanes) {
    const T* rows[kLanes];
    for (int j = 0; j < kLanes; ++j) {
      rows[j] = reinterpret_cast<const T*>(keys[smaller(t + j, num_tokens - 1)]);
    }
    for (int d = 0; d < width; d += kPair) {
      ahead.read(bytes_of<T>(kLanes * kPair));
      Vec a[kLanes], b[kLanes];
      for (int j = 0; j < kLanes; ++j) load_pair(at(rows[j], d), a[j], b[j], head_dim - d);
      transpose(a);
      transpose(b);
      for (int j = 0; j < kLanes; ++j) {
        store(tile + (d + j) * kLanes, a[j]);
        store(tile + (d + kLanes + j) * kLanes, b[j]);
      }
    }
  }
}

template <class T>
inline void stage_values(const Rows& values, int num_tokens, int head_dim, Ahead& ahead, float* tile) {
  const int width = padded(head_dim);
  for (int t = 0; t < num_tokens; ++t, tile += width) {
    const T* row = reinterpret_cast<const T*>(values[t]);
    for (int d = 0; d < width; d += kPair) {
      ahead.read(bytes_of<T>(kPair));
      Vec a, b;
      load_pair(at(row, d), a, b, head_dim - d);
      store(tile + d, a);
      store(tile + d + kLanes, b);
    }
  }
}

template <int kRows>
struct Sums {
  Vec row[kRows];
};

template <int kRows>
ALWAYS_INLINE Sums<kRows> operator+(const Sums<kRows>& a, const Sums<kRows>& b) {
  Sums<kRows> out;
  UNROLL
  for (int r = 0; r < kRows; ++r) out.row[r] = a.row[r] + b.row[r];
  return out;
}

ALWAYS_INLINE Vec add_product(const float* q, const float* keys, Vec sum) { return fma(splat(*q), load(keys), sum); }

// The products of elements l, l + kLanes, ... of each row with kLanes tokens.
template <int kRows, class T>
ALWAYS_INLINE Sums<kRows> add_class(const T* q, const T* block, int width) {
  Sums<kRows> sums;
  UNROLL
  for (int r = 0; r < kRows; ++r) sums.row[r] = zero();
  for (int d = 0; d < width; d += kLanes) {
    UNROLL
    for (int r = 0; r < kRows; ++r) sums.row[r] = add_product(q + r * width + d, block + d * kLanes, sums.row[r]);
  }
  return sums;
}

// Classes 4 * quarter to 4 * quarter + 3.
template <int kRows, class T>
ALWAYS_INLINE Sums<kRows> add_quarter(const T* q, const T* block, int width, int quarter) {
  const auto one = [&](int i) {
    const int lane = 4 * quarter + i;
    return add_class<kRows>(q + lane, block + lane * kLanes, width);
  };
  const Sums<kRows> even = one(0) + one(2);
  return even + (one(1) + one(3));
}

// logits[r, j] = q[r] . key j of one block of a key tile.
template <int kRows, class T>
inline void dot_tile_rows(const T* q, const T* block, int width, float* logits) {
  const auto quarter = [&](int i) { return add_quarter<kRows>(q, block, width, i); };
  Sums<kRows> sums;
  if constexpr (kLanes == 16) {
    sums = quarter(0) + quarter(2);
    sums = sums + (quarter(1) + quarter(3));
  } else if constexpr (kLanes == 8) {
    sums = quarter(0) + quarter(1);
  } else {
    sums = quarter(0);
  }
  UNROLL
  for (int r = 0; r < kRows; ++r) store(logits + r * kLogitStride, sums.row[r]);
}

template <class T>
inline void dot_tile(const T* q, int num_rows, const T* block, int width, float* logits) {
  with_count<kTileRows>(num_rows, [&](auto rows) { dot_tile_rows<rows.value>(q, block, width, logits); });
}

}  // namespace
}  // namespace pagedserve::cpu
