// SPDX-License-Identifier: Apache-2.0
// target.cuh: the words that kernels are written in. One door, two dictionaries: nvcc's (cuda.cuh), and that of any
// C++17 compiler (emu.h), under which a kernel runs on the CPU, a fiber per thread.
//
// Include this alone. A kernel uses only what both dictionaries define; DESIGN.md, "CUDA sources", lists it.
#pragma once

#if defined(PAGEDSERVE_EMULATED)
#include "emu.h"
#elif defined(__CUDACC__)
#include "cuda.cuh"
#else
#error "csrc/target needs nvcc, or any C++17 compiler with -DPAGEDSERVE_EMULATED"
#endif
