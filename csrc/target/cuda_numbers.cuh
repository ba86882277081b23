// SPDX-License-Identifier: Apache-2.0
// cuda_numbers.cuh: conversions, byte and bit operations, approximate functions and matrix instructions of nvcc's
// dictionary. Included by cuda.cuh.
#pragma once

namespace pagedserve::target {

// ---- conversions; to nearest even ----

PAGEDSERVE_DEVICE float to_float(float value) { return value; }
PAGEDSERVE_DEVICE float to_float(BF16 value) { return plain::float_of_bf16(value.bits); }
PAGEDSERVE_DEVICE float to_float(F16 value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}

// Two 16-bit numbers of a register, the low half first in memory.
template <class T>
PAGEDSERVE_DEVICE uint32_t pack(float low, float high) {
  uint32_t result;
  if constexpr (std::is_same<T, BF16>::value) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  } else {
    static_assert(std::is_same<T, F16>::value, "pack makes bf16 or f16");
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  }
  return result;
}
template <class T>
PAGEDSERVE_DEVICE FloatPair unpack(uint32_t pair) {
  return {to_float(T{static_cast<uint16_t>(pair)}), to_float(T{static_cast<uint16_t>(pair >> 16)})};
}

// Two e4m3 codes to two f16 in a register, exactly.
PAGEDSERVE_DEVICE uint32_t f16x2_of_f8x2(uint16_t codes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint32_t result;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(result) : "h"(codes));
  return result;
#else
  const uint32_t low = codes & 0xffu, high = codes >> 8;
  return pack<F16>(plain::float_of_f8e4m3(static_cast<uint8_t>(low)),
                   plain::float_of_f8e4m3(static_cast<uint8_t>(high)));
#endif
}
// Values beyond 448 become 448; NaN stays NaN.
PAGEDSERVE_DEVICE uint16_t f8x2_of_floats(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint16_t result;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(result) : "f"(high), "f"(low));
  return result;
#else
  return static_cast<uint16_t>(plain::f8e4m3_of_float(low) | plain::f8e4m3_of_float(high) << 8);
#endif
}
PAGEDSERVE_DEVICE float to_float(F8E4M3 value) { return plain::float_of_f8e4m3(value.bits); }
PAGEDSERVE_DEVICE float to_float(int8_t value) { return static_cast<float>(value); }

// Beyond -128..127: the nearer end; NaN: 0.
PAGEDSERVE_DEVICE int8_t i8_of_float(float value) {
  int32_t result;
  asm("cvt.rni.sat.s8.f32 %0, %1;" : "=r"(result) : "f"(value));
  return static_cast<int8_t>(result);
}

template <class T>
PAGEDSERVE_DEVICE T from_float(float value) {
  if constexpr (std::is_same<T, float>::value) {
    return value;
  } else if constexpr (std::is_same<T, BF16>::value) {
    BF16 result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
  } else if constexpr (std::is_same<T, F16>::value) {
    F16 result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
  } else if constexpr (std::is_same<T, F8E4M3>::value) {
    return F8E4M3{static_cast<uint8_t>(f8x2_of_floats(value, 0.f))};
  } else {
    static_assert(std::is_same<T, int8_t>::value, "from_float makes float, bf16, f16, e4m3 or int8");
    return i8_of_float(value);
  }
}

// ---- two halves of a register at once ----

PAGEDSERVE_DEVICE uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}
PAGEDSERVE_DEVICE uint32_t add_f16x2(uint32_t a, uint32_t b) {
  uint32_t result;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}
PAGEDSERVE_DEVICE uint32_t sub_f16x2(uint32_t a, uint32_t b) {
  uint32_t result;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}
PAGEDSERVE_DEVICE uint32_t mul_f16x2(uint32_t a, uint32_t b) {
  uint32_t result;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}
PAGEDSERVE_DEVICE uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
  return result;
}

// ---- bytes and bits ----

// Byte i of the result is byte (selector >> 4 i & 7) of {a, b}, a's lowest first; with bit 3 set, eight times its sign.
PAGEDSERVE_DEVICE uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(selector));
  return result;
}
// Bit by bit the function whose truth table is kTable: kTable = f(0xf0, 0xcc, 0xaa).
template <int kTable>
PAGEDSERVE_DEVICE uint32_t logic3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(result) : "r"(a), "r"(b), "r"(c), "n"(kTable));
  return result;
}
PAGEDSERVE_DEVICE uint32_t float_bits(float value) { return __float_as_uint(value); }
PAGEDSERVE_DEVICE float bits_float(uint32_t bits) { return __uint_as_float(bits); }

