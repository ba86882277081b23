// SPDX-License-Identifier: Apache-2.0
// simd_avx512.h: simd.h's words for AVX-512 F, BW, DQ and VL.
#pragma once

// Some versions of GCC take the header's own deliberately undefined operands for our mistake.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

namespace pagedserve::cpu {
namespace {

constexpr int kLanes = 16;
using Vec = __m512;
using Mask = __mmask16;

ALWAYS_INLINE Mask first(int n) { return n >= kLanes ? 0xffff : static_cast<Mask>((1u << n) - 1); }

ALWAYS_INLINE Vec splat(float x) { return _mm512_set1_ps(x); }
ALWAYS_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
ALWAYS_INLINE Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
ALWAYS_INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
ALWAYS_INLINE Vec sqrt(Vec a) { return _mm512_sqrt_ps(a); }
ALWAYS_INLINE Vec abs(Vec a) { return _mm512_abs_ps(a); }
ALWAYS_INLINE Vec round(Vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
ALWAYS_INLINE Mask less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
ALWAYS_INLINE Vec select(Mask mask, Vec a, Vec b) { return _mm512_mask_blend_ps(mask, b, a); }
ALWAYS_INLINE Vec times_power_of_two(Vec a, Vec n) { return _mm512_scalef_ps(a, n); }
ALWAYS_INLINE float first_lane(Vec a) { return _mm512_cvtss_f32(a); }
// 0, 1, 2, ...
ALWAYS_INLINE Vec lane_numbers() { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

ALWAYS_INLINE Vec from_f16(__m256i bits) { return _mm512_cvtph_ps(bits); }
ALWAYS_INLINE Vec from_bf16(__m256i bits) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
// e4m3 has f16's layout with three exponent bits fewer: widen, shift, and correct the bias by 2^8.
ALWAYS_INLINE Vec from_f8(__m128i bits) {
  const __m256i wide = _mm256_slli_epi16(_mm256_cvtepi8_epi16(bits), 7);
  const __m256i half = _mm256_and_si256(wide, _mm256_set1_epi16(static_cast<int16_t>(0xbf80)));
  const __mmask16 nan = _mm_cmpeq_epi8_mask(_mm_and_si128(bits, _mm_set1_epi8(0x7f)), _mm_set1_epi8(0x7f));
  return from_f16(_mm256_mask_blend_epi16(nan, half, _mm256_set1_epi16(0x7fff))) * splat(256.f);
}
ALWAYS_INLINE Vec from_i8(__m128i codes) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)); }

ALWAYS_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
ALWAYS_INLINE Vec load(const Bf16* p) { return from_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
ALWAYS_INLINE Vec load(const F16* p) { return from_f16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
ALWAYS_INLINE Vec load(const F8* p) { return from_f8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
ALWAYS_INLINE Vec load(const int8_t* p) { return from_i8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
ALWAYS_INLINE Vec load(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
ALWAYS_INLINE Vec load(const Bf16* p, int n) { return from_bf16(_mm256_maskz_loadu_epi16(first(n), p)); }
ALWAYS_INLINE Vec load(const F16* p, int n) { return from_f16(_mm256_maskz_loadu_epi16(first(n), p)); }
ALWAYS_INLINE Vec load(const F8* p, int n) { return from_f8(_mm_maskz_loadu_epi8(first(n), p)); }
ALWAYS_INLINE Vec load(const int8_t* p, int n) { return from_i8(_mm_maskz_loadu_epi8(first(n), p)); }

ALWAYS_INLINE void load_codes(const I4* p, Vec& a, Vec& b) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), nibble = _mm_set1_epi8(15);
  const __m128i even = _mm_and_si128(bytes, nibble), odd = _mm_and_si128(_mm_srli_epi16(bytes, 4), nibble);
  a = from_i8(_mm_sub_epi8(_mm_unpacklo_epi8(even, odd), _mm_set1_epi8(8)));
  b = from_i8(_mm_sub_epi8(_mm_unpackhi_epi8(even, odd), _mm_set1_epi8(8)));
}

ALWAYS_INLINE void split_even_odd(__m512i bits, Vec& even, Vec& odd) {
  even = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
  odd = _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
}
ALWAYS_INLINE void load_even_odd(const Bf16* p, Vec& even, Vec& odd) {
  split_even_odd(_mm512_loadu_si512(p), even, odd);
}
ALWAYS_INLINE void load_even_odd(const Bf16* p, Vec& even, Vec& odd, int n) {
  split_even_odd(_mm512_maskz_loadu_epi16(n >= 2 * kLanes ? ~0u : (1u << n) - 1, p), even, odd);
}

ALWAYS_INLINE __m256i to_bf16(Vec v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i low = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), low);
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(nan, _mm512_srli_epi32(rounded, 16), _mm512_set1_epi32(0x7fc0)));
}
ALWAYS_INLINE __m256i to_f16(Vec v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

ALWAYS_INLINE void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
ALWAYS_INLINE void store(Bf16* p, Vec v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16(v)); }
ALWAYS_INLINE void store(F16* p, Vec v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_f16(v)); }
ALWAYS_INLINE void store(float* p, Vec v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }
ALWAYS_INLINE void store(Bf16* p, Vec v, int n) { _mm256_mask_storeu_epi16(p, first(n), to_bf16(v)); }
ALWAYS_INLINE void store(F16* p, Vec v, int n) { _mm256_mask_storeu_epi16(p, first(n), to_f16(v)); }

