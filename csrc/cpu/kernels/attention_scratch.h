// SPDX-License-Identifier: Apache-2.0
// attention_scratch.h: a worker's own memory, and rows of q and o on their way into it and out of it.
#pragma once

#include "attention_bf16.h"
#include "attention_softmax.h"

namespace pagedserve::cpu {
namespace {

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
  Span* spans;            // [rows] tokens of the sequence
  TokenList lists[3];     // of an even split, of an odd one, and of what rows see that do not see all of it
  int64_t* tile_offsets;  // [kSplit] of value_tile's rows
  const char** pieces;    // [kAgain] fetched before, then those to fetch: of two stretches at most

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
    for (TokenList& list : lists) {
      for (int64_t** offsets : {&list.keys, &list.values, &list.key_scales, &list.value_scales}) {
        *offsets = carver.take<int64_t>(kSplit);
      }
    }
    tile_offsets = carver.take<int64_t>(kSplit);
    pieces = carver.take<const char*>(kAgain + 2 * kSplit * kRowPieces);
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

}  // namespace
}  // namespace pagedserve::cpu
