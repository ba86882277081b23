// SPDX-License-Identifier: Apache-2.0
// plan_decode.cu: one block makes the plan.
#include "../plan/plan_decode.cuh"
#include "launch.h"

extern "C" int pagedserve_plan_decode(const pagedserve::PlanDecodeParams* p, void* stream) {
  using namespace pagedserve;
  target::LaunchShape shape;
  shape.threads = plan::kPlanThreads;
  return target::launch("plan_decode", shape, stream, plan::plan_decode_kernel, *p);
}
