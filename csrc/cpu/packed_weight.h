// SPDX-License-Identifier: Apache-2.0
// packed_weight.h: how linear and embed keep a weight in memory, the same for every instruction set.
//
// A header of 64 bytes, then panels of 16 output rows, each one contiguous run of bytes, so that a worker
// streams its share of a matrix from end to end. Rows past out_features are zero.
//
//   f32   [in_features][16] f32
//   bf16  [ceil(in_features / 2)][16][2] bf16              element in_features of an odd row is zero
//   q8    [num_blocks][8][16][4] u8 (code + 128)           then scales [num_blocks][16]
//   q4    [num_blocks][4][16][4] u8                        then scales, then minimums [num_blocks][16]
//         byte [i][row][b]: code 4 i + b in the low nibble, code 16 + 4 i + b in the high
//
// A block is 32 elements along in_features. Scales and minimums are f16 where that loses nothing, else f32.
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

// Where the parts of one panel lie, in bytes from its start.
struct PanelLayout {
  int64_t scales, minimums, panel_bytes;
};

static inline constexpr PanelLayout panel_layout(WeightFormat format, int32_t in_features, bool half_scales) {
  const int64_t blocks = in_features / kBlock;
  const int64_t scales_bytes = blocks * kPanelRows * (half_scales ? 2 : 4);
  switch (format) {
    case WeightFormat::kF32:
      return {0, 0, int64_t{in_features} * kPanelRows * 4};
    case WeightFormat::kBF16:
      return {0, 0, (int64_t{in_features} + 1) / 2 * kPanelRows * 4};
    case WeightFormat::kQ8: {
      const int64_t codes = blocks * kPanelRows * kBlock;
      return {codes, codes + scales_bytes, (codes + scales_bytes + 63) / 64 * 64};
    }
    case WeightFormat::kQ4:
      break;
  }
  const int64_t codes = blocks * kPanelRows * kBlock / 2;
  return {codes, codes + scales_bytes, codes + 2 * scales_bytes};
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
