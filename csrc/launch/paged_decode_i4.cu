// SPDX-License-Identifier: Apache-2.0
// paged_decode_i4.cu: paged_decode over pages of i4.
#include "paged_decode.cuh"

extern "C" int pagedserve_paged_decode_i4(const pagedserve::PagedAttentionParams* p, void* stream) {
  using namespace pagedserve;
  return launchers::launch_paged_decode<parts::I4x2>(*p, stream);
}
