// SPDX-License-Identifier: Apache-2.0
// kv_format.cuh: keys and values as operands of the matrix instruction, for each way a cache may hold them.
//
//   keys     [16 tokens, 16 elements of head_dim]    A of S^T = K Q^T; which elements is the format's choice
//   values   [16 elements of head_dim, 16 tokens]    A of O^T = V^T P^T, read from rows of tokens by transposing loads
//
// A lane holds two neighbours of the inner axis in a register. Where a cache's neighbours stand otherwise (8-bit and
// 4-bit codes), the inner axis of keys is renamed, and queries follow (query_dim); so is the outer axis of values, and
// sums follow (value_dim). No element is moved. Codes become f16 exactly; scales are not applied here.
// Source   Frantar et al. 2024 (Marlin: codes to f16 in place); PTX ISA, "matrix fragments for mma.m16n8k16"
#pragma once

#include "shared_rows.cuh"

namespace pagedserve::parts {

// Two 4-bit codes: the low one is the even element; a code stands for code - 8.
struct I4x2 {
  uint8_t bits;
};

// Bits 0 .. 7 of `row` of matrix lane / 8 that load_matrices expects from this lane.
struct MatrixLane {
  int matrix, row;
};
PAGEDSERVE_DEVICE MatrixLane matrix_lane() {
  const int lane = target::lane_index();
  return {lane / 8, lane % 8};
}

// 16-bit elements: the instruction's own order.
template <class T>
struct KvFormat {
  using Number = T;
  static constexpr int kBits = 16;
  static constexpr bool kScaled = false;
  static constexpr int kKeySteps = 1;    // of 16 elements, that load_keys reads
  static constexpr int kValueTiles = 1;  // of 16 elements, that load_values reads
  static constexpr int kRunDims = 1;     // neighbours of head_dim among a lane's sums

  // The element of head_dim that half `half` of register `reg` of a query's lane column `q` (lane % 4) holds.
  static PAGEDSERVE_DEVICE int query_dim(int step, int q, int reg, int half) {
    return 16 * step + 8 * reg + 2 * q + half;
  }
  // The element that row g or g + 8 (half) of value tile `tile` is.
  static PAGEDSERVE_DEVICE int value_dim(int tile, int half, int g) { return 16 * tile + 8 * half + g; }

  template <int kRowBytes, int kTiles>
  static PAGEDSERVE_DEVICE void load_keys(const unsigned char* rows, int token, int group,
                                          uint32_t (&a)[kTiles][kKeySteps][4]) {
    const MatrixLane lane = matrix_lane();
    PAGEDSERVE_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      const int row = token + 16 * tile + lane.matrix % 2 * 8 + lane.row;
      target::load_matrices<4>(a[tile][0], rows + SharedRows<kRowBytes>::offset(row, 2 * group + lane.matrix / 2));
    }
  }

  template <int kRowBytes, int kTiles>
  static PAGEDSERVE_DEVICE void load_values(const unsigned char* rows, int token, int group,
                                            uint32_t (&a)[kTiles][kValueTiles][4]) {
    const MatrixLane lane = matrix_lane();
    PAGEDSERVE_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      const int row = token + 16 * tile + lane.matrix / 2 * 8 + lane.row;
      const int chunk = 2 * group + lane.matrix % 2;
      target::load_matrices_transposed<4>(a[tile][0], rows + SharedRows<kRowBytes>::offset(row, chunk));
    }
  }
};

// Byte codes, four to a register. Pairs(word, low, high) makes f16 of bytes 0, 1 and 2, 3 (kNeighbours), or of bytes
// 0, 2 and 1, 3.
template <class Codes>
struct KvFormatBytes {
  using Number = target::F16;
  static constexpr int kBits = 8;
  static constexpr bool kScaled = true;
  static constexpr int kKeySteps = 2;
  static constexpr int kValueTiles = 2;
  static constexpr int kRunDims = 2;

