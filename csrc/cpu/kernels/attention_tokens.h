// SPDX-License-Identifier: Apache-2.0
// attention_tokens.h: where the tokens of a split lie, in the order in which they are read.
//
// A split that a row sees whole is read from eight places in turn: position 0, 1, 2, ..., 7, 8, ... is token 0, 32, 64,
// ..., 224, 1, ... of the split. Of part of a split, positions are tokens. Sums go by position, so the order is part of
// a row's arithmetic, and depends on what the row sees, never on pages.
//
// So the processor's own fetching, which stops at the end of a page, has seven more places to go on with.
// Measured on 2 cores of an EPYC 9004-series (32 sequences of 4,096 tokens, bf16, 8 heads of 128, pages of 16 at
// random), as a share of reading as much in order, in turn with it (53 GB/s), from 1, 2, 4, 8, 16 places: 72, 68, 80,
// 82, 83 %.
#pragma once

#include "simd.h"

namespace pagedserve::cpu {
namespace {

struct Span {
  int begin, end;
};

constexpr int kSplit = 256;  // tokens; part of the op's definition, see Numerics in DESIGN.md
constexpr int kStreams = 8;  // places that a whole split is read from in turn
constexpr int kStreamTokens = kSplit / kStreams;

// The position of a split's token where it is read whole.
constexpr int streamed_position(int token) { return token % kStreamTokens * kStreams + token / kStreamTokens; }

// Rows of keys or values by position.
struct Rows {
  const char* base;
  const int64_t* offsets;  // bytes

  ALWAYS_INLINE const char* operator[](int position) const { return base + offsets[position]; }
  Rows from(int position) const { return {base, offsets + position}; }
};

// Where the tokens of a split lie: bytes from the beginning of a head's row in page 0, by position; and floats, of
// their scales.
struct TokenList {
  int64_t *keys, *values, *key_scales, *value_scales;  // [kSplit] each; the last two only where there are scales
  Span tokens;                                         // of the sequence
  bool streamed;                                       // the split is whole, and read in kStreams

  int count() const { return tokens.end - tokens.begin; }
  // Positions of the split: tokens, or their places in the order of reading.
  Span positions() const { return {tokens.begin % kSplit, tokens.begin % kSplit + count()}; }
};

// Fills `out` with the offset of every token; page(i) is where the i-th page of the sequence begins.
template <class Page>
inline void list_offsets(Span tokens, bool streamed, int page_size, int64_t step, const Page& page, int64_t* out) {
  int in_page = tokens.begin % page_size, number = tokens.begin / page_size;
  for (int i = 0, count = tokens.end - tokens.begin; i < count; ++number, in_page = 0) {
    int64_t offset = page(number) + in_page * step;
    for (const int end = smaller(count, i + page_size - in_page); i < end; ++i, offset += step) {
      out[streamed ? streamed_position(i) : i] = offset;
    }
  }
}

}  // namespace
}  // namespace pagedserve::cpu
