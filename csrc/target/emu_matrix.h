// SPDX-License-Identifier: Apache-2.0
// emu_matrix.h: ldmatrix, stmatrix and mma of the emulator. Included by emu.h.
//
// Lane layouts are those of the PTX ISA. Products are added in f32, one after the other; hardware adds several at once
// and truncates, so answers are to be compared within tolerances, never by bits.
#pragma once

#include "convert.h"
#include "emu_memory.h"

namespace pagedserve::emulator {

enum class Half { kBF16, kF16 };

inline float float_of(uint16_t bits, Half type) {
  return type == Half::kBF16 ? target::plain::float_of_bf16(bits) : target::plain::float_of_f16(bits);
}

// Reads the 16 bytes at row, as the lane's own read.
inline void read_row(const void* row, uint64_t (&bits)[2]) {
  bits[0] = static_cast<const volatile uint64_t*>(row)[0];
  bits[1] = static_cast<const volatile uint64_t*>(row)[1];
}

// How many times the banks must be gone through for 8 rows of 16 bytes; 1 where there is no conflict.
inline int wavefronts(const Warp& warp, int matrix) {
  int hits[8] = {}, most = 0;
  for (int i = 0; i < 8; ++i) most = std::max(most, ++hits[warp.in[matrix * 8 + i][2] >> 4 & 7]);
  return most;
}

inline void spread_matrix(Warp& warp, int matrix, bool transposed) {
  for (int lane = 0; lane < 32; ++lane) {
    uint32_t pair = 0;
    for (int j = 0; j < 2; ++j) {
      const int row = transposed ? lane % 4 * 2 + j : lane / 4, column = transposed ? lane / 4 : lane % 4 * 2 + j;
      const uint64_t half = warp.in[matrix * 8 + row][column / 4] >> 16 * (column % 4);
      pair |= static_cast<uint32_t>(half & 0xffff) << 16 * j;
    }
    memcpy(reinterpret_cast<char*>(warp.out[lane]) + 4 * matrix, &pair, 4);
  }
}

// Lanes whose row is not of the first `count` matrices give any address; theirs is not read.
PAGEDSERVE_EMU_INTERNAL inline void gather_matrices(uint32_t* r, int count, const void* row, const uint64_t (&bits)[2],
                                                    bool transposed, const char* word, const Site& site) {
  Hidden hidden;
  Lane& lane = self();
  uint64_t* in = lane.warp->in[lane.lane];
  in[0] = bits[0];
  in[1] = bits[1];
  in[2] = reinterpret_cast<uint64_t>(row);
  collective(kAllLanes, word, site, false, [=](Warp& warp) {
    ++machine.counters.matrix_loads;
    for (int matrix = 0; matrix < count; ++matrix) {
      machine.counters.matrix_load_wavefronts += static_cast<uint64_t>(wavefronts(warp, matrix));
      ++machine.counters.matrix_load_wavefronts_ideal;
      spread_matrix(warp, matrix, transposed);
    }
  });
  memcpy(r, lane.warp->out[lane.lane], 4 * static_cast<size_t>(count));
}
PAGEDSERVE_EMU_INTERNAL inline void check_row(const void* row, const char* word, const Site& site) {
  Hidden hidden;
  check_shared(word, row, 16, 16, site);
}
inline void load_matrices(uint32_t* r, int count, const void* row, bool transposed, const Site& site) {
  const char* word = transposed ? "load_matrices_transposed" : "load_matrices";
  uint64_t bits[2] = {~0ull, ~0ull};
  if (self().lane < 8 * count) {
    check_row(row, word, site);
    read_row(row, bits);
  }
  gather_matrices(r, count, row, bits, transposed, word, site);
}

PAGEDSERVE_EMU_INTERNAL inline uint32_t transpose_matrix(uint32_t matrix, const Site& site) {
  Hidden hidden;
  Lane& lane = self();
  lane.warp->in[lane.lane][0] = matrix;
  collective(kAllLanes, "transpose_matrix", site, false, [](Warp& warp) {
    for (int l = 0; l < 32; ++l) {
      uint64_t pair = 0;
      for (int j = 0; j < 2; ++j) {
        const int row = l % 4 * 2 + j, column = l / 4;  // of what came in
        pair |= (warp.in[row * 4 + column / 2][0] >> 16 * (column % 2) & 0xffff) << 16 * j;
      }
      warp.out[l][0] = pair;
    }
  });
  return static_cast<uint32_t>(lane.warp->out[lane.lane][0]);
}

// The inverse of load_matrices.
PAGEDSERVE_EMU_INTERNAL inline void scatter_matrices(const uint32_t* r, int count, uint64_t (&bits)[2],
                                                     const Site& site) {
  Hidden hidden;
  Lane& lane = self();
  memcpy(lane.warp->in[lane.lane], r, 4 * static_cast<size_t>(count));
  collective(kAllLanes, "store_matrices", site, false, [=](Warp& warp) {
    for (int l = 0; l < 8 * count; ++l) {
      uint32_t row[4];
      for (int j = 0; j < 4; ++j) {
        memcpy(&row[j], reinterpret_cast<const char*>(warp.in[l % 8 * 4 + j]) + 4 * (l / 8), 4);
      }
      memcpy(warp.out[l], row, 16);
    }
  });
  memcpy(bits, lane.warp->out[lane.lane], 16);
}
inline void store_matrices(const uint32_t* r, int count, void* row, const Site& site) {
  uint64_t bits[2];
  const bool owns_row = self().lane < 8 * count;
  if (owns_row) check_row(row, "store_matrices", site);
  scatter_matrices(r, count, bits, site);
  if (!owns_row) return;
  static_cast<volatile uint64_t*>(row)[0] = bits[0];
  static_cast<volatile uint64_t*>(row)[1] = bits[1];
}

// d [16, 8] += a [16, kK] b [kK, 8], kK 8 or 16; fragments as mma.m16n8 has them. `in` holds a, then b, then d.
template <int kK>
inline void multiply_fragments(Warp& warp, Half type) {
  constexpr int kA = kK / 4, kB = kK / 8;
  float a[16][kK], b[kK][8], d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    uint32_t r[kA + kB + 4];
    memcpy(r, warp.in[lane], sizeof r);
    const int g = lane / 4, q = lane % 4 * 2;
    for (int j = 0; j < 2; ++j) {
      for (int i = 0; i < kA; ++i)
        a[g + i % 2 * 8][q + i / 2 * 8 + j] = float_of(static_cast<uint16_t>(r[i] >> 16 * j), type);
      for (int i = 0; i < kB; ++i) b[q + i * 8 + j][g] = float_of(static_cast<uint16_t>(r[kA + i] >> 16 * j), type);
      memcpy(&d[g][q + j], &r[kA + kB + j], 4);
      memcpy(&d[g + 8][q + j], &r[kA + kB + 2 + j], 4);
    }
  }
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < kK; ++k) {
      for (int n = 0; n < 8; ++n) d[m][n] += a[m][k] * b[k][n];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, q = lane % 4 * 2;
    const float own[4] = {d[g][q], d[g][q + 1], d[g + 8][q], d[g + 8][q + 1]};
    memcpy(warp.out[lane], own, sizeof own);
  }
}

template <int kK>
PAGEDSERVE_EMU_INTERNAL void matrix_product(float (&d)[4], const uint32_t* a, const uint32_t* b, Half type,
                                            const char* word, const Site& site) {
  Hidden hidden;
  Lane& lane = self();
  char* in = reinterpret_cast<char*>(lane.warp->in[lane.lane]);
  memcpy(in, a, kK);
  memcpy(in + kK, b, kK / 2);
  memcpy(in + kK + kK / 2, d, sizeof d);
  collective(kAllLanes, word, site, false, [=](Warp& warp) {
    ++machine.counters.matrix_products;
    multiply_fragments<kK>(warp, type);
  });
  memcpy(d, lane.warp->out[lane.lane], sizeof d);
}

}  // namespace pagedserve::emulator
