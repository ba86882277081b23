// SPDX-License-Identifier: Apache-2.0
// paged_decode_f8.cu: paged_decode over pages of f8.
#include "paged_decode.cuh"

extern "C" int pagedserve_paged_decode_f8(const pagedserve::PagedAttentionParams* p, void* stream) {
  using namespace pagedserve;
  return launchers::launch_paged_decode<target::F8E4M3>(*p, stream);
}
