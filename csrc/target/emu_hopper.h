// SPDX-License-Identifier: Apache-2.0
// emu_hopper.h: what sm_90 adds, emulated. Included by emu.h; meanings stand in cuda_hopper.cuh.
#pragma once

namespace pagedserve::emulator {
struct HopperState {};
}  // namespace pagedserve::emulator
