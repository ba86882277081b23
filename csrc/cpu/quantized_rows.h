// SPDX-License-Identifier: Apache-2.0
// quantized_rows.h: activations as q8 and q4 linear layers read them.
//
// Rows are kept in tiles of 8 tokens, tile after tile, each [in_features / 32] blocks long. A block's scale is
// amax / 127 over its 32 elements and code = x / scale rounded to nearest even; a block whose scale would not be a
// normal number (0, or below 1.2e-38) is all zero, and one that holds NaN or infinity has scale NaN.
#pragma once

#include <cstdint>

#include "packed_weight.h"

namespace pagedserve::cpu {

constexpr int kTileTokens = 8;

struct QuantizedBlock {
  int8_t codes[kTileTokens][kBlock];
  float scales[kTileTokens];
  float scaled_sums[kTileTokens];  // scale * sum of codes: what a weight's minimum is multiplied by
  int32_t offsets[kTileTokens];    // -128 * sum of codes: undoes the + 128 of q8's stored codes
};

static inline constexpr int64_t quantized_bytes(int64_t num_tokens, int32_t width) {
  return (num_tokens + kTileTokens - 1) / kTileTokens * (width / kBlock) * static_cast<int64_t>(sizeof(QuantizedBlock));
}

}  // namespace pagedserve::cpu
