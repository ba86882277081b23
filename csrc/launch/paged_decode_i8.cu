// SPDX-License-Identifier: Apache-2.0
// paged_decode_i8.cu: paged_decode over pages of i8.
#include "paged_decode.cuh"

extern "C" int pagedserve_paged_decode_i8(const pagedserve::PagedAttentionParams* p, void* stream) {
  using namespace pagedserve;
  return launchers::launch_paged_decode<int8_t>(*p, stream);
}
