// SPDX-License-Identifier: Apache-2.0
// launch.h: every launcher. Each puts its op's kernels into a CUDA stream and returns 0, or an error that
// pagedserve_error_text explains. None checks its arguments, allocates or waits. A launch file includes this, so that
// its launchers can be seen from outside of the library that it becomes.
#pragma once

#include "../params.h"

#pragma GCC visibility push(default)
extern "C" {
int pagedserve_append_kv(const pagedserve::AppendKvParams* params, void* stream);
int pagedserve_copy_pages(const pagedserve::CopyPagesParams* params, void* stream);
int pagedserve_plan_decode(const pagedserve::PlanDecodeParams* params, void* stream);
const char* pagedserve_error_text(int error);
}
#pragma GCC visibility pop
