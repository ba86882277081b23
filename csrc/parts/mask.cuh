// SPDX-License-Identifier: Apache-2.0
// mask.cuh: which keys a query sees.
#pragma once

#include "../target/target.cuh"

namespace pagedserve::parts {

// A query at `position`, the last of q_len standing at kv_len - 1. Positions below 0 see nothing.
struct View {
  int32_t begin, end;  // tokens that the query sees, or of which its tree mask chooses
  uint32_t tree;       // bit j: token new_begin + j is seen; all ones without a tree mask
  int32_t position;
};

struct MaskRule {
  int32_t kv_len, q_len, window;  // window <= 0: all
  const uint8_t* tree;            // [q_len, q_len] of the sequence; null: causal

  PAGEDSERVE_DEVICE int32_t new_begin() const { return kv_len - q_len; }

  PAGEDSERVE_DEVICE View view(int32_t query) const {
    const int32_t position = new_begin() + query;
    if (position < 0) return {0, 0, 0, position};
    const int32_t begin = window > 0 && position >= window ? position - window + 1 : 0;
    if (tree == nullptr) return {begin, position + 1, 0xffffffffu, position};
    uint32_t bits = 0;
    for (int32_t j = 0; j < q_len; ++j) bits |= static_cast<uint32_t>(tree[query * q_len + j] != 0) << j;
    return {begin, kv_len, bits, position};
  }
};

PAGEDSERVE_DEVICE bool sees(const View& view, int32_t new_begin, int32_t token) {
  if (token < view.begin || token >= view.end) return false;
  return token < new_begin || (view.tree >> (token - new_begin) & 1) != 0;
}

}  // namespace pagedserve::parts
