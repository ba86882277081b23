// SPDX-License-Identifier: Apache-2.0
// linear_tile.h: the products of one panel of 16 output rows with a few tokens.
//
// Lane i of a vector is output row i of the panel. Every output is one chain of fused multiply-adds in the order of
// in_features, whatever the number of tokens beside it.
#pragma once

#include "../quantized_rows.h"
#include "simd.h"

namespace pagedserve::cpu {
namespace {

#if defined(__AVX512F__)

constexpr int kMaxTokens = 8;  // 8 sums, 8 vectors of codes, 4 integer sums; 16 tokens are no faster
using Ints = __m512i;

inline Vec to_float(Ints x) { return _mm512_cvtepi32_ps(x); }
inline Ints four_codes(const int8_t* p) {
  int32_t word;
  memcpy(&word, p, sizeof(word));
  return _mm512_set1_epi32(word);
}

// The codes of one block, unpacked once for all tokens.
struct BlockCodes {
  Ints groups[8];  // group j: elements 4 j .. 4 j + 3 of each row

  template <WeightFormat format>
  static BlockCodes load(const uint8_t* p, int) {
    BlockCodes codes;
    if constexpr (format == WeightFormat::kQ8) {
      for (int j = 0; j < 8; ++j) codes.groups[j] = _mm512_loadu_si512(p + 64 * j);
    } else {
      const Ints mask = _mm512_set1_epi8(15);
      for (int j = 0; j < 4; ++j) {
        const Ints both = _mm512_loadu_si512(p + 64 * j);
        codes.groups[j] = _mm512_and_si512(both, mask);
        codes.groups[j + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
      }
    }
    return codes;
  }

  // dots[t] = sum over the block of weight code * x code.
  template <WeightFormat format, int tokens>
  void dot(const QuantizedBlock& x, int slot, Ints (&dots)[tokens]) const {
    for (int t = 0; t < tokens; ++t) {
      dots[t] = format == WeightFormat::kQ8 ? _mm512_set1_epi32(x.offsets[slot + t]) : _mm512_setzero_si512();
    }
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
#pragma GCC unroll 4
      for (int t = 0; t < tokens; ++t) {
        dots[t] = _mm512_dpbusd_epi32(dots[t], groups[j], four_codes(x.codes[slot + t] + 4 * j));
      }
    }
  }
};

#elif defined(__AVX2__)

constexpr int kMaxTokens = 4;
using Ints = __m256i;

inline Vec to_float(Ints x) { return _mm256_cvtepi32_ps(x); }
inline Ints load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const Ints*>(p)); }
inline Ints four_codes(const int8_t* p) {
  int32_t word;
  memcpy(&word, p, sizeof(word));
  return _mm256_set1_epi32(word);
}

struct BlockCodes {
  const uint8_t* codes;

  template <WeightFormat>
  static BlockCodes load(const uint8_t* p, int first_row) {
    return {p + 4 * first_row};
  }

  template <WeightFormat format, int tokens>
  void dot(const QuantizedBlock& x, int slot, Ints (&dots)[tokens]) const {
    const Ints ones = _mm256_set1_epi16(1);
    for (int t = 0; t < tokens; ++t) dots[t] = _mm256_setzero_si256();
    if constexpr (format == WeightFormat::kQ8) {
      // |w| <= 128 and |x| <= 127: a pair of products, at most 32512, stays inside 16 bits.
      for (int j = 0; j < 8; ++j) {
        const Ints w = _mm256_xor_si256(load_bytes(codes + 64 * j), _mm256_set1_epi8(-128));
        const Ints magnitude = _mm256_abs_epi8(w);
        for (int t = 0; t < tokens; ++t) {
          const Ints signed_x = _mm256_sign_epi8(four_codes(x.codes[slot + t] + 4 * j), w);
          dots[t] = _mm256_add_epi32(dots[t], _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, signed_x), ones));
        }
      }
    } else {
      // Eight pairs of products of at most 15 * 127 each sum to at most 30480, inside 16 bits.
      const Ints mask = _mm256_set1_epi8(15);
      for (int j = 0; j < 4; ++j) {
        const Ints both = load_bytes(codes + 64 * j);
        const Ints low = _mm256_and_si256(both, mask), high = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
        for (int t = 0; t < tokens; ++t) {
          const int8_t* from = x.codes[slot + t] + 4 * j;
          dots[t] = _mm256_add_epi16(dots[t], _mm256_maddubs_epi16(low, four_codes(from)));
          dots[t] = _mm256_add_epi16(dots[t], _mm256_maddubs_epi16(high, four_codes(from + 16)));
        }
      }
      for (int t = 0; t < tokens; ++t) dots[t] = _mm256_madd_epi16(dots[t], ones);
    }
  }
};

#else

constexpr int kMaxTokens = 4;
struct Ints {
  int32_t lanes[kLanes];
};

inline Vec to_float(const Ints& x) {
  Vec v;
  for (int i = 0; i < kLanes; ++i) v[i] = static_cast<float>(x.lanes[i]);
  return v;
}

struct BlockCodes {
  const uint8_t* codes;

  template <WeightFormat>
  static BlockCodes load(const uint8_t* p, int first_row) {
    return {p + 4 * first_row};
  }

