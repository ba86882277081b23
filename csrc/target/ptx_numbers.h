// SPDX-License-Identifier: Apache-2.0
// ptx_numbers.h: what each arithmetic PTX instruction does to its operands, in plain C++. Registers hold bits; as<T>
// reads them as a type and set() writes a value back, extended by its sign if its type has one. Part of ptx_runtime.h.
// Source: PTX ISA 9.0. Rounding is to nearest even; approximate functions give the correctly rounded libm's value.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "emu.h"

namespace pagedserve::ptx {

using target::BF16;
using target::F16;
using U128 = unsigned __int128;
template <class T>
struct Pair {
  T low, high;
};
enum Rounding { kNearest, kToZero };

template <class T>
constexpr bool kIsWhole = std::is_integral<T>::value;
template <class T>
constexpr bool kIsHalf = std::is_same<T, F16>::value || std::is_same<T, BF16>::value;
template <class T>
struct PairTraits {
  static constexpr bool kIsPair = false;
};
template <class T>
struct PairTraits<Pair<T>> {
  static constexpr bool kIsPair = true;
};
template <class T>
constexpr bool kIsPair = PairTraits<T>::kIsPair;
template <class T>
constexpr int kBits = 8 * static_cast<int>(sizeof(T));

// ---- registers ----

// The low bytes of `bits` as a T; what T has more is zero.
template <class T, class U>
T as(U bits) {
  T value{};
  memcpy(&value, &bits, std::min(sizeof(T), sizeof(U)));
  return value;
}
template <class R, class T>
void set(R& reg, T value) {
  if constexpr (kIsWhole<T> && kIsWhole<R>)
    reg = static_cast<R>(value);
  else
    reg = as<R>(value);
}
template <class T, class Part>
T join(std::initializer_list<Part> parts) {
  T whole{};
  memcpy(&whole, parts.begin(), sizeof(T));
  return whole;
}
template <class Part, class T>
Part part(T whole, int index) {
  Part value;
  memcpy(&value, reinterpret_cast<const char*>(&whole) + index * sizeof(Part), sizeof(Part));
  return value;
}

// ---- halves ----

inline float wide(F16 value) { return target::plain::float_of_f16(value.bits); }
inline float wide(BF16 value) { return target::plain::float_of_bf16(value.bits); }
template <class T>
T wide(T value) {
  return value;
}
template <class T>
T narrow(float value, Rounding rounding = kNearest) {
  if constexpr (std::is_same<T, BF16>::value) {
    if (rounding == kToZero && value == value) return {static_cast<uint16_t>(as<uint32_t>(value) >> 16)};
    return {target::plain::bf16_of_float(value)};
  } else {
    F16 half{target::plain::f16_of_float(value)};
    if (rounding == kToZero && std::fabs(wide(half)) > std::fabs(value)) --half.bits;
    return half;
  }
}

// Applies f to a type's numbers: halves as float, pairs one half after the other.
template <class F, class T, class... More>
auto each(F f, T first, More... more) {
  if constexpr (kIsPair<T>)
    return T{each(f, first.low, more.low...), each(f, first.high, more.high...)};
  else if constexpr (kIsHalf<T>)
    return narrow<T>(static_cast<float>(f(wide(first), wide(more)...)));
  else
    return static_cast<T>(f(first, more...));
}

// ---- arithmetic; whole numbers wrap around ----

template <class T>
T add(T a, T b) {
  if constexpr (kIsWhole<T>)
    return static_cast<T>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
  else
    return each([](auto x, auto y) { return x + y; }, a, b);
}
template <class T>
T sub(T a, T b) {
  if constexpr (kIsWhole<T>)
    return static_cast<T>(static_cast<uint64_t>(a) - static_cast<uint64_t>(b));
  else
    return each([](auto x, auto y) { return x - y; }, a, b);
}
template <class T>
T mul(T a, T b) {
  return each([](auto x, auto y) { return x * y; }, a, b);
}
template <class T>
T mul_lo(T a, T b) {
  return static_cast<T>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
}
template <class T>
T mul_hi(T a, T b) {
  return static_cast<T>((static_cast<__int128>(a) * static_cast<__int128>(b)) >> kBits<T>);
}
template <class T>
auto mul_wide(T a, T b) {
  using Signed = std::conditional_t<sizeof(T) == 2, int32_t, int64_t>;
  using Wide = std::conditional_t<std::is_signed<T>::value, Signed, std::make_unsigned_t<Signed>>;
  return static_cast<Wide>(static_cast<Wide>(a) * static_cast<Wide>(b));
}
// Rounded once: a product of floats is exact in double; halves' sums are rounded from there.
template <class T>
T fma(T a, T b, T c) {
  if constexpr (std::is_same<T, float>::value || std::is_same<T, double>::value)
    return std::fma(a, b, c);
  else
    return each([](double x, double y, double z) { return x * y + z; }, a, b, c);
}
template <class T>
T neg(T a) {
  if constexpr (kIsWhole<T>)
    return static_cast<T>(0 - static_cast<uint64_t>(a));
  else
    return each([](auto x) { return -x; }, a);
}
template <class T>
T abs(T a) {
  if constexpr (kIsWhole<T>)
    return a < 0 ? neg(a) : a;
  else
    return each([](auto x) { return std::fabs(x); }, a);
}
// The other one where one is NaN; -0 below +0.
template <class T>
T min(T a, T b) {
  if constexpr (kIsWhole<T>)
    return std::min(a, b);
  else
    return each([](auto x, auto y) { return x == y ? (std::signbit(x) ? x : y) : std::fmin(x, y); }, a, b);
}
template <class T>
T max(T a, T b) {
  if constexpr (kIsWhole<T>)
    return std::max(a, b);
  else
    return each([](auto x, auto y) { return x == y ? (std::signbit(x) ? y : x) : std::fmax(x, y); }, a, b);
}
// NaN where one is NaN.
template <class T>
T min_nan(T a, T b) {
  return each([](auto x, auto y) { return x != x ? x : y != y ? y : min(x, y); }, a, b);
}
template <class T>
T max_nan(T a, T b) {
  return each([](auto x, auto y) { return x != x ? x : y != y ? y : max(x, y); }, a, b);
}
// By zero: all ones, as the device gives.
template <class T>
T div(T a, T b) {
  if constexpr (kIsWhole<T>) {
    if (b == 0) return static_cast<T>(~T{0});
    return std::is_signed<T>::value && b == static_cast<T>(-1) ? neg(a) : static_cast<T>(a / b);
  } else {
    return each([](auto x, auto y) { return x / y; }, a, b);
  }
}
template <class T>
T rem(T a, T b) {
  if (b == 0) return a;
  return std::is_signed<T>::value && b == static_cast<T>(-1) ? T{0} : static_cast<T>(a % b);
}
template <class T>
T sum_abs_diff(T a, T b, T c) {
  return add(c, a < b ? sub(b, a) : sub(a, b));
}
template <bool kSignedA, bool kSignedB>
uint32_t dot4(uint32_t a, uint32_t b, uint32_t c) {
  for (int i = 0; i < 4; ++i) {
    const int x = kSignedA ? static_cast<int8_t>(a >> 8 * i) : static_cast<int>(a >> 8 * i & 255);
    const int y = kSignedB ? static_cast<int8_t>(b >> 8 * i) : static_cast<int>(b >> 8 * i & 255);
    c += static_cast<uint32_t>(x * y);
  }
  return c;
}

// ---- functions ----

template <class T>
T sqrt(T a) {
  return each([](auto x) { return std::sqrt(x); }, a);
}
template <class T>
T rsqrt(T a) {
  return each([](auto x) { return 1 / std::sqrt(x); }, a);
}
template <class T>
T rcp(T a) {
  return each([](auto x) { return 1 / x; }, a);
}
template <class T>
T exp2(T a) {
  return each([](auto x) { return std::exp2(x); }, a);
}
template <class T>
T log2(T a) {
  return each([](auto x) { return std::log2(x); }, a);
}
template <class T>
T sin(T a) {
  return each([](auto x) { return std::sin(x); }, a);
}
template <class T>
T cos(T a) {
  return each([](auto x) { return std::cos(x); }, a);
}
template <class T>
T tanh(T a) {
  return each([](auto x) { return std::tanh(x); }, a);
}
// The sign of a, the magnitude of b.
template <class T>
T copysign(T a, T b) {
  return std::copysign(b, a);
}
inline float flush(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.f, x) : x; }
template <class T>
T relu(T a) {
  return each([](auto x) { return x > 0 || x != x ? x : x * 0; }, a);
}

