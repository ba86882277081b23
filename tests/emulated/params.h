// SPDX-License-Identifier: Apache-2.0
// params.h: what the kernels of the emulator's own tests are given.
#pragma once

#include <cstdint>

namespace pagedserve {

struct FaultParams {
  const float* in;  // [64]
  float* out;       // [64]
  float* scratch;   // [256]
  uint32_t* flags;  // [1]    zero
  int32_t shared_bytes;
};

struct HopperParams {
  const void* a;  // [64, depth]                    bf16
  const void* b;  // [n, depth], or [depth, n]      bf16
  float* c;       // [64, n]
  int32_t depth;
};

}  // namespace pagedserve
