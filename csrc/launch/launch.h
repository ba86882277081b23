// SPDX-License-Identifier: Apache-2.0
// launch.h: every launcher. Each puts its op's kernels into a CUDA stream and returns 0, or an error that
// pagedserve_error_text explains. None checks its arguments, allocates or waits. A launch file includes this, so that
// its launchers can be seen from outside of the library that it becomes.
#pragma once

#include "../params.h"

#pragma GCC visibility push(default)
extern "C" {
// One for each format of keys and values.
int pagedserve_paged_decode_bf16(const pagedserve::PagedAttentionParams* params, void* stream);
int pagedserve_paged_decode_f16(const pagedserve::PagedAttentionParams* params, void* stream);
int pagedserve_paged_decode_f8(const pagedserve::PagedAttentionParams* params, void* stream);
int pagedserve_paged_decode_i8(const pagedserve::PagedAttentionParams* params, void* stream);
int pagedserve_paged_decode_i4(const pagedserve::PagedAttentionParams* params, void* stream);
int pagedserve_merge_states(const pagedserve::MergeStatesParams* params, void* stream);
int pagedserve_append_kv(const pagedserve::AppendKvParams* params, void* stream);
int pagedserve_copy_pages(const pagedserve::CopyPagesParams* params, void* stream);
int pagedserve_plan_decode(const pagedserve::PlanDecodeParams* params, void* stream);
const char* pagedserve_error_text(int error);
}
#pragma GCC visibility pop