// ---- approximate functions: a few units in the last place; results below 2^-126 become zero ----

PAGEDSERVE_DEVICE float exp2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
PAGEDSERVE_DEVICE float log2_approx(float x) {
  float result;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
PAGEDSERVE_DEVICE float reciprocal_approx(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
PAGEDSERVE_DEVICE float rsqrt_approx(float x) {
  float result;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
// Relative error up to 2^-11.
PAGEDSERVE_DEVICE float tanh_approx(float x) {
  float result;
  asm("tanh.approx.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// ---- matrices: the whole warp together ----

#define PAGEDSERVE_LOAD_MATRICES(trans)                                                      \
  static_assert(N == 1 || N == 2 || N == 4, "a warp loads 1, 2 or 4 matrices");              \
  const uint32_t address = shared_address(row);                                              \
  if constexpr (N == 1)                                                                      \
    asm volatile("ldmatrix.sync.aligned.m8n8.x1" trans ".shared.b16 {%0}, [%1];"             \
                 : "=r"(r[0])                                                                \
                 : "r"(address)                                                              \
                 : "memory");                                                                \
  else if constexpr (N == 2)                                                                 \
    asm volatile("ldmatrix.sync.aligned.m8n8.x2" trans ".shared.b16 {%0, %1}, [%2];"         \
                 : "=r"(r[0]), "=r"(r[1])                                                    \
                 : "r"(address)                                                              \
                 : "memory");                                                                \
  else                                                                                       \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" trans ".shared.b16 {%0, %1, %2, %3}, [%4];" \
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                            \
                 : "r"(address)                                                              \
                 : "memory")
// Loads N matrices of 8 x 8 16-bit elements; N is 1, 2 or 4. Lane l gives the address of row l % 8 of matrix l / 8: 16
// bytes, at a multiple of 16. In register i it gets elements (l / 4, l % 4 * 2) and the next of matrix i.
template <int N>
PAGEDSERVE_DEVICE void load_matrices(uint32_t (&r)[N], const void* row) {
  PAGEDSERVE_LOAD_MATRICES("");
}
// The same, of each matrix's transpose.
template <int N>
PAGEDSERVE_DEVICE void load_matrices_transposed(uint32_t (&r)[N], const void* row) {
  PAGEDSERVE_LOAD_MATRICES(".trans");
}
#undef PAGEDSERVE_LOAD_MATRICES

// One instruction for bf16 or f16: the text of an asm is a literal. Then come its operands.
#define PAGEDSERVE_ASM_OF(T, before, after, ...)                                                        \
  static_assert(std::is_same<T, BF16>::value || std::is_same<T, F16>::value, "multiplies bf16 or f16"); \
  if constexpr (std::is_same<T, BF16>::value)                                                           \
    asm volatile(before "bf16.bf16" after __VA_ARGS__);                                                 \
  else                                                                                                  \
    asm volatile(before "f16.f16" after __VA_ARGS__)

// Transposes a matrix of 8 x 8 16-bit elements, spread over the lanes as load_matrices spreads them.
PAGEDSERVE_DEVICE uint32_t transpose_matrix(uint32_t matrix) {
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(matrix));
  return result;
}

// d += a b, of a [16, 16] and b [16, 8] in T (bf16 or f16), d [16, 8] in f32. With g = lane / 4, q = lane % 4 * 2:
//   a[0] (g, q) (g, q + 1)   a[1] (g + 8, q) ..   a[2] (g, q + 8) ..   a[3] (g + 8, q + 8) ..
//   b[0] (q, g) (q + 1, g)   b[1] (q + 8, g) ..   d[0..1] (g, q) (g, q + 1)   d[2..3] (g + 8, q) ..
template <class T>
PAGEDSERVE_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  PAGEDSERVE_ASM_OF(T, "mma.sync.aligned.m16n8k16.row.col.f32.",
                    ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+f"(d[0]), "+f"(d[1]),
                    "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same with 8 columns of a: a[0] (g, q) (g, q + 1), a[1] (g + 8, q) ..; b[0] (q, g) (q + 1, g).
template <class T>
PAGEDSERVE_DEVICE void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1]) {
  PAGEDSERVE_ASM_OF(T, "mma.sync.aligned.m16n8k8.row.col.f32.",
                    ".f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]),
                    "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}

}  // namespace pagedserve::target