// Quarters of four lanes: within a quarter (l0 + l2) + (l1 + l3), then (q0 + q2) + (q1 + q3).
// Quarter i of the result has the sums of v_0's quarter i, v_1's, v_2's and v_3's.
ALWAYS_INLINE Vec add_in_quarters(Vec v0, Vec v1, Vec v2, Vec v3) {
  const Vec v01 = _mm512_mask_blend_ps(0xcccc, v0, v1) + _mm512_shuffle_ps(v0, v1, 0x4e);
  const Vec v23 = _mm512_mask_blend_ps(0xcccc, v2, v3) + _mm512_shuffle_ps(v2, v3, 0x4e);
  return _mm512_shuffle_ps(v01, v23, 0x88) + _mm512_shuffle_ps(v01, v23, 0xdd);
}
// Half i of the result has (q0 + q2, q1 + q3) of v_i.
ALWAYS_INLINE Vec add_halves(Vec v0, Vec v1) {
  return _mm512_mask_blend_ps(0xff00, v0, v1) + _mm512_shuffle_f32x4(v0, v1, 0x4e);
}

// out[i] = the sum of v_i's lanes, in sum()'s order.
ALWAYS_INLINE void store_sums(float* out, Vec v0, Vec v1, Vec v2, Vec v3) {
  const Vec quarters = add_in_quarters(v0, v1, v2, v3);
  const __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps(quarters, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
}

// The same for rows of four, `stride` floats from one to the next.
template <int kRows>
ALWAYS_INLINE void store_sums(float* out, int stride, const Vec (&v)[kRows][4]) {
  static_assert(kRows <= 4);
  Vec rows[4];
  UNROLL
  for (int r = 0; r < 4; ++r) {
    const Vec(&row)[4] = v[r < kRows ? r : 0];
    rows[r] = add_in_quarters(row[0], row[1], row[2], row[3]);
  }
  const Vec low = add_halves(rows[0], rows[1]), high = add_halves(rows[2], rows[3]);
  const Vec sums = _mm512_shuffle_f32x4(low, high, 0x88) + _mm512_shuffle_f32x4(low, high, 0xdd);
  _mm_storeu_ps(out, _mm512_castps512_ps128(sums));
  if (kRows > 1) _mm_storeu_ps(out + stride, _mm512_extractf32x4_ps(sums, 1));
  if (kRows > 2) _mm_storeu_ps(out + 2 * stride, _mm512_extractf32x4_ps(sums, 2));
  if (kRows > 3) _mm_storeu_ps(out + 3 * stride, _mm512_extractf32x4_ps(sums, 3));
}

ALWAYS_INLINE float sum(Vec v) {
  float sums[4];
  store_sums(sums, v, v, v, v);
  return sums[0];
}

ALWAYS_INLINE float max_lane(Vec v) { return _mm512_reduce_max_ps(v); }

// rows[i] lane j becomes rows[j] lane i.
ALWAYS_INLINE void transpose(Vec (&rows)[kLanes]) {
  Vec t[kLanes];
  for (int i = 0; i < kLanes; i += 4) {
    const Vec low01 = _mm512_unpacklo_ps(rows[i], rows[i + 1]), high01 = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    const Vec low23 = _mm512_unpacklo_ps(rows[i + 2], rows[i + 3]),
              high23 = _mm512_unpackhi_ps(rows[i + 2], rows[i + 3]);
    t[i] = _mm512_shuffle_ps(low01, low23, 0x44);
    t[i + 1] = _mm512_shuffle_ps(low01, low23, 0xee);
    t[i + 2] = _mm512_shuffle_ps(high01, high23, 0x44);
    t[i + 3] = _mm512_shuffle_ps(high01, high23, 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    const Vec a = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x88), b = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd);
    const Vec c = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0x88), d = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0xdd);
    rows[i] = _mm512_shuffle_f32x4(a, c, 0x88);
    rows[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
    rows[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
    rows[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
}

}  // namespace
}  // namespace pagedserve::cpu
