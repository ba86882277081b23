// SPDX-License-Identifier: Apache-2.0
// quantize_row.h: writes tokens' rows as quantized_rows.h lays it out. Every instruction set gives the same bits.
#pragma once

#include "../quantized_rows.h"
#include "../team.h"
#include "simd.h"

namespace pagedserve::cpu {
namespace {

constexpr float kSmallestNormal = 1.17549435e-38f;

// The scale of a block with this amax, 0 where all its codes are 0. NaN and infinity give NaN.
inline float block_scale(float amax) {
  const float scale = amax / 127.f;
  if (!(scale <= 3.4028234e38f)) return __builtin_nanf("");
  return scale < kSmallestNormal ? 0.f : scale;
}

inline void finish_block(QuantizedBlock& to, int slot, float scale, int32_t sum) {
  to.scales[slot] = scale;
  to.scaled_sums[slot] = scale * static_cast<float>(sum);
  to.offsets[slot] = -128 * sum;
}

#if defined(__AVX512F__)

inline void quantize_block(const float* x, QuantizedBlock& to, int slot) {
  const __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
  // As integers, |x| keeps its order and NaN stands above infinity: no element can hide.
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const __m512i largest = _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(low), magnitude),
                                           _mm512_and_si512(_mm512_castps_si512(high), magnitude));
  const int32_t amax_bits = _mm512_reduce_max_epi32(largest);
  float amax;
  memcpy(&amax, &amax_bits, sizeof(amax));
  const float scale = block_scale(amax);
  if (!(scale > 0.f)) {
    memset(to.codes[slot], 0, kBlock);
    return finish_block(to, slot, scale, 0);
  }
  const __m512 divisor = _mm512_set1_ps(scale);
  const __m512i first = _mm512_cvtps_epi32(_mm512_div_ps(low, divisor));
  const __m512i second = _mm512_cvtps_epi32(_mm512_div_ps(high, divisor));
  auto* codes = reinterpret_cast<__m128i*>(to.codes[slot]);
  _mm_storeu_si128(codes, _mm512_cvtepi32_epi8(first));
  _mm_storeu_si128(codes + 1, _mm512_cvtepi32_epi8(second));
  finish_block(to, slot, scale, _mm512_reduce_add_epi32(_mm512_add_epi32(first, second)));
}

#else

inline void quantize_block(const float* x, QuantizedBlock& to, int slot) {
  int32_t amax_bits = 0;  // as integers, |x| keeps its order and NaN stands above infinity: no element can hide
  for (int i = 0; i < kBlock; ++i) {
    int32_t bits;
    memcpy(&bits, x + i, sizeof(bits));
    bits &= 0x7fffffff;
    amax_bits = bits > amax_bits ? bits : amax_bits;
  }
  float amax;
  memcpy(&amax, &amax_bits, sizeof(amax));
  const float scale = block_scale(amax);
  int32_t sum = 0;
  // Adding 1.5 * 2^23 leaves the nearest integer, ties to even, in the low bits of the fraction.
  constexpr float kRound = 12582912.f;
  for (int i = 0; i < kBlock; ++i) {
    const int32_t code = scale > 0.f ? static_cast<int32_t>((x[i] / scale + kRound) - kRound) : 0;
    to.codes[slot][i] = static_cast<int8_t>(code);
    sum += code;
  }
  finish_block(to, slot, scale, sum);
}

#endif

// Where a token's first block lies.
inline QuantizedBlock* tile_of(void* quantized, int64_t token, int32_t width) {
  return static_cast<QuantizedBlock*>(quantized) + token / kTileTokens * (width / kBlock);
}

// x [size], elements `first` and on of a token's row; both multiples of 32.
inline void quantize_part(const float* x, int32_t first, int32_t size, int64_t token, QuantizedBlock* tile) {
  for (int32_t i = 0; i < size; i += kBlock) {
    quantize_block(x + i, tile[(first + i) / kBlock], static_cast<int>(token % kTileTokens));
  }
}

inline void quantize_rows_of(const QuantizeRowsParams& p, Range tokens) {
  for (int64_t token = tokens.begin; token < tokens.end; ++token) {
    quantize_part(p.x + token * p.x_stride, 0, p.width, token, tile_of(p.quantized, token, p.width));
  }
}

}  // namespace
}  // namespace pagedserve::cpu
