// SPDX-License-Identifier: Apache-2.0
// shared_rows.cuh: rows of keys or values in shared memory, laid out so that eight rows' chunks lie in eight banks.
#pragma once

#include "../target/target.cuh"

namespace pagedserve::parts {

constexpr int kChunkBytes = 16;  // what an async copy moves, and a row of load_matrices

template <int kRowBytes>
struct SharedRows {
  static constexpr int kChunks = kRowBytes / kChunkBytes;
  static_assert(kRowBytes % kChunkBytes == 0, "rows are whole chunks");

  // The 8 rows of a matrix must spread over the 8 chunks of 32 banks. Rows of an odd number of chunks do so by
  // themselves; others repeat after 8 / gcd(chunks, 8) rows, and each repetition swaps chunks another way.
  static PAGEDSERVE_DEVICE int offset(int row, int chunk) {
    constexpr int kShared = kChunks % 8 == 0 ? 8 : kChunks % 4 == 0 ? 4 : kChunks % 2 == 0 ? 2 : 1;
    constexpr int kPeriod = 8 / kShared;
    return row * kRowBytes + (chunk ^ (row / kPeriod % kShared)) * kChunkBytes;
  }
};

}  // namespace pagedserve::parts
