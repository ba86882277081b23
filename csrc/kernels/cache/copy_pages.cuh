// SPDX-License-Identifier: Apache-2.0
// copy_pages.cuh: dst[dst_pages[i]] = src[src_pages[i]], page by page in order
//
//   src          [num_src_pages, page_bytes]    bytes
//   dst          [num_dst_pages, page_bytes]    bytes    may be src
//   src_pages    [num_copies]                   i64
//   dst_pages    [num_copies]                   i64
//
// Work     each thread has one column of all pages, so copies happen in list order even where one copy reads what an
//          earlier one wrote; 8 copies are under way at once where none of them reads what another of them writes
// Traffic  2 * num_copies * page_bytes
// Bound    memory: 128 bytes in flight a thread, page_bytes / 16 threads
// Source   Kwon et al. 2023 (copy on write, swap)
// Oracle   pagedserve/backends/reference/cache.py::copy_pages
#pragma once

#include "../../params.h"
#include "../../target/target.cuh"

namespace pagedserve::kernels {

constexpr int kCopyThreads = 256;
constexpr int kCopiesAtOnce = 8;

template <class Column>  // U32x4, or a byte where pages are not aligned
PAGEDSERVE_KERNEL(kCopyThreads, 1) copy_pages_kernel(PAGEDSERVE_GRID_CONSTANT CopyPagesParams p) {
  target::wait_for_previous_kernel();
  const int64_t column = static_cast<int64_t>(target::block_index().x) * kCopyThreads + target::thread_index();
  if (column >= p.page_bytes / static_cast<int64_t>(sizeof(Column))) return;
  const char* const src = static_cast<const char*>(p.src) + column * static_cast<int64_t>(sizeof(Column));
  char* const dst = static_cast<char*>(p.dst) + column * static_cast<int64_t>(sizeof(Column));
  for (int64_t first = 0; first < p.num_copies; first += kCopiesAtOnce) {
    const int64_t left = p.num_copies - first;
    const int count = left < kCopiesAtOnce ? static_cast<int>(left) : kCopiesAtOnce;
    const Column* from[kCopiesAtOnce];
    Column* to[kCopiesAtOnce];
    bool reads_a_write = false;
    PAGEDSERVE_UNROLL
    for (int i = 0; i < kCopiesAtOnce; ++i) {
      const int64_t copy = first + (i < count ? i : 0);
      from[i] = reinterpret_cast<const Column*>(src + p.src_pages[copy] * p.src_page_stride_bytes);
      to[i] = reinterpret_cast<Column*>(dst + p.dst_pages[copy] * p.dst_page_stride_bytes);
      PAGEDSERVE_UNROLL
      for (int before = 0; before < i; ++before) reads_a_write = reads_a_write || (i < count && from[i] == to[before]);
    }
    if (reads_a_write) {
      PAGEDSERVE_UNROLL
      for (int i = 0; i < kCopiesAtOnce; ++i) {
        if (i < count) *to[i] = *from[i];
      }
      continue;
    }
    Column held[kCopiesAtOnce];
    PAGEDSERVE_UNROLL
    for (int i = 0; i < kCopiesAtOnce; ++i) {
      if (i < count) held[i] = *from[i];
    }
    PAGEDSERVE_UNROLL
    for (int i = 0; i < kCopiesAtOnce; ++i) {
      if (i < count) *to[i] = held[i];
    }
  }
}

}  // namespace pagedserve::kernels
