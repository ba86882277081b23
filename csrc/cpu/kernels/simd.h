// SPDX-License-Identifier: Apache-2.0
// simd.h: the words CPU kernels are written in: a vector of kLanes floats, whatever the processor.
//
//   Vec               kLanes f32: 16 (AVX-512), 8 (AVX2), 4 (any other); + - * / are the compiler's
//   Mask              what a comparison gives
//   Bf16 F16 F8 I4    storage types (F8 is e4m3fn, I4 two elements); int8_t and float are themselves
//   splat load store  load(const T*) widens to f32; store narrows, to nearest even; (..., n): the first n
//                     elements only, the rest of a loaded Vec is 0, and nothing beyond them is touched
//   fma min max       a * b + c, rounded once where the processor can; min and max give the second
//                     operand if either is NaN
//   less first select first(n): lanes below n; select(mask, a, b): a where mask
//   sum               lanes added pairwise, in one fixed order
//   exp tanh          within 2 ulp; NaN stays NaN
//   load_pair         2 * kLanes elements in the order cheapest for T: see kInterleaved
//
// Everything here has internal linkage, as isa.h asks. No result depends on anything but the operands.
#pragma once

#include <stdint.h>
#include <string.h>

#include "../../params.h"
#include "../isa.h"

// Vectors handed from function to function stay in registers only where the callee is inlined.
#define ALWAYS_INLINE inline __attribute__((always_inline))
// In front of a loop over an array of vectors: an array that is indexed by constants alone lives in registers.
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

namespace pagedserve::cpu {
namespace {

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};
struct F8 {
  uint8_t bits;
};
struct I4 {
  uint8_t bits;  // of two elements: each its code + 8, the even one in the low half
};

constexpr float kInfinity = __builtin_inff();

template <class T>
constexpr T smaller(T a, T b) {
  return b < a ? b : a;
}
template <class T>
constexpr T larger(T a, T b) {
  return a < b ? b : a;
}
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace
}  // namespace pagedserve::cpu

#if defined(__AVX512F__)
#include "simd_avx512.h"
#elif defined(__AVX2__)
#include "simd_avx2.h"
#else
#include "simd_portable.h"
#endif

namespace pagedserve::cpu {
namespace {

// The first n elements of a storage type with no masked load of its own.
template <class T>
ALWAYS_INLINE Vec load(const T* p, int n) {
  if (n >= kLanes) return load(p);
  T padded[kLanes] = {};
  memcpy(padded, p, n * sizeof(T));
  return load(padded);
}

template <class T>
ALWAYS_INLINE void store(T* p, Vec v, int n) {
  if (n >= kLanes) return store(p, v);
  T padded[kLanes];
  store(padded, v);
  memcpy(p, padded, n * sizeof(T));
}

#if !defined(__AVX512F__)
// store_sums for rows of four vectors, `stride` floats from one to the next.
template <int kRows>
ALWAYS_INLINE void store_sums(float* out, int stride, const Vec (&v)[kRows][4]) {
  UNROLL
  for (int r = 0; r < kRows; ++r) store_sums(out + r * stride, v[r][0], v[r][1], v[r][2], v[r][3]);
}
#endif

ALWAYS_INLINE Vec zero() { return splat(0.f); }

// Whether load_pair splits 2 * kLanes elements into even and odd ones (two cheap bit operations for
// bf16) instead of a first and a second half.
template <class T>
constexpr bool kInterleaved = false;
template <>
constexpr bool kInterleaved<Bf16> = true;

template <class T>
ALWAYS_INLINE void load_pair(const T* p, Vec& a, Vec& b) {
  if constexpr (kInterleaved<T>) {
    load_even_odd(p, a, b);
  } else {
    a = load(p);
    b = load(p + kLanes);
  }
}

template <class T>
ALWAYS_INLINE void load_pair(const T* p, Vec& a, Vec& b, int n) {
  if (n >= 2 * kLanes) return load_pair(p, a, b);
  if constexpr (kInterleaved<T>) {
    load_even_odd(p, a, b, n);
  } else {
    a = load(p, n);
    b = n > kLanes ? load(p + kLanes, n - kLanes) : zero();
  }
}

// int4 comes by pairs of vectors only; elements beyond n are 0.
ALWAYS_INLINE void load_pair(const I4* p, Vec& a, Vec& b) { load_codes(p, a, b); }
ALWAYS_INLINE void load_pair(const I4* p, Vec& a, Vec& b, int n) {
  if (n >= 2 * kLanes) return load_codes(p, a, b);
  I4 padded[kLanes];
  memset(padded, 0x88, sizeof(padded));
  memcpy(padded, p, n / 2);
  load_codes(padded, a, b);
}

// A row's element d, an even one.
template <class T>
ALWAYS_INLINE const T* at(const T* row, int d) {
  return row + d;
}
ALWAYS_INLINE const I4* at(const I4* row, int d) { return row + d / 2; }

// e^x. Cody and Waite's reduction by ln 2 in two parts, then the polynomial of Cephes' expf.
ALWAYS_INLINE Vec exp(Vec x) {
  x = min(splat(89.f), max(splat(-104.f), x));
  const Vec n = round(x * splat(1.44269504088896341f));
  Vec r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  Vec p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r) + splat(1.f);
  return times_power_of_two(p, n);
}

ALWAYS_INLINE float exp(float x) { return first_lane(exp(splat(x))); }

// tanh(x): the odd polynomial of Cephes' tanhf near 0, where 1 - 2 / (e^2x + 1) would cancel.
ALWAYS_INLINE Vec tanh(Vec x) {
  const Vec z = x * x;
  Vec p = splat(-5.70498872745e-3f);
  p = fma(p, z, splat(2.06390887954e-2f));
  p = fma(p, z, splat(-5.37397155531e-2f));
  p = fma(p, z, splat(1.33314422036e-1f));
  p = fma(p, z, splat(-3.33332819422e-1f));
  const Vec near_zero = fma(p * z, x, x);
  const Vec magnitude = abs(x);
  const Vec far = splat(1.f) - splat(2.f) / (exp(magnitude + magnitude) + splat(1.f));
  return select(less(magnitude, splat(0.625f)), near_zero, select(less(x, zero()), zero() - far, far));
}

// Calls body(T()) with the storage type of `dtype`. Params are checked before they reach a kernel.
template <class Body>
inline void with_float_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kF16:
      return body(F16());
    case DType::kBF16:
      return body(Bf16());
    default:
      return body(float());
  }
}

template <class Body>
inline void with_kv_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kI8:
      return body(int8_t());
    case DType::kF8E4M3:
      return body(F8());
    case DType::kI4:
      return body(I4());
    default:
      return with_float_type(dtype, body);
  }
}

}  // namespace
}  // namespace pagedserve::cpu
