// SPDX-License-Identifier: Apache-2.0
// cuda_hopper.cuh: what sm_90 adds: mbarriers, bulk copies, wgmma, register counts. Included by cuda.cuh. A kernel that
// is compiled for older architectures too uses these under `if constexpr (kHasHopper)`.
#pragma once

namespace pagedserve::target {}  // namespace pagedserve::target
