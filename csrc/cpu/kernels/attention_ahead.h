// SPDX-License-Identifier: Apache-2.0
// attention_ahead.h: fetching what a worker will read, evenly while it computes.
//
// A worker reads stretches: the keys of one split of one head, their values, the keys of the next head. Reading one, it
// fetches the next (of the first of a task, itself too), a piece at a time as it goes. Into the second cache, which
// takes more requests at a time than the first.
//
// Each piece is fetched twice. The processor drops a fetch where it has no room for it at that moment: 6 % of values
// fetched among products with keys, 10 to 14 % of keys among those with values (the machine of attention_tokens.h), and
// what was dropped is waited for. A little later it rarely is: as a share of reading in order, 66 -> 75 %, at 0.5 ns of
// 15 a token and KV head. And the pieces of a stretch are listed before it, in vectors: 0.6 ns, where to find each when
// it is due took 2.3; together 88 %.
#pragma once

#include "attention_tokens.h"

namespace pagedserve::cpu {
namespace {

constexpr int kLineBytes = 64;
constexpr int kPieceLines = 4;  // fetched at once, at most
constexpr int kPieceBytes = kPieceLines * kLineBytes;
constexpr int kRowPieces = 4;  // at most: of 256 floats
constexpr int kAgain = 32;     // pieces

// The bytes of n elements.
template <class T>
constexpr int bytes_of(int n) {
  return n * static_cast<int>(sizeof(T));
}
template <>
constexpr int bytes_of<I4>(int n) {
  return n / 2;
}

// Fills `pieces` with those of `count` rows; returns how many.
inline int list_pieces(const Rows& rows, int count, int row_bytes, const char** pieces) {
  const char* const base = rows.base;
  const int64_t* const offsets = rows.offsets;
  if (row_bytes <= kPieceBytes) {  // in vectors
    for (int i = 0; i < count; ++i) pieces[i] = base + offsets[i];
    return count;
  }
  const char** end = pieces;
  for (int i = 0; i < count; ++i) {
    for (int byte = 0; byte < row_bytes; byte += kPieceBytes) *end++ = base + offsets[i] + byte;
  }
  return static_cast<int>(end - pieces);
}

// Fetches a list of pieces while something else is read, each twice: kAgain pieces later once more.
class Ahead {
 public:
  Ahead() = default;
  // pieces: from kAgain before the first to fetch. row_bytes: of the rows that they are of. read_bytes: that are read
  // meanwhile.
  Ahead(const char* const* pieces, int count, int row_bytes, int64_t read_bytes)
      : next_(pieces + kAgain),
        end_(next_ + count),
        lines_(smaller(static_cast<int>(ceil_div(row_bytes, kLineBytes)), kPieceLines)) {
    if (count == 0) return;
    bytes_a_piece_ = larger(static_cast<int>(read_bytes / count), 1);
    due_ = bytes_a_piece_ - 1;
  }

  // So many bytes of the stretch are read now.
  ALWAYS_INLINE void read(int bytes) {
    for (due_ -= bytes; due_ < 0; due_ += bytes_a_piece_) {
      fetch(next_[0]);
      fetch(next_[-kAgain]);
      if (++next_ == end_) bytes_a_piece_ = kNever;
    }
  }

 private:
  template <int kLines>
  ALWAYS_INLINE static void fetch_lines(const char* piece) {
    UNROLL
    for (int i = 0; i < kLines; ++i) __builtin_prefetch(piece + i * kLineBytes, 0, 2);
  }
  ALWAYS_INLINE void fetch(const char* piece) const {
    if (lines_ == kPieceLines) return fetch_lines<kPieceLines>(piece);
    if (lines_ == 2) return fetch_lines<2>(piece);
    for (int i = 0; i < lines_; ++i) fetch_lines<1>(piece + i * kLineBytes);
  }

  static constexpr int kNever = 1 << 30;

  const char *const *next_ = nullptr, *const *end_ = nullptr;
  int lines_ = 0;
  int bytes_a_piece_ = kNever, due_ = kNever;  // due_: bytes until the next piece
};

}  // namespace
}  // namespace pagedserve::cpu