  static PAGEDSERVE_DEVICE int query_dim(int step, int q, int reg, int half) {
    return 16 * step + 4 * q + 2 * reg + half;
  }
  static PAGEDSERVE_DEVICE int value_dim(int tile, int half, int g) { return 16 * tile + 2 * g + half; }

  template <int kRowBytes, int kTiles>
  static PAGEDSERVE_DEVICE void load_keys(const unsigned char* rows, int token, int group,
                                          uint32_t (&a)[kTiles][kKeySteps][4]) {
    const MatrixLane lane = matrix_lane();
    PAGEDSERVE_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      const int row = token + 16 * tile + lane.matrix % 2 * 8 + lane.row;
      uint32_t words[4];
      target::load_matrices<4>(words, rows + SharedRows<kRowBytes>::offset(row, 2 * group + lane.matrix / 2));
      PAGEDSERVE_UNROLL
      for (int i = 0; i < 4; ++i)
        Codes::template expand<true>(words[i], a[tile][i / 2][i % 2], a[tile][i / 2][i % 2 + 2]);
    }
  }

  // A 16-bit unit of a transposed load is a token's pair of elements: the even ones are rows g, the odd ones g + 8.
  template <int kRowBytes, int kTiles>
  static PAGEDSERVE_DEVICE void load_values(const unsigned char* rows, int token, int group,
                                            uint32_t (&a)[kTiles][kValueTiles][4]) {
    const MatrixLane lane = matrix_lane();
    PAGEDSERVE_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
      const int row = token + 16 * tile + lane.matrix % 2 * 8 + lane.row;
      uint32_t words[4];
      target::load_matrices_transposed<4>(words,
                                          rows + SharedRows<kRowBytes>::offset(row, 2 * group + lane.matrix / 2));
      PAGEDSERVE_UNROLL
      for (int i = 0; i < 4; ++i) {
        Codes::template expand<false>(words[i], a[tile][i / 2][i % 2 * 2], a[tile][i / 2][i % 2 * 2 + 1]);
      }
    }
  }
};

struct I8Codes {
  // 0x6400 + u is the f16 1024 + u, for u of 0 .. 255; u is the code plus 128.
  template <bool kNeighbours>
  static PAGEDSERVE_DEVICE void expand(uint32_t word, uint32_t& low, uint32_t& high) {
    const uint32_t biased = word ^ 0x80808080u;
    low = target::sub_f16x2(target::permute_bytes(biased, 0x64646464u, kNeighbours ? 0x4140 : 0x4240), 0x64806480u);
    high = target::sub_f16x2(target::permute_bytes(biased, 0x64646464u, kNeighbours ? 0x4342 : 0x4341), 0x64806480u);
  }
};

struct F8E4M3Codes {
  template <bool kNeighbours>
  static PAGEDSERVE_DEVICE void expand(uint32_t word, uint32_t& low, uint32_t& high) {
    if constexpr (target::kArch >= 89) {
      const uint32_t ordered = kNeighbours ? word : target::permute_bytes(word, 0, 0x3120);
      low = target::f16x2_of_f8x2(static_cast<uint16_t>(ordered));
      high = target::f16x2_of_f8x2(static_cast<uint16_t>(ordered >> 16));
    } else {
      low = shifted(target::permute_bytes(word, 0, kNeighbours ? 0x1404 : 0x2404));
      high = shifted(target::permute_bytes(word, 0, kNeighbours ? 0x3424 : 0x3414));
    }
  }

 private:
  // Codes in the high bytes of both halves. f16 has the fields one bit further right and an exponent bias larger by 8.
  static PAGEDSERVE_DEVICE uint32_t shifted(uint32_t codes) {
    const uint32_t magnitude = codes >> 1 & 0x3f803f80u;
    const uint32_t value = target::mul_f16x2(magnitude | (codes & 0x80008000u), 0x5c005c00u);  // times 256
    // 0x7f is NaN: one more in its last place carries. It became 480, and one bit of the exponent makes that NaN.
    return value | ((magnitude + 0x00800080u) & 0x40004000u) >> 1;
  }
};

