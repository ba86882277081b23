// SPDX-License-Identifier: Apache-2.0
// cuda.cuh: the vocabulary of kernels for nvcc, on sm_80 and above. With cuda_hopper.cuh the only place with PTX and
// CUDA words. PTX ISA 8.x is the source of each instruction; the emulator (emu.h) has the same names.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <type_traits>

#include "types.h"

#define PAGEDSERVE_DEVICE __device__ __forceinline__
#define PAGEDSERVE_HOST_DEVICE __host__ __device__ __forceinline__
#define PAGEDSERVE_KERNEL(max_threads, min_blocks) __global__ void __launch_bounds__(max_threads, min_blocks)
#define PAGEDSERVE_GRID_CONSTANT const __grid_constant__
#define PAGEDSERVE_UNROLL _Pragma("unroll")
#define PAGEDSERVE_ROLLED _Pragma("unroll 1")  // a loop that is to stay one
#define PAGEDSERVE_DYNAMIC_SHARED(name)                                        \
  extern __shared__ __align__(1024) unsigned char pagedserve_dynamic_shared[]; \
  unsigned char* const name = pagedserve_dynamic_shared
// The type comes last, and may have commas and extents: PAGEDSERVE_SHARED(sums, float[8]).
#define PAGEDSERVE_SHARED(name, ...) __shared__ __align__(16)::pagedserve::target::TypeOf<__VA_ARGS__> name

#include "convert.h"

namespace pagedserve::target {

template <class T>
struct TypeIdentity {
  using Type = T;
};
template <class T>
using TypeOf = typename TypeIdentity<T>::Type;

// The architecture that is compiled for: 80, 90, ...; 0 in host code.
#if defined(__CUDA_ARCH__)
constexpr int kArch = __CUDA_ARCH__ / 10;
#else
constexpr int kArch = 0;
#endif
// mbarriers and bulk copies need sm_90; wgmma and set_max_registers need sm_90a.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kHasHopper = true;
#else
constexpr bool kHasHopper = false;
#endif

// ---- where am I ----

PAGEDSERVE_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
PAGEDSERVE_DEVICE int num_threads() { return static_cast<int>(blockDim.x); }
PAGEDSERVE_DEVICE int lane_index() { return static_cast<int>(threadIdx.x % kWarpSize); }
PAGEDSERVE_DEVICE int warp_index() { return static_cast<int>(threadIdx.x / kWarpSize); }
PAGEDSERVE_DEVICE Dim3 block_index() { return Dim3{blockIdx.x, blockIdx.y, blockIdx.z}; }
PAGEDSERVE_DEVICE Dim3 num_blocks() { return Dim3{gridDim.x, gridDim.y, gridDim.z}; }

// ---- barriers, fences, the grid ----

PAGEDSERVE_DEVICE void sync_threads() { __syncthreads(); }
PAGEDSERVE_DEVICE void sync_warp(uint32_t members = kAllLanes) { __syncwarp(members); }
// Barriers 1 to 15; `threads` counts those that arrive and those that wait, a multiple of 32.
PAGEDSERVE_DEVICE void sync_named(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
PAGEDSERVE_DEVICE void arrive_named(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
PAGEDSERVE_DEVICE void fence_block() { asm volatile("fence.acq_rel.cta;" ::: "memory"); }
PAGEDSERVE_DEVICE void fence_device() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
PAGEDSERVE_DEVICE void spin_pause() { asm volatile("nanosleep.u32 64;" ::: "memory"); }

// What the kernel before this one in the stream wrote may be read only after wait_for_previous_kernel().
PAGEDSERVE_DEVICE void wait_for_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
PAGEDSERVE_DEVICE void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- lanes of a warp ----

template <class T>
PAGEDSERVE_DEVICE T shuffle(T value, int lane, uint32_t members = kAllLanes, int width = kWarpSize) {
  return __shfl_sync(members, value, lane, width);
}
template <class T>
PAGEDSERVE_DEVICE T shuffle_xor(T value, int mask, uint32_t members = kAllLanes, int width = kWarpSize) {
  return __shfl_xor_sync(members, value, mask, width);
}
template <class T>
PAGEDSERVE_DEVICE T shuffle_up(T value, int delta, uint32_t members = kAllLanes, int width = kWarpSize) {
  return __shfl_up_sync(members, value, delta, width);
}
template <class T>
PAGEDSERVE_DEVICE T shuffle_down(T value, int delta, uint32_t members = kAllLanes, int width = kWarpSize) {
  return __shfl_down_sync(members, value, delta, width);
}
PAGEDSERVE_DEVICE uint32_t ballot(bool predicate, uint32_t members = kAllLanes) {
  return __ballot_sync(members, predicate);
}
PAGEDSERVE_DEVICE bool any_lane(bool predicate, uint32_t members = kAllLanes) {
  return __any_sync(members, predicate) != 0;
}
PAGEDSERVE_DEVICE bool all_lanes(bool predicate, uint32_t members = kAllLanes) {
  return __all_sync(members, predicate) != 0;
}

}  // namespace pagedserve::target

// In this order: the later ones use the earlier ones' words.
// clang-format off
#include "cuda_memory.cuh"
#include "cuda_numbers.cuh"
#include "cuda_hopper.cuh"
// clang-format on