// ---- bits ----

template <class T>
T bit_not(T a) {
  if constexpr (std::is_same<T, bool>::value)
    return !a;
  else
    return static_cast<T>(~a);
}
template <class T>
T zero_to_one(T a) {
  return a == 0;
}
template <class T>
T bit_and(T a, T b) {
  return static_cast<T>(a & b);
}
template <class T>
T bit_or(T a, T b) {
  return static_cast<T>(a | b);
}
template <class T>
T bit_xor(T a, T b) {
  return static_cast<T>(a ^ b);
}
template <class T>
T shift_left(T a, uint32_t count) {
  return count >= static_cast<uint32_t>(kBits<T>) ? T{0} : static_cast<T>(static_cast<uint64_t>(a) << count);
}
template <class T>
T shift_right(T a, uint32_t count) {
  if (count < static_cast<uint32_t>(kBits<T>)) return static_cast<T>(a >> count);
  return a < 0 ? static_cast<T>(-1) : T{0};
}
template <bool kWrap>
uint32_t funnel_left(uint32_t low, uint32_t high, uint32_t count) {
  count = kWrap ? count & 31 : std::min(count, 32u);
  return static_cast<uint32_t>(((static_cast<uint64_t>(high) << 32 | low) << count) >> 32);
}
template <bool kWrap>
uint32_t funnel_right(uint32_t low, uint32_t high, uint32_t count) {
  count = kWrap ? count & 31 : std::min(count, 32u);
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> count);
}
template <class T>
uint32_t population(T a) {
  return static_cast<uint32_t>(__builtin_popcountll(static_cast<std::make_unsigned_t<T>>(a)));
}
template <class T>
uint32_t leading_zeros(T a) {
  const uint64_t value = static_cast<std::make_unsigned_t<T>>(a);
  return static_cast<uint32_t>(value ? __builtin_clzll(value) - (64 - kBits<T>) : kBits<T>);
}
// The place of the highest bit that is not the sign's; all ones where there is none.
template <class T>
uint32_t highest_bit(T a) {
  if (a < 0) a = static_cast<T>(~a);
  return a == 0 ? ~0u : static_cast<uint32_t>(kBits<T> - 1) - leading_zeros(a);
}
// By how much a number is to be shifted left to bring that bit to the top.
template <class T>
uint32_t shift_to_top(T a) {
  const uint32_t bit = highest_bit(a);
  return bit == ~0u ? bit : static_cast<uint32_t>(kBits<T> - 1) - bit;
}
template <class T>
T reversed_bits(T a) {
  T result = 0;
  for (int i = 0; i < kBits<T>; ++i) result = static_cast<T>(result | (a >> i & 1) << (kBits<T> - 1 - i));
  return result;
}
template <class T>
T field_extract(T a, uint32_t place, uint32_t count) {
  place &= 255;
  count &= 255;
  using U = std::make_unsigned_t<T>;
  if (count == 0) return 0;
  const uint32_t last = std::min(place + count - 1, static_cast<uint32_t>(kBits<T> - 1));
  const bool sign = std::is_signed<T>::value && (static_cast<U>(a) >> last & 1);
  U result = sign ? static_cast<U>(~U{0}) : U{0};
  for (uint32_t i = 0; i < std::min<uint32_t>(count, kBits<T>); ++i) {
    if (place + i > last) break;
    const U bit = U{1} << i;
    result = static_cast<U>((static_cast<U>(a) >> (place + i) & 1) ? result | bit : result & ~bit);
  }
  return static_cast<T>(result);
}
// The lowest `count` bits of a, at `place` in b.
template <class T>
T field_insert(T a, T b, uint32_t place, uint32_t count) {
  place &= 255;
  count &= 255;
  for (uint32_t i = 0; i < count && place + i < static_cast<uint32_t>(kBits<T>); ++i) {
    const T bit = static_cast<T>(T{1} << (place + i));
    b = static_cast<T>((a >> i & 1) ? b | bit : b & ~bit);
  }
  return b;
}
inline uint32_t logic3(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t result = 0;
  for (uint32_t i = 0; i < 8; ++i)
    if (table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return result;
}
inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t choice = selector >> 4 * i & 15;
    uint32_t byte = static_cast<uint32_t>(bytes >> 8 * (choice & 7)) & 255;
    if (choice & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << 8 * i;
  }
  return result;
}

}  // namespace pagedserve::ptx
