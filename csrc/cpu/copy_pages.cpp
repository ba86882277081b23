// SPDX-License-Identifier: Apache-2.0
// copy_pages.cpp: dst[dst_pages[i]] = src[src_pages[i]]
//
// Work     each thread copies its share of every page's bytes, so copies happen in list order even
//          where one copy reads what an earlier one wrote
// Traffic  2 * num_copies * page_bytes
// Oracle   pagedserve/backends/reference/cache.py::copy_pages
#include <algorithm>
#include <cstring>

#include "kernels.h"

namespace pagedserve::cpu {

void copy_pages(const CopyPagesParams& p, Worker& worker) {
  constexpr int64_t kLine = 64;
  const int64_t lines = (p.page_bytes + kLine - 1) / kLine;
  const int64_t begin = std::min(p.page_bytes, lines * worker.rank() / worker.size() * kLine);
  const int64_t end = std::min(p.page_bytes, lines * (worker.rank() + 1) / worker.size() * kLine);
  if (begin == end) return;
  for (int64_t i = 0; i < p.num_copies; ++i) {
    const char* from = static_cast<const char*>(p.src) + p.src_pages[i] * p.src_page_stride_bytes + begin;
    char* to = static_cast<char*>(p.dst) + p.dst_pages[i] * p.dst_page_stride_bytes + begin;
    std::memmove(to, from, end - begin);
  }
}

}  // namespace pagedserve::cpu
