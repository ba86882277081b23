// SPDX-License-Identifier: Apache-2.0
// ptx_convert.h: PTX's comparisons and conversions. Part of ptx_runtime.h; source: PTX ISA 9.0, "setp", "cvt".
#pragma once

#include "ptx_numbers.h"

namespace pagedserve::ptx {

// ---- comparisons; those without "nan" fail on NaN ----

#define PAGEDSERVE_PTX_COMPARE(name, test)        \
  template <class T>                              \
  bool name(T first, T second) {                  \
    const auto a = wide(first), b = wide(second); \
    return test;                                  \
  }
PAGEDSERVE_PTX_COMPARE(equal, a == b)
PAGEDSERVE_PTX_COMPARE(not_equal, a<b || a> b)
PAGEDSERVE_PTX_COMPARE(less, a < b)
PAGEDSERVE_PTX_COMPARE(less_equal, a <= b)
PAGEDSERVE_PTX_COMPARE(greater, a > b)
PAGEDSERVE_PTX_COMPARE(greater_equal, a >= b)
PAGEDSERVE_PTX_COMPARE(equal_or_nan, !(a < b || a > b))
PAGEDSERVE_PTX_COMPARE(not_equal_or_nan, a != b)
PAGEDSERVE_PTX_COMPARE(less_or_nan, !(a >= b))
PAGEDSERVE_PTX_COMPARE(less_equal_or_nan, !(a > b))
PAGEDSERVE_PTX_COMPARE(greater_or_nan, !(a <= b))
PAGEDSERVE_PTX_COMPARE(greater_equal_or_nan, !(a < b))
PAGEDSERVE_PTX_COMPARE(both_numbers, a == a && b == b)
PAGEDSERVE_PTX_COMPARE(any_nan, a != a || b != b)
#undef PAGEDSERVE_PTX_COMPARE
template <class T>
bool is_finite(T a) {
  return std::isfinite(a);
}
template <class T>
bool is_infinite(T a) {
  return std::isinf(a);
}
template <class T>
bool is_number(T a) {
  return a == a;
}
template <class T>
bool is_notanumber(T a) {
  return a != a;
}
template <class T>
bool is_normal(T a) {
  return std::isnormal(a);
}
template <class T>
bool is_subnormal(T a) {
  return std::fpclassify(a) == FP_SUBNORMAL;
}

// ---- to whole numbers, as floating point ----

template <class T>
auto whole_nearest(T a) {
  return std::nearbyint(wide(a));
}
template <class T>
auto whole_to_zero(T a) {
  return std::trunc(wide(a));
}
template <class T>
auto whole_down(T a) {
  return std::floor(wide(a));
}
template <class T>
auto whole_up(T a) {
  return std::ceil(wide(a));
}

// ---- between types ----

// Beyond the ends of To: the nearer end; NaN: 0.
template <class To, class Any>
To clamp_to(Any any) {
  const auto a = wide(any);
  using From = std::remove_cv_t<decltype(a)>;
  if (a != a) return 0;
  using Limits = std::numeric_limits<To>;
  if constexpr (kIsWhole<From>) {
    const __int128 low = Limits::min(), high = Limits::max(), value = a;
    return static_cast<To>(std::min(std::max(value, low), high));
  } else {
    if (a <= static_cast<From>(Limits::min())) return Limits::min();
    return a >= static_cast<From>(Limits::max()) ? Limits::max() : static_cast<To>(a);
  }
}

// A whole number as float, rounded to zero and with its last bit set where it is not exact, so that rounding it once
// more to a shorter format rounds as if from the number itself.
template <class From>
float to_odd(From a) {
  float nearest = static_cast<float>(a);
  const long double exact = a, rounded = nearest;
  if (rounded == exact) return nearest;
  if (std::fabs(rounded) > std::fabs(exact)) nearest = std::nextafter(nearest, 0.f);
  return as<float>(as<uint32_t>(nearest) | 1u);
}

template <class To, class From>
To convert(From a, Rounding rounding = kNearest) {
  const auto value = wide(a);
  using Value = std::remove_cv_t<decltype(value)>;
  if constexpr (std::is_same<To, From>::value) {
    return a;
  } else if constexpr (kIsWhole<To> && kIsWhole<Value>) {
    return static_cast<To>(value);
  } else if constexpr (kIsWhole<To>) {
    return clamp_to<To>(value);
  } else if constexpr (kIsHalf<To> && kIsWhole<Value>) {
    return narrow<To>(to_odd(value), rounding);
  } else if constexpr (kIsHalf<To>) {
    return narrow<To>(static_cast<float>(value), rounding);
  } else {
    const To nearest = static_cast<To>(value);
    const bool is_beyond = std::fabs(static_cast<long double>(nearest)) > std::fabs(static_cast<long double>(value));
    return rounding == kToZero && is_beyond ? std::nextafter(nearest, To{0}) : nearest;
  }
}
// To [0, 1], NaN to 0.
template <class T>
T saturate(T a) {
  return each([](auto x) { return x > 0 ? (x < 1 ? x : decltype(x){1}) : decltype(x){0}; }, a);
}
// To nearest with ties away from zero, 10 bits of fraction.
inline uint32_t to_tf32(float a) { return (as<uint32_t>(a) + 0x1000u) & ~0x1fffu; }

// ---- two numbers in one register, the low one first ----

template <class T>
Pair<T> pack(float low, float high, Rounding rounding = kNearest) {
  return {narrow<T>(low, rounding), narrow<T>(high, rounding)};
}
// Beyond 57344: 57344; NaN stays NaN.
inline uint8_t e5m2_of_float(float a) {
  const uint32_t sign = as<uint32_t>(a) >> 24 & 0x80;
  if (a != a) return 0x7f;
  const float magnitude = std::fabs(a);
  if (magnitude >= 57344.f) return static_cast<uint8_t>(sign | 0x7b);
  const int exponent = magnitude < 0x1p-14f ? -14 : std::ilogb(magnitude);
  const int step = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 2 - exponent)));  // 0..8; 4 up are normal
  return static_cast<uint8_t>(sign | (((exponent + 14) << 2) + step));
}
inline uint16_t pack_e5m2(float low, float high) {
  return static_cast<uint16_t>(e5m2_of_float(low) | e5m2_of_float(high) << 8);
}
inline uint16_t pack_e4m3(float low, float high) {
  return static_cast<uint16_t>(target::plain::f8e4m3_of_float(low) | target::plain::f8e4m3_of_float(high) << 8);
}
inline Pair<F16> unpack_e4m3(uint16_t codes) {
  const auto half = [](uint32_t code) {
    return narrow<F16>(target::plain::float_of_f8e4m3(static_cast<uint8_t>(code)));
  };
  return {half(codes & 255u), half(codes >> 8)};
}
inline Pair<F16> unpack_e5m2(uint16_t codes) {
  return {{static_cast<uint16_t>(codes << 8)}, {static_cast<uint16_t>(codes & 0xff00)}};
}

}  // namespace pagedserve::ptx
