// SPDX-License-Identifier: Apache-2.0
// simd_portable.h: simd.h's words in the compiler's own vectors: SSE2, NEON, or whatever the machine has.
#pragma once

namespace pagedserve::cpu {
namespace {

constexpr int kLanes = 4;
typedef float Vec __attribute__((vector_size(16)));
typedef int32_t Mask __attribute__((vector_size(16)));
typedef uint32_t Bits __attribute__((vector_size(16)));

ALWAYS_INLINE Bits bits_of(Vec v) { return reinterpret_cast<Bits>(v); }
ALWAYS_INLINE Vec from_bits(Bits b) { return reinterpret_cast<Vec>(b); }
ALWAYS_INLINE Bits splat_bits(uint32_t x) { return Bits{x, x, x, x}; }
ALWAYS_INLINE Vec choose(Mask mask, Vec a, Vec b) {
  return from_bits((bits_of(a) & reinterpret_cast<Bits>(mask)) | (bits_of(b) & ~reinterpret_cast<Bits>(mask)));
}

ALWAYS_INLINE Vec splat(float x) { return Vec{x, x, x, x}; }
ALWAYS_INLINE Vec fma(Vec a, Vec b, Vec c) {
#ifdef __FP_FAST_FMAF
  Vec out;
  for (int i = 0; i < kLanes; ++i) out[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return out;
#else
  return a * b + c;
#endif
}
ALWAYS_INLINE Mask less(Vec a, Vec b) { return a < b; }
ALWAYS_INLINE Vec select(Mask mask, Vec a, Vec b) { return choose(mask, a, b); }
ALWAYS_INLINE Vec min(Vec a, Vec b) { return choose(a < b, a, b); }
ALWAYS_INLINE Vec max(Vec a, Vec b) { return choose(a > b, a, b); }
ALWAYS_INLINE Vec abs(Vec a) { return from_bits(bits_of(a) & splat_bits(0x7fffffff)); }
ALWAYS_INLINE Vec sqrt(Vec a) {
  for (int i = 0; i < kLanes; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
}
// Right below 2^22: adding 1.5 * 2^23 leaves no bits after the point.
ALWAYS_INLINE Vec round(Vec a) { return (a + splat(12582912.f)) - splat(12582912.f); }
ALWAYS_INLINE float first_lane(Vec a) { return a[0]; }
// 0, 1, 2, ...
ALWAYS_INLINE Vec lane_numbers() { return Vec{0, 1, 2, 3}; }
ALWAYS_INLINE Mask first(int n) { return Mask{0, 1, 2, 3} < Mask{n, n, n, n}; }

// In two factors, so that subnormal results and those near the largest float come out right.
ALWAYS_INLINE Vec times_power_of_two(Vec a, Vec n) {
  Mask power;
  for (int i = 0; i < kLanes; ++i) power[i] = n[i] == n[i] ? static_cast<int32_t>(n[i]) : 0;
  const Mask half = power >> 1;
  const Mask low = (half + 127) << 23, high = (power - half + 127) << 23;
  return a * reinterpret_cast<Vec>(low) * reinterpret_cast<Vec>(high);
}

template <class T>
ALWAYS_INLINE Bits load_bits(const T* p) {
  return Bits{p[0].bits, p[1].bits, p[2].bits, p[3].bits};
}

ALWAYS_INLINE Vec load(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof(v));
  return v;
}
ALWAYS_INLINE Vec load(const Bf16* p) { return from_bits(load_bits(p) << 16); }
// Shifted into f32's fields the exponent is 112 too small; the product also mends subnormals.
ALWAYS_INLINE Vec load(const F16* p) {
  const Bits half = load_bits(p);
  const Vec finite = from_bits((half & 0x7fff) << 13) * splat(0x1p112f);
  const Bits special = ((half & 0x7fff) << 13) | 0x7f800000;
  const Bits magnitude = bits_of(choose((half & 0x7c00) == 0x7c00, from_bits(special), finite));
  return from_bits(magnitude | ((half & 0x8000) << 16));
}
ALWAYS_INLINE Vec load(const F8* p) {
  const Bits code = load_bits(p);
  const Vec finite = from_bits((code & 0x7f) << 20) * splat(0x1p120f);
  const Bits magnitude = bits_of(choose((code & 0x7f) == 0x7f, splat(__builtin_nanf("")), finite));
  return from_bits(magnitude | ((code & 0x80) << 24));
}
ALWAYS_INLINE Vec load(const int8_t* p) {
  return Vec{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]), static_cast<float>(p[3])};
}

ALWAYS_INLINE void load_codes(const I4* p, Vec& a, Vec& b) {
  const auto element = [&](int i) { return static_cast<float>((p[i / 2].bits >> i % 2 * 4 & 15) - 8); };
  a = Vec{element(0), element(1), element(2), element(3)};
  b = Vec{element(4), element(5), element(6), element(7)};
}

ALWAYS_INLINE void load_even_odd(const Bf16* p, Vec& even, Vec& odd) {
  even = from_bits(Bits{p[0].bits, p[2].bits, p[4].bits, p[6].bits} << 16);
  odd = from_bits(Bits{p[1].bits, p[3].bits, p[5].bits, p[7].bits} << 16);
}
ALWAYS_INLINE void load_even_odd(const Bf16* p, Vec& even, Vec& odd, int n) {
  Bf16 padded[2 * kLanes] = {};
  memcpy(padded, p, smaller(n, 2 * kLanes) * sizeof(Bf16));
  load_even_odd(padded, even, odd);
}

ALWAYS_INLINE void store(float* p, Vec v) { memcpy(p, &v, sizeof(v)); }
ALWAYS_INLINE void store(Bf16* p, Vec v) {
  const Bits bits = bits_of(v);
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  for (int i = 0; i < kLanes; ++i) p[i].bits = static_cast<uint16_t>(v[i] == v[i] ? rounded[i] : 0x7fc0);
}
// Adding a power of two 2^13 times the last kept bit's worth rounds a subnormal; others round as integers.
ALWAYS_INLINE void store(F16* p, Vec v) {
  const Bits sign = (bits_of(v) >> 16) & 0x8000;
  const Vec magnitude = abs(v);
  const Bits bits = bits_of(magnitude);
  const Bits normal = (bits - (112u << 23) + 0xfff + ((bits >> 13) & 1)) >> 13;
  const Bits subnormal = bits_of(magnitude + splat(0.5f)) - bits_of(splat(0.5f));
  for (int i = 0; i < kLanes; ++i) {
    uint32_t half = magnitude[i] < 0x1p-14f ? subnormal[i] : normal[i];
    if (magnitude[i] >= 65520.f) half = 0x7c00;
    if (magnitude[i] != magnitude[i]) half = 0x7e00;
    p[i].bits = static_cast<uint16_t>(half | sign[i]);
  }
}

// (l0 + l2) + (l1 + l3)
ALWAYS_INLINE float sum(Vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }
// out[i] = the sum of v_i's lanes, in sum()'s order.
ALWAYS_INLINE void store_sums(float* out, Vec v0, Vec v1, Vec v2, Vec v3) {
  out[0] = sum(v0), out[1] = sum(v1), out[2] = sum(v2), out[3] = sum(v3);
}
ALWAYS_INLINE float max_lane(Vec v) { return larger(larger(v[0], v[1]), larger(v[2], v[3])); }

// rows[i] lane j becomes rows[j] lane i.
ALWAYS_INLINE void transpose(Vec (&rows)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < i; ++j) {
      const float upper = rows[j][i];
      rows[j][i] = rows[i][j];
      rows[i][j] = upper;
    }
  }
}

}  // namespace
}  // namespace pagedserve::cpu
