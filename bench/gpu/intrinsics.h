// SPDX-License-Identifier: Apache-2.0
// intrinsics.h: what intrinsics.cu is called with.
#pragma once

#include <cstdint>

namespace pagedserve {

struct IntrinsicsParams {
  const uint32_t* in;  // [num_blocks, 32, 8]   of each lane
  uint32_t* out;       // [num_blocks, 32, 8]
  uint32_t* global;    // [num_blocks, 32, 8]   what atomics and copies work on
  int32_t which, num_blocks;
};

}  // namespace pagedserve
