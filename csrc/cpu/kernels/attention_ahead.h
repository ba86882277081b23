// SPDX-License-Identifier: Apache-2.0
// attention_ahead.h: fetching what a worker will read, evenly while it computes.
//
// A worker reads stretches: the keys of one split of one head, their values, the keys of the next head. Reading one, it
// fetches the next (of the first of a task, itself too), a piece at a time as it goes. Into the second cache, which
// takes more requests at a time than the first.
#pragma once

#include "attention_tokens.h"

namespace pagedserve::cpu {
namespace {

constexpr int kLineBytes = 64;
constexpr int kPieceBytes = 4 * kLineBytes;  // fetched at once, at most

// The bytes of n elements.
template <class T>
constexpr int bytes_of(int n) {
  return n * static_cast<int>(sizeof(T));
}
template <>
constexpr int bytes_of<I4>(int n) {
  return n / 2;
}

// Rows to fetch while others are read: those of `now`, then those of `later`.
class Ahead {
 public:
  struct Part {
    Rows rows;
    int count;
  };

  Ahead() = default;
  // row_bytes: of a row to fetch. read_bytes: that are read meanwhile.
  Ahead(const Part& now, const Part& later, int row_bytes, int64_t read_bytes)
      : base_(now.rows.base),
        next_(now.rows.offsets),
        end_(next_ + now.count),
        later_(later),
        row_bytes_(row_bytes),
        piece_bytes_(smaller(row_bytes, kPieceBytes)) {
    const int64_t pieces = (now.count + later.count) * ceil_div(row_bytes, kPieceBytes);
    if (pieces > 0) bytes_a_piece_ = larger(static_cast<int>(read_bytes / pieces), 1);
    if (now.count == 0) turn();
  }

  // So many bytes of the stretch are read now.
  ALWAYS_INLINE void read(int bytes) {
    for (due_ += bytes; due_ >= bytes_a_piece_ && next_ != end_; due_ -= bytes_a_piece_) {
      const char* piece = base_ + *next_ + in_row_;
      for (int byte = 0; byte < piece_bytes_; byte += kLineBytes) __builtin_prefetch(piece + byte, 0, 2);
      in_row_ += kPieceBytes;
      if (in_row_ < row_bytes_) continue;
      in_row_ = 0;
      if (++next_ == end_) turn();
    }
  }

 private:
  void turn() {
    base_ = later_.rows.base, next_ = later_.rows.offsets, end_ = next_ + later_.count;
    later_.count = 0;
  }

  const char* base_ = nullptr;
  const int64_t *next_ = nullptr, *end_ = nullptr;
  Part later_ = {};
  int row_bytes_ = 0, piece_bytes_ = 0, in_row_ = 0;
  int bytes_a_piece_ = 1 << 30, due_ = 0;
};

}  // namespace
}  // namespace pagedserve::cpu