template <>
struct KvFormat<int8_t> : KvFormatBytes<I8Codes> {};
template <>
struct KvFormat<target::F8E4M3> : KvFormatBytes<F8E4M3Codes> {};

// 4-bit codes, eight to a register; loads read 32 tokens by one chunk of 32 elements.
template <>
struct KvFormat<I4x2> {
  using Number = target::F16;
  static constexpr int kBits = 4;
  static constexpr bool kScaled = true;
  static constexpr int kKeySteps = 2;
  static constexpr int kValueTiles = 2;
  static constexpr int kRunDims = 4;

  static PAGEDSERVE_DEVICE int query_dim(int step, int q, int reg, int half) {
    return 32 * (step / 2) + 8 * q + 2 * (step % 2) + reg + 4 * half;
  }
  static PAGEDSERVE_DEVICE int value_dim(int tile, int half, int g) {
    return 32 * (tile / 2) + 4 * g + 2 * (tile % 2) + half;
  }

  template <int kRowBytes, int kTiles>
  static PAGEDSERVE_DEVICE void load_keys(const unsigned char* rows, int token, int group,
                                          uint32_t (&a)[kTiles][kKeySteps][4]) {
    PAGEDSERVE_UNROLL
    for (int tile = 0; tile < kTiles; tile += 2) {
      uint32_t words[4];
      target::load_matrices<4>(words, address<kRowBytes>(rows, token + 16 * tile, group));
      PAGEDSERVE_UNROLL
      for (int i = 0; i < 4; ++i) {
        PAGEDSERVE_UNROLL
        for (int nibble = 0; nibble < 4; ++nibble) {
          a[tile + i / 2][nibble / 2][i % 2 + nibble % 2 * 2] = expand(words[i], nibble);
        }
      }
    }
  }

  // A 16-bit unit of a transposed load is a token's run of four elements: rows g and g + 8 of two tiles.
  template <int kRowBytes, int kTiles>
  static PAGEDSERVE_DEVICE void load_values(const unsigned char* rows, int token, int group,
                                            uint32_t (&a)[kTiles][kValueTiles][4]) {
    PAGEDSERVE_UNROLL
    for (int tile = 0; tile < kTiles; tile += 2) {
      uint32_t words[4];
      target::load_matrices_transposed<4>(words, address<kRowBytes>(rows, token + 16 * tile, group));
      PAGEDSERVE_UNROLL
      for (int i = 0; i < 4; ++i) {
        PAGEDSERVE_UNROLL
        for (int nibble = 0; nibble < 4; ++nibble) {
          a[tile + i / 2][nibble / 2][i % 2 * 2 + nibble % 2] = expand(words[i], nibble);
        }
      }
    }
  }

 private:
  template <int kRowBytes>
  static PAGEDSERVE_DEVICE const unsigned char* address(const unsigned char* rows, int token, int chunk) {
    const MatrixLane lane = matrix_lane();
    return rows + SharedRows<kRowBytes>::offset(token + lane.matrix * 8 + lane.row, chunk);
  }
  // 0x6400 + n is the f16 1024 + n, and 0x6400 + 16 n is 1024 + 16 n: one shift for two pairs of nibbles. All exact.
  static PAGEDSERVE_DEVICE uint32_t expand(uint32_t word, int nibble) {
    const uint32_t pairs = nibble < 2 ? word : word >> 8;
    if (nibble % 2 == 0) return target::sub_f16x2((pairs & 0x000f000fu) | 0x64006400u, 0x64086408u);
    return target::fma_f16x2((pairs & 0x00f000f0u) | 0x64006400u, 0x2c002c00u, 0xd480d480u);  // x / 16 - 72
  }
};

}  // namespace pagedserve::parts
