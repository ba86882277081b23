// SPDX-License-Identifier: Apache-2.0
// emu_numbers.h: conversions, byte and bit operations, approximate functions and matrix instructions of the emulator's
// dictionary. Included by emu.h; meanings stand in cuda_numbers.cuh.
#pragma once

namespace pagedserve::target {

// ---- conversions ----

inline float to_float(float value) { return value; }
inline float to_float(BF16 value) { return plain::float_of_bf16(value.bits); }
inline float to_float(F16 value) { return plain::float_of_f16(value.bits); }
inline float to_float(F8E4M3 value) { return plain::float_of_f8e4m3(value.bits); }
inline float to_float(int8_t value) { return static_cast<float>(value); }

inline int8_t i8_of_float(float value) {
  if (!(value == value)) return 0;
  return static_cast<int8_t>(std::nearbyint(std::fmin(std::fmax(value, -128.f), 127.f)));
}
inline uint16_t f8x2_of_floats(float low, float high) {
  return static_cast<uint16_t>(plain::f8e4m3_of_float(low) | plain::f8e4m3_of_float(high) << 8);
}

template <class T>
T from_float(float value) {
  if constexpr (std::is_same<T, float>::value) {
    return value;
  } else if constexpr (std::is_same<T, BF16>::value) {
    return {plain::bf16_of_float(value)};
  } else if constexpr (std::is_same<T, F16>::value) {
    return {plain::f16_of_float(value)};
  } else if constexpr (std::is_same<T, F8E4M3>::value) {
    return {plain::f8e4m3_of_float(value)};
  } else {
    static_assert(std::is_same<T, int8_t>::value, "from_float makes float, bf16, f16, e4m3 or int8");
    return i8_of_float(value);
  }
}
template <class T>
uint32_t pack(float low, float high) {
  static_assert(std::is_same<T, BF16>::value || std::is_same<T, F16>::value, "pack makes bf16 or f16");
  return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}
template <class T>
FloatPair unpack(uint32_t pair) {
  return {to_float(T{static_cast<uint16_t>(pair)}), to_float(T{static_cast<uint16_t>(pair >> 16)})};
}
inline uint32_t f16x2_of_f8x2(uint16_t codes) {
  return pack<F16>(plain::float_of_f8e4m3(static_cast<uint8_t>(codes)),
                   plain::float_of_f8e4m3(static_cast<uint8_t>(codes >> 8)));
}

// ---- two halves of a register at once ----

// A double holds the sum of a product of halves and a half, but for addends some 2^50 apart. Rounded to odd on the way
// to float, it rounds to a half as it would at once.
inline float fused(float a, float b, float c) {
  const double exact = std::fma(static_cast<double>(a), static_cast<double>(b), static_cast<double>(c));
  const float nearest = static_cast<float>(exact);
  if (static_cast<double>(nearest) == exact || !std::isfinite(nearest) || (plain::bit_cast<uint32_t>(nearest) & 1))
    return nearest;
  return std::nextafter(nearest, static_cast<double>(nearest) < exact ? INFINITY : -INFINITY);
}
template <class T, class Function>
uint32_t of_halves(uint32_t a, uint32_t b, uint32_t c, Function function) {
  const FloatPair x = unpack<T>(a), y = unpack<T>(b), z = unpack<T>(c);
  return pack<T>(function(x.low, y.low, z.low), function(x.high, y.high, z.high));
}
inline uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) { return of_halves<F16>(a, b, c, fused); }
inline uint32_t add_f16x2(uint32_t a, uint32_t b) {
  return of_halves<F16>(a, b, 0, [](float x, float y, float) { return x + y; });
}
inline uint32_t sub_f16x2(uint32_t a, uint32_t b) {
  return of_halves<F16>(a, b, 0, [](float x, float y, float) { return x - y; });
}
inline uint32_t mul_f16x2(uint32_t a, uint32_t b) {
  return of_halves<F16>(a, b, 0, [](float x, float y, float) { return x * y; });
}
inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) { return of_halves<BF16>(a, b, c, fused); }

// ---- bytes and bits ----

inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t select = selector >> 4 * i & 15;
    uint32_t byte = bytes >> 8 * (select & 7) & 255;
    if (select & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << 8 * i;
  }
  return result;
}
template <int kTable>
uint32_t logic3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result = 0;
  for (int row = 0; row < 8; ++row) {
    if (kTable >> row & 1) result |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
  }
  return result;
}
inline uint32_t float_bits(float value) { return plain::bit_cast<uint32_t>(value); }
inline float bits_float(uint32_t bits) { return plain::bit_cast<float>(bits); }

// ---- approximate functions: exact to rounding here; subnormal operands and results are zero ----

inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.f, x) : x; }
inline float exp2_approx(float x) { return flushed(std::exp2(flushed(x))); }
inline float log2_approx(float x) { return flushed(std::log2(flushed(x))); }
inline float reciprocal_approx(float x) { return flushed(1.f / flushed(x)); }
inline float rsqrt_approx(float x) { return flushed(1.f / std::sqrt(flushed(x))); }
inline float tanh_approx(float x) { return std::tanh(x); }

// ---- matrices ----

template <int N>
void load_matrices(uint32_t (&r)[N], const void* row, Site site = Site::here()) {
  static_assert(N == 1 || N == 2 || N == 4, "load_matrices loads 1, 2 or 4");
  emulator::load_matrices(r, N, row, false, site);
}
template <int N>
void load_matrices_transposed(uint32_t (&r)[N], const void* row, Site site = Site::here()) {
  static_assert(N == 1 || N == 2 || N == 4, "load_matrices_transposed loads 1, 2 or 4");
  emulator::load_matrices(r, N, row, true, site);
}
inline uint32_t transpose_matrix(uint32_t matrix, Site site = Site::here()) {
  return emulator::transpose_matrix(matrix, site);
}
template <class T>
constexpr emulator::Half half_of() {
  static_assert(std::is_same<T, BF16>::value || std::is_same<T, F16>::value, "mma multiplies bf16 or f16");
  return std::is_same<T, BF16>::value ? emulator::Half::kBF16 : emulator::Half::kF16;
}
template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::here()) {
  emulator::matrix_product<16>(d, a, b, half_of<T>(), "mma_m16n8k16", site);
}
template <class T>
void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1], Site site = Site::here()) {
  emulator::matrix_product<8>(d, a, b, half_of<T>(), "mma_m16n8k8", site);
}

}  // namespace pagedserve::target
