// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "../params.h"

namespace pagedserve::plan {

// Writes the plan of a decode into p.workspace, on the host. False where the workspace is too small to hold one.
bool plan_decode(const PlanDecodeParams& p);

}  // namespace pagedserve::plan
