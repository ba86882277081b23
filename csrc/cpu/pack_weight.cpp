// SPDX-License-Identifier: Apache-2.0
// pack_weight.cpp: rearranges a weight into panels of 16 rows, as packed_weight.h lays them out
//
// Work     each worker packs a contiguous range of panels
// Traffic  reads the matrix once, writes it once
// Oracle   pagedserve/backends/reference/linear.py reads the same matrix unpacked
#include <cstring>

#include "packed_weight.h"
#include "team.h"

namespace pagedserve::cpu {

namespace {

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// True where `half` is exactly `value`. Not for NaN: its payload may not fit.
bool to_half(float value, uint16_t* half) {
  const uint32_t bits = bits_of(value);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  const int exponent = static_cast<int>(magnitude >> 23) - 127;
  if (magnitude == 0 || magnitude == 0x7f800000) {
    *half = static_cast<uint16_t>(sign | (magnitude ? 0x7c00 : 0));
    return true;
  }
  if (exponent < -24 || exponent > 15) return false;
  const uint32_t fraction = (magnitude & 0x7fffff) | 0x800000;
  const int dropped = exponent < -14 ? -1 - exponent : 13;  // bits of the fraction that f16 has no room for
  if (fraction & ((1u << dropped) - 1)) return false;
  const uint32_t kept = fraction >> dropped;  // its leading one adds to the exponent of a normal number
  *half = static_cast<uint16_t>(sign | (kept + (exponent < -14 ? 0 : static_cast<uint32_t>(exponent + 14) << 10)));
  return true;
}

template <class T>
T element(const PackWeightParams& p, int64_t row, int64_t column, int64_t columns) {
  return row < p.out_features && column < columns ? static_cast<const T*>(p.data)[row * columns + column] : T{};
}

void pack_dense(const PackWeightParams& p, int64_t first_row, unsigned char* panel) {
  const int64_t columns = p.in_features;
  if (p.format == WeightFormat::kF32) {
    float* to = reinterpret_cast<float*>(panel);
    for (int64_t k = 0; k < columns; ++k) {
      for (int row = 0; row < kPanelRows; ++row) *to++ = element<float>(p, first_row + row, k, columns);
    }
    return;
  }
  uint16_t* to = reinterpret_cast<uint16_t*>(panel);
  for (int64_t k = 0; k < columns; k += 2) {
    for (int row = 0; row < kPanelRows; ++row) {
      *to++ = element<uint16_t>(p, first_row + row, k, columns);
      *to++ = element<uint16_t>(p, first_row + row, k + 1, columns);
    }
  }
}

// The bytes of a row's block of codes; those of a row beyond the last are 0.
const unsigned char* block_bytes(const PackWeightParams& p, int64_t row, int64_t block, int bytes_per_block) {
  static constexpr unsigned char kNothing[kBlock] = {};
  if (row >= p.out_features) return kNothing;
  return static_cast<const unsigned char*>(p.data) + (row * (p.in_features / kBlock) + block) * bytes_per_block;
}

// The codes of one block of 16 rows: fours of neighbours, row by row.
void pack_q8_block(const PackWeightParams& p, int64_t first_row, int64_t block, unsigned char* to) {
  for (int row = 0; row < kPanelRows; ++row) {
    const unsigned char* from = block_bytes(p, first_row + row, block, kBlock);
    for (int i = 0; i < kBlock; ++i) {
      to[(i / 4 * kPanelRows + row) * 4 + i % 4] = static_cast<unsigned char>(from[i] + 128);
    }
  }
}

// Element i in the low half of a byte, i + 16 in its high half; the matrix has 2 j and 2 j + 1 in byte j.
void pack_q4_block(const PackWeightParams& p, int64_t first_row, int64_t block, unsigned char* to) {
  for (int row = 0; row < kPanelRows; ++row) {
    const unsigned char *low = block_bytes(p, first_row + row, block, kBlock / 2), *high = low + kBlock / 4;
    for (int j = 0; j < kBlock / 4; ++j) {
      unsigned char* pair = to + (j / 2 * kPanelRows + row) * 4 + j % 2 * 2;
      pair[0] = static_cast<unsigned char>((low[j] & 15) | high[j] << 4);
      pair[1] = static_cast<unsigned char>(low[j] >> 4 | (high[j] & 0xf0));
    }
  }
}

// Scales or minimums of one block.
void pack_scales(const PackWeightParams& p, const float* scales, int64_t first_row, int64_t block, unsigned char* to) {
  for (int row = 0; row < kPanelRows; ++row) {
    const int64_t from = (first_row + row) * (p.in_features / kBlock) + block;
    const float scale = first_row + row < p.out_features ? scales[from] : 0.f;
    if (p.half_scales) {
      to_half(scale, reinterpret_cast<uint16_t*>(to) + row);
    } else {
      reinterpret_cast<float*>(to)[row] = scale;
    }
  }
}

void pack_low_bit(const PackWeightParams& p, int64_t first_row, const PanelLayout& layout, unsigned char* panel) {
  for (int64_t block = 0; block < p.in_features / kBlock; ++block, panel += layout.block_bytes) {
    pack_scales(p, p.scales, first_row, block, panel + layout.scales);
    if (p.format == WeightFormat::kQ8) {
      pack_q8_block(p, first_row, block, panel);
    } else {
      pack_q4_block(p, first_row, block, panel);
      pack_scales(p, p.minimums, first_row, block, panel + layout.minimums);
    }
  }
}

}  // namespace

bool fits_half(const float* values, int64_t count) {
  uint16_t half;
  for (int64_t i = 0; i < count; ++i) {
    if (!to_half(values[i], &half)) return false;
  }
  return true;
}

void pack_weight(const PackWeightParams& p, Worker& worker) {
  const PanelLayout layout = panel_layout(p.format, p.in_features, p.half_scales);
  const int64_t panels = (int64_t{p.out_features} + kPanelRows - 1) / kPanelRows;
  auto* packed = static_cast<unsigned char*>(p.packed);
  if (worker.rank() == 0) {
    const PackedHeader header{p.format, p.out_features, p.in_features, p.half_scales, {}};
    std::memcpy(packed, &header, sizeof(header));
  }
  const Range own = worker.share(panels);
  for (int64_t i = own.begin; i < own.end; ++i) {
    unsigned char* panel = packed + sizeof(PackedHeader) + i * layout.panel_bytes;
    const int64_t first_row = i * kPanelRows;
    if (is_low_bit(p.format)) {
      pack_low_bit(p, first_row, layout, panel);
    } else {
      pack_dense(p, first_row, panel);
    }
  }
}

}  // namespace pagedserve::cpu
