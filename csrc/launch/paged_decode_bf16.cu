// SPDX-License-Identifier: Apache-2.0
// paged_decode_bf16.cu: paged_decode over pages of bf16.
#include "paged_decode.cuh"

extern "C" int pagedserve_paged_decode_bf16(const pagedserve::PagedAttentionParams* p, void* stream) {
  using namespace pagedserve;
  return launchers::launch_paged_decode<target::BF16>(*p, stream);
}
