// SPDX-License-Identifier: Apache-2.0
// simd_avx2.h: simd.h's words for AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>

namespace pagedserve::cpu {
namespace {

constexpr int kLanes = 8;
using Vec = __m256;
using Mask = __m256i;

ALWAYS_INLINE Vec splat(float x) { return _mm256_set1_ps(x); }
ALWAYS_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
ALWAYS_INLINE Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
ALWAYS_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
ALWAYS_INLINE Vec sqrt(Vec a) { return _mm256_sqrt_ps(a); }
ALWAYS_INLINE Vec abs(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.f), a); }
ALWAYS_INLINE Vec round(Vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
ALWAYS_INLINE Mask less(Vec a, Vec b) { return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
ALWAYS_INLINE Vec select(Mask mask, Vec a, Vec b) { return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(mask)); }
ALWAYS_INLINE float first_lane(Vec a) { return _mm256_cvtss_f32(a); }
// 0, 1, 2, ...
ALWAYS_INLINE Vec lane_numbers() { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }
ALWAYS_INLINE Mask first(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// In two factors, so that subnormal results and those near the largest float come out right.
ALWAYS_INLINE Vec times_power_of_two(Vec a, Vec n) {
  const __m256i power = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(power, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i low = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i high = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(power, half), bias), 23);
  return a * _mm256_castsi256_ps(low) * _mm256_castsi256_ps(high);
}

ALWAYS_INLINE Vec from_f16(__m128i bits) { return _mm256_cvtph_ps(bits); }
ALWAYS_INLINE Vec from_bf16(__m128i bits) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
// e4m3 has f16's layout with three exponent bits fewer: widen, shift, and correct the bias by 2^8.
ALWAYS_INLINE Vec from_f8(__m128i bits) {
  const __m128i codes = _mm_cvtepi8_epi16(bits);
  const __m128i half = _mm_and_si128(_mm_slli_epi16(codes, 7), _mm_set1_epi16(static_cast<int16_t>(0xbf80)));
  const __m128i nan = _mm_cmpeq_epi16(_mm_and_si128(codes, _mm_set1_epi16(0x7f)), _mm_set1_epi16(0x7f));
  return from_f16(_mm_or_si128(half, _mm_and_si128(nan, _mm_set1_epi16(0x7fff)))) * splat(256.f);
}
ALWAYS_INLINE Vec from_i8(__m128i codes) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)); }

ALWAYS_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
ALWAYS_INLINE Vec load(const Bf16* p) { return from_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
ALWAYS_INLINE Vec load(const F16* p) { return from_f16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
ALWAYS_INLINE Vec load(const F8* p) { return from_f8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
ALWAYS_INLINE Vec load(const int8_t* p) { return from_i8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
ALWAYS_INLINE Vec load(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }

ALWAYS_INLINE void load_codes(const I4* p, Vec& a, Vec& b) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)), nibble = _mm_set1_epi8(15);
  const __m128i even = _mm_and_si128(bytes, nibble), odd = _mm_and_si128(_mm_srli_epi16(bytes, 4), nibble);
  const __m128i codes = _mm_sub_epi8(_mm_unpacklo_epi8(even, odd), _mm_set1_epi8(8));
  a = from_i8(codes);
  b = from_i8(_mm_srli_si128(codes, 8));
}

ALWAYS_INLINE void load_even_odd(const Bf16* p, Vec& even, Vec& odd) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  even = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
  odd = _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
}
ALWAYS_INLINE void load_even_odd(const Bf16* p, Vec& even, Vec& odd, int n) {
  Bf16 padded[2 * kLanes] = {};
  memcpy(padded, p, smaller(n, 2 * kLanes) * sizeof(Bf16));
  load_even_odd(padded, even, odd);
}

ALWAYS_INLINE __m128i to_bf16(Vec v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i low = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), low);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i words = _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), _mm256_set1_epi32(0x7fc0), nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
ALWAYS_INLINE __m128i to_f16(Vec v) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

ALWAYS_INLINE void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
ALWAYS_INLINE void store(Bf16* p, Vec v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_bf16(v)); }
ALWAYS_INLINE void store(F16* p, Vec v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_f16(v)); }
ALWAYS_INLINE void store(float* p, Vec v, int n) { _mm256_maskstore_ps(p, first(n), v); }

// out[i] = the sum of v_i's lanes, in sum()'s order: within a half (l0 + l2) + (l1 + l3), then the halves.
ALWAYS_INLINE void store_sums(float* out, Vec v0, Vec v1, Vec v2, Vec v3) {
  const Vec v01 = _mm256_unpacklo_ps(v0, v1) + _mm256_unpackhi_ps(v0, v1);
  const Vec v23 = _mm256_unpacklo_ps(v2, v3) + _mm256_unpackhi_ps(v2, v3);
  const Vec halves = _mm256_shuffle_ps(v01, v23, 0x44) + _mm256_shuffle_ps(v01, v23, 0xee);
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
}

ALWAYS_INLINE float sum(Vec v) {
  float sums[4];
  store_sums(sums, v, v, v, v);
  return sums[0];
}

ALWAYS_INLINE float max_lane(Vec v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

// rows[i] lane j becomes rows[j] lane i.
ALWAYS_INLINE void transpose(Vec (&rows)[kLanes]) {
  Vec t[kLanes];
  for (int i = 0; i < kLanes; i += 4) {
    const Vec low01 = _mm256_unpacklo_ps(rows[i], rows[i + 1]), high01 = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    const Vec low23 = _mm256_unpacklo_ps(rows[i + 2], rows[i + 3]),
              high23 = _mm256_unpackhi_ps(rows[i + 2], rows[i + 3]);
    t[i] = _mm256_shuffle_ps(low01, low23, 0x44);
    t[i + 1] = _mm256_shuffle_ps(low01, low23, 0xee);
    t[i + 2] = _mm256_shuffle_ps(high01, high23, 0x44);
    t[i + 3] = _mm256_shuffle_ps(high01, high23, 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x31);
  }
}

}  // namespace
}  // namespace pagedserve::cpu