  template <WeightFormat format, int tokens>
  void dot(const QuantizedBlock& x, int slot, Ints (&dots)[tokens]) const {
    for (int t = 0; t < tokens; ++t) {
      const int8_t* from = x.codes[slot + t];
      for (int row = 0; row < kLanes; ++row) {
        int32_t sum = 0;
        for (int i = 0; i < (format == WeightFormat::kQ8 ? kBlock : kBlock / 2); ++i) {
          const int code = codes[(i / 4 * kPanelRows + row) * 4 + i % 4];
          sum += format == WeightFormat::kQ8 ? (code - 128) * from[i]
                                             : (code & 15) * from[i] + (code >> 4) * from[i + kBlock / 2];
        }
        dots[t].lanes[row] = sum;
      }
    }
  }
};

#endif

template <bool half_scales>
inline Vec load_scales(const uint8_t* p, int first_row) {
  if constexpr (half_scales) return load(reinterpret_cast<const F16*>(p) + first_row);
  return load(reinterpret_cast<const float*>(p) + first_row);
}

// How far in front of its reads a worker asks for a weight's bytes, into the second-level cache: what goes to the first
// takes one of the few misses it can have outstanding. All of a 96 MB model for 1 token, Zen 4, 2 cores: 8 KB ahead
// into L2 58 GB/s, into L1 48, past the caches 49; 6 KB a tenth less; the processor's own prefetching 26.
constexpr int64_t kAheadBytes = 8192;

inline void fetch_line(const uint8_t* p) { __builtin_prefetch(p, 0, 2); }

struct Panel {
  const uint8_t* data;
  const uint8_t* ahead;  // what to fetch while it is worked on, byte for byte
  int64_t blocks;        // of q8 and q4
};

// One sum a token, of kLanes rows of the panel.
template <int tokens>
struct Sums {
  Vec of[tokens];

  // From registers: sums that were kept here all along, the compiler would write back at every step.
  static Sums from(const Vec (&sums)[tokens]) {
    Sums result;
#pragma GCC unroll 8
    for (int t = 0; t < tokens; ++t) result.of[t] = sums[t];
    return result;
  }
};

// sums[t] = row . x of `tokens` tokens from `slot` of a tile on; per block first the minimums' term, then the codes'.
template <WeightFormat format, bool half_scales, int tokens>
inline Sums<tokens> multiply_low_bit(const Panel& panel, int first_row, const QuantizedBlock* tile, int slot) {
  constexpr int kGroup = tokens < 4 ? tokens : 4;  // integer chains in flight
  constexpr PanelLayout layout = panel_layout(format, kBlock, half_scales);
  const uint8_t *at = panel.data, *ahead = panel.ahead;
  Vec sums[tokens];
#pragma GCC unroll 8
  for (int t = 0; t < tokens; ++t) sums[t] = zero();
  for (int64_t block = 0; block < panel.blocks; ++block) {
    for (int i = 0; i < layout.block_bytes; i += 64) fetch_line(ahead + i);
    const auto codes = BlockCodes::load<format>(at, first_row);
    const Vec scales = load_scales<half_scales>(at + layout.scales, first_row);
    const Vec minimums =
        format == WeightFormat::kQ4 ? load_scales<half_scales>(at + layout.minimums, first_row) : zero();
#pragma GCC unroll 2
    for (int first = 0; first < tokens; first += kGroup) {
      Ints dots[kGroup];
      codes.template dot<format>(*tile, slot + first, dots);
#pragma GCC unroll 4
      for (int t = 0; t < kGroup; ++t) {
        const int token = slot + first + t;
        Vec& sum = sums[first + t];
        if (format == WeightFormat::kQ4) sum = fma(minimums, splat(tile->scaled_sums[token]), sum);
        sum = fma(to_float(dots[t]), scales * splat(tile->scales[token]), sum);
      }
    }
    at += layout.block_bytes, ahead += layout.block_bytes, ++tile;
  }
  return Sums<tokens>::from(sums);
}

// The same for f32 and bf16: sums[t] = row . x[t].
template <WeightFormat format, int tokens>
inline Sums<tokens> multiply_dense(const Panel& panel, int first_row, const float* x, int64_t x_stride,
                                   int32_t in_features) {
  Vec sums[tokens];
#pragma GCC unroll 8
  for (int t = 0; t < tokens; ++t) sums[t] = zero();
  const uint8_t* ahead = panel.ahead;
  if constexpr (format == WeightFormat::kF32) {
    const float* w = reinterpret_cast<const float*>(panel.data) + first_row;
    for (int32_t k = 0; k < in_features; ++k, w += kPanelRows, ahead += 64) {
      fetch_line(ahead);
      const Vec column = load(w);
#pragma GCC unroll 8
      for (int t = 0; t < tokens; ++t) sums[t] = fma(column, splat(x[t * x_stride + k]), sums[t]);
    }
    return Sums<tokens>::from(sums);
  }
  const Bf16* w = reinterpret_cast<const Bf16*>(panel.data) + 2 * first_row;
  for (int32_t k = 0; k < in_features; k += 2, w += 2 * kPanelRows, ahead += 64) {
    fetch_line(ahead);
    Vec even, odd;
    load_even_odd(w, even, odd);
#pragma GCC unroll 8
    for (int t = 0; t < tokens; ++t) {
      sums[t] = fma(even, splat(x[t * x_stride + k]), sums[t]);
      if (k + 1 < in_features) sums[t] = fma(odd, splat(x[t * x_stride + k + 1]), sums[t]);
    }
  }
  return Sums<tokens>::from(sums);
}

}  // namespace
}  // namespace pagedserve::cpu
