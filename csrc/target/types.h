// SPDX-License-Identifier: Apache-2.0
// types.h: storage types and small values that both dictionaries share. No toolkit header is needed for them.
#pragma once

#include <cstdint>
#include <cstring>

namespace pagedserve::target {

struct BF16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};
struct F8E4M3 {
  uint8_t bits;
};

// What one load or store moves.
struct alignas(8) U32x2 {
  uint32_t x, y;
};
struct alignas(16) U32x4 {
  uint32_t x, y, z, w;
};

struct FloatPair {
  float low, high;
};

struct Dim3 {
  uint32_t x = 1, y = 1, z = 1;
};

// What an atomic says about the thread's other reads and writes, as in C++.
enum class Order { kRelaxed, kAcquire, kRelease, kAcqRel };

// The axis of a matrix along which neighbours stand next to each other in shared memory.
enum class Major { kK, kMN };

constexpr int kWarpSize = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

struct LaunchShape {
  Dim3 grid;
  int threads = 0;                // of a block; blocks are one-dimensional
  int shared_bytes = 0;           // dynamic shared memory of a block
  bool overlap_previous = false;  // may start before the kernel before it in the stream has ended
};

}  // namespace pagedserve::target
