// SPDX-License-Identifier: Apache-2.0
// attention_ahead.h: fetching what a worker will read, evenly while it computes.
//
// A worker reads stretches: the keys of one split of one head, their values, the keys of the next head. Reading one, it
// fetches the next, a piece at a time as it goes. Into the second cache, which takes more requests at a time than the
// first.
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

// Rows to fetch while others are read.
class Ahead {
 public:
  Ahead() = default;
  // count: of rows. read_bytes: that are read meanwhile.
  Ahead(const Rows& rows, int count, int row_bytes, int64_t read_bytes)
      : base_(rows.base),
        next_(rows.offsets),
        end_(next_ + count),
        row_bytes_(row_bytes),
        piece_bytes_(smaller(row_bytes, kPieceBytes)) {
    const int64_t pieces = count * ceil_div(row_bytes, kPieceBytes);
    if (pieces > 0) bytes_a_piece_ = larger(static_cast<int>(read_bytes / pieces), 1);
  }

  // So many bytes of the stretch are read now.
  ALWAYS_INLINE void read(int bytes) {
    for (due_ += bytes; due_ >= bytes_a_piece_ && next_ != end_; due_ -= bytes_a_piece_) {
      const char* piece = base_ + *next_ + in_row_;
      for (int byte = 0; byte < piece_bytes_; byte += kLineBytes) __builtin_prefetch(piece + byte, 0, 2);
      in_row_ += kPieceBytes;
      if (in_row_ >= row_bytes_) in_row_ = 0, ++next_;
    }
  }

 private:
  const char* base_ = nullptr;
  const int64_t *next_ = nullptr, *end_ = nullptr;
  int row_bytes_ = 0, piece_bytes_ = 0, in_row_ = 0;
  int bytes_a_piece_ = 1 << 30, due_ = 0;
};

}  // namespace
}  // namespace pagedserve::cpu
