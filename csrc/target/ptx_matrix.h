// SPDX-License-Identifier: Apache-2.0
// ptx_matrix.h: mma.sync of the element types that kernels in csrc/kernels do not use, but compilers' PTX does. Part of
// ptx_runtime.h.
//
// m16n8kK, with g = lane / 4 and q = lane % 4, for elements of any size: a register holds 4 bytes of a row.
//   A  register 2 h + r: row g + 8 r, bytes 16 h + 4 q ..   B  register h: column g, bytes 16 h + 4 q ..
//   C  0, 1: row g, columns 2 q, 2 q + 1; 2, 3: row g + 8
// Source: PTX ISA 9.0, "Matrix fragments for mma". Added in order of k, which hardware does not promise.
#pragma once

#include "ptx_convert.h"

namespace pagedserve::ptx {

struct TF32 {
  uint32_t bits;
};
struct E4M3 {
  uint8_t bits;
};
struct E5M2 {
  uint8_t bits;
};
inline float wide(TF32 value) { return as<float>(value.bits & ~0x1fffu); }
inline float wide(E4M3 value) { return target::plain::float_of_f8e4m3(value.bits); }
inline float wide(E5M2 value) { return wide(F16{static_cast<uint16_t>(value.bits << 8)}); }

// A register's elements, in a row from `byte` on.
template <class T, class Number>
void spread(Number* row, int byte, uint32_t bits) {
  constexpr int kEach = 4 / static_cast<int>(sizeof(T));
  for (int i = 0; i < kEach; ++i) row[byte / static_cast<int>(sizeof(T)) + i] = wide(part<T>(bits, i));
}

// `in` of each lane holds A's registers, then B's, then C.
template <class Sum, class A, class B, int kWords>
void multiply(emulator::Warp& warp) {
  constexpr int kDepth = 8 * kWords / static_cast<int>(sizeof(A));
  using Total = decltype(wide(Sum{}));
  Total a[16][kDepth], b[8][kDepth];
  for (int lane = 0; lane < 32; ++lane) {
    uint32_t r[3 * kWords / 2];
    memcpy(r, warp.in[lane], sizeof r);
    const int g = lane / 4, byte = lane % 4 * 4;
    for (int i = 0; i < kWords; ++i) spread<A>(a[g + i % 2 * 8], i / 2 * 16 + byte, r[i]);
    for (int i = 0; i < kWords / 2; ++i) spread<B>(b[g], i * 16 + byte, r[kWords + i]);
  }
  for (int lane = 0; lane < 32; ++lane) {
    Sum c[4];
    memcpy(c, reinterpret_cast<const char*>(warp.in[lane]) + 6 * kWords, sizeof c);
    for (int i = 0; i < 4; ++i) {
      const Total *row = a[lane / 4 + i / 2 * 8], *column = b[lane % 4 * 2 + i % 2];
      Total total = wide(c[i]);
      for (int k = 0; k < kDepth; ++k) {
        if constexpr (kIsWhole<Total>)
          total = add(total, mul_lo(row[k], column[k]));
        else
          total += row[k] * column[k];
      }
      if constexpr (kIsHalf<Sum>)
        c[i] = narrow<Sum>(total);
      else
        c[i] = total;
    }
    memcpy(warp.out[lane], c, sizeof c);
  }
}

template <class Sum, class A, class B, int kWords, class Register, int kRegisters>
void mma(Register (&c)[kRegisters], const uint32_t (&a)[kWords], const uint32_t (&b)[kWords / 2],
         emulator::Site site = emulator::Site::here()) {
  if constexpr (kIsHalf<A> && std::is_same<Sum, float>::value) {
    const auto type = std::is_same<A, BF16>::value ? emulator::Half::kBF16 : emulator::Half::kF16;
    emulator::matrix_product<4 * kWords>(c, a, b, type, "mma.sync", site);
  } else {
    emulator::Hidden hidden;
    emulator::Lane& self = emulator::self();
    char* in = reinterpret_cast<char*>(self.warp->in[self.lane]);
    memcpy(in, a, sizeof a);
    memcpy(in + sizeof a, b, sizeof b);
    memcpy(in + sizeof a + sizeof b, c, sizeof c);
    emulator::collective(target::kAllLanes, "mma.sync", site, false, [](emulator::Warp& warp) {
      ++emulator::machine.counters.matrix_products;
      multiply<Sum, A, B, kWords>(warp);
    });
    memcpy(c, self.warp->out[self.lane], sizeof c);
  }
}

}  // namespace pagedserve::ptx
