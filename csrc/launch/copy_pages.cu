// SPDX-License-Identifier: Apache-2.0
// copy_pages.cu: 16-byte columns where bases, strides and pages allow them, else single bytes.
#include "../kernels/cache/copy_pages.cuh"
#include "launch.h"

extern "C" int pagedserve_copy_pages(const pagedserve::CopyPagesParams* p, void* stream) {
  using namespace pagedserve;
  if (p->num_copies == 0 || p->page_bytes == 0) return 0;
  const uintptr_t bits = reinterpret_cast<uintptr_t>(p->src) | reinterpret_cast<uintptr_t>(p->dst) |
                         static_cast<uintptr_t>(p->src_page_stride_bytes | p->dst_page_stride_bytes | p->page_bytes);
  const int column_bytes = bits % sizeof(target::U32x4) == 0 ? sizeof(target::U32x4) : 1;
  const int64_t columns = p->page_bytes / column_bytes;
  target::LaunchShape shape;
  shape.threads = kernels::kCopyThreads;
  shape.grid.x = static_cast<uint32_t>((columns + shape.threads - 1) / shape.threads);
  if (column_bytes == 1) {
    return target::launch("copy_pages", shape, stream, kernels::copy_pages_kernel<uint8_t>, *p);
  }
  return target::launch("copy_pages", shape, stream, kernels::copy_pages_kernel<target::U32x4>, *p);
}
