// SPDX-License-Identifier: Apache-2.0
// packed_weight.h: how linear and embed keep a weight in memory, the same for every instruction set.
//
// A header of 64 bytes, then panels of 16 output rows, each one contiguous run of bytes, so that a worker
// streams its share of a matrix from end to end. Rows past out_features are zero.
//
//   f32   [in_features][16] f32
//   bf16  [ceil(in_features / 2)][16][2] bf16    element in_features of an odd row is zero
//   q8    [num_blocks] of                        a block is 32 elements along in_features
//           codes [8][16][4] u8                  code + 128, element 4 i + b of each row at [i][row][b]
//           scales [16]
//   q4    [num_blocks] of
//           codes [4][16][4] u8                  element 4 i + b in the low nibble, 16 + 4 i + b in the high
//           scales [16], minimums [16]
//
// Scales and minimums are f16 where that loses nothing, else f32.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../params.h"

namespace pagedserve::cpu {

constexpr int kPanelRows = 16;
constexpr int kBlock = 32;

struct PackedHeader {
  WeightFormat format;
  int32_t out_features, in_features;
  int32_t half_scales;  // 1: scales and minimums are f16
  int64_t reserved[6];
};
static_assert(sizeof(PackedHeader) == 64);

static inline constexpr bool is_low_bit(WeightFormat format) {
  return format == WeightFormat::kQ8 || format == WeightFormat::kQ4;
}

// Bytes of a panel, and for q8 and q4 of a block and to its parts.
struct PanelLayout {
  int64_t panel_bytes, block_bytes, scales, minimums;
};

static inline constexpr PanelLayout panel_layout(WeightFormat format, int32_t in_features, bool half_scales) {
  if (format == WeightFormat::kF32) return {int64_t{in_features} * kPanelRows * 4, 0, 0, 0};
  if (format == WeightFormat::kBF16) return {(int64_t{in_features} + 1) / 2 * kPanelRows * 4, 0, 0, 0};
  const int64_t codes = kPanelRows * kBlock / (format == WeightFormat::kQ4 ? 2 : 1);
  const int64_t scales = kPanelRows * (half_scales ? 2 : 4);
  const int64_t block = codes + scales * (format == WeightFormat::kQ4 ? 2 : 1);
  return {in_features / kBlock * block, block, codes, codes + scales};
}

static inline constexpr int64_t packed_bytes(WeightFormat format, int32_t out_features, int32_t in_features,
                                             bool half_scales) {
  const int64_t panels = (int64_t{out_features} + kPanelRows - 1) / kPanelRows;
  return static_cast<int64_t>(sizeof(PackedHeader)) +
         panels * panel_layout(format, in_features, half_scales).panel_bytes;
}

// A matrix as its maker gives it: rows without gaps.
struct PackWeightParams {
  const void* data;  // [out_features, in_features]       f32, bf16 or q8's i8; q4: [.., in_features / 2] u8, even k low
  const float* scales;    // [out_features, in_features / 32]  q8, q4
  const float* minimums;  // [out_features, in_features / 32]  q4
  void* packed;           // packed_bytes() bytes, 64-byte aligned
  int32_t out_features, in_features;
  int32_t half_scales;
  WeightFormat format;
};

// True where every value survives a round trip through f16.
bool fits_half(const float* values, int64_t count);

// Each worker packs its own panels.
void pack_weight(const PackWeightParams&, class Worker&);

}  // namespace pagedserve::cpu
