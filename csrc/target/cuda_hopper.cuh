// SPDX-License-Identifier: Apache-2.0
// cuda_hopper.cuh: what sm_90 adds: mbarriers, bulk copies, products of warp groups, register counts. Included by
// cuda.cuh. A kernel that is compiled for older architectures too uses these under `if constexpr (kHasHopper)`.
#pragma once

#include <cuda.h>

namespace pagedserve::target {

// ---- mbarriers: a uint64_t in shared memory that counts arrivals, and bytes that bulk copies have brought ----

// Once, by one thread; then mbarrier_init_fence() and a barrier of the block before anybody uses it.
PAGEDSERVE_DEVICE void mbarrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
PAGEDSERVE_DEVICE void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
PAGEDSERVE_DEVICE void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }" ::"r"(shared_address(barrier))
               : "memory");
}
// Arrives, and makes the phase wait for so many bytes.
PAGEDSERVE_DEVICE void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "{ .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1; }" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
// Waits until the phase of this parity has ended: 0 for the first, 1 for the second, 0 for the third.
PAGEDSERVE_DEVICE void mbarrier_wait(uint64_t* barrier, int parity) {
  asm volatile(
      "{ .reg .pred ended; AGAIN: mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1; @!ended bra AGAIN; }" ::"r"(
          shared_address(barrier)),
      "r"(parity)
      : "memory");
}
// Between plain writes to shared memory and an async reader of them: wgmma, or a bulk copy.
PAGEDSERVE_DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- bulk copies, global to shared; one thread starts them, the mbarrier tells when they have landed ----

// Addresses and bytes are multiples of 16.
PAGEDSERVE_DEVICE void copy_bulk(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(shared)),
               "l"(global), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}

// A matrix of 16-bit elements in global memory and the box that one copy moves.
struct alignas(64) TensorMap {
  uint64_t words[16];
};
// The box at column x, row y: rows of 128 bytes, swizzled by 128 bytes, zero outside of the matrix. `shared` is a
// multiple of 1024.
PAGEDSERVE_DEVICE void copy_tensor_2d(void* shared, const TensorMap* map, int x, int y, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
          "r"(shared_address(shared)),
      "l"(map), "r"(x), "r"(y), "r"(shared_address(barrier))
      : "memory");
}
// Host code. width, height and the box count elements; a box is 64 elements wide. Returns 0 or an error.
inline int make_tensor_map_2d(TensorMap* map, const void* base, uint64_t width, uint64_t height, uint64_t pitch_bytes,
                              uint32_t box_height) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  if (error != cudaSuccess) return static_cast<int>(error);
  if (found != cudaDriverEntryPointSuccess) return static_cast<int>(cudaErrorNotSupported);
  const cuuint64_t sizes[2] = {width, height}, strides[1] = {pitch_bytes};
  const cuuint32_t box[2] = {64, box_height}, steps[2] = {1, 1};
  static_assert(sizeof(TensorMap) == sizeof(CUtensorMap), "a tensor map has 128 bytes");
  return static_cast<int>(reinterpret_cast<Encode>(function)(
      reinterpret_cast<CUtensorMap*>(map), CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, const_cast<void*>(base), sizes, strides,
      box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE));
}

// ---- products of a warp group: 128 threads together ----

// A tile in shared memory as copy_tensor_2d leaves it, at a multiple of 1024: rows of 128 bytes, swizzled. K-major: a
// row is 64 elements along k; the next 16 along k are at descriptor + 2. MN-major: a row is 64 elements along m or n;
// the next 16 along k are at descriptor + 128, the next 64 rows of the product `next_64_bytes` further.
PAGEDSERVE_DEVICE uint64_t describe_tile(const void* tile, uint32_t next_64_bytes = 16) {
  return static_cast<uint64_t>((shared_address(tile) & 0x3ffff) >> 4) |
         static_cast<uint64_t>(next_64_bytes >> 4) << 16 | 64ull << 32 | 1ull << 62;
}
PAGEDSERVE_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
PAGEDSERVE_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most kPending groups are under way. Accumulators must not be touched before.
template <int kPending>
PAGEDSERVE_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

template <class T, int kA, int kB>
PAGEDSERVE_DEVICE void wgmma_async(float (&d)[4], uint64_t a, uint64_t b, int keep) {
  PAGEDSERVE_ASM_OF(T, "{ .reg .pred p; setp.ne.b32 p, %6, 0; wgmma.mma_async.sync.aligned.m64n8k16.f32.",
                    " {"
                    "%0, %1, %2, %3"
                    "}, %4, %5, p, 1, 1, %7, %8; }" : "+f"(d[0]),
                    "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "l"(a), "l"(b), "r"(keep), "n"(kA), "n"(kB));
}
template <class T, int kA, int kB>
PAGEDSERVE_DEVICE void wgmma_async(float (&d)[8], uint64_t a, uint64_t b, int keep) {
  PAGEDSERVE_ASM_OF(T, "{ .reg .pred p; setp.ne.b32 p, %10, 0; wgmma.mma_async.sync.aligned.m64n16k16.f32.",
                    " {"
                    "%0, %1, %2, %3, %4, %5, %6, %7"
                    "}, %8, %9, p, 1, 1, %11, %12; }" : "+f"(d[0]),
                    "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]) : "l"(a), "l"(b),
                    "r"(keep), "n"(kA), "n"(kB));
}
template <class T, int kA, int kB>
PAGEDSERVE_DEVICE void wgmma_async(float (&d)[16], uint64_t a, uint64_t b, int keep) {
  PAGEDSERVE_ASM_OF(T, "{ .reg .pred p; setp.ne.b32 p, %18, 0; wgmma.mma_async.sync.aligned.m64n32k16.f32.",
                    " {"
                    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
                    "}, %16, %17, p, 1, 1, %19, %20; }" : "+f"(d[0]),
                    "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
                    "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]) : "l"(a),
                    "l"(b), "r"(keep), "n"(kA), "n"(kB));
}
template <class T, int kA, int kB>
PAGEDSERVE_DEVICE void wgmma_async(float (&d)[32], uint64_t a, uint64_t b, int keep) {
  PAGEDSERVE_ASM_OF(T, "{ .reg .pred p; setp.ne.b32 p, %34, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.",
                    " {"
                    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
                    "}, %32, %33, p, 1, 1, %35, %36; }" : "+f"(d[0]),
                    "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
                    "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
                    "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]),
                    "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
                    "+f"(d[30]), "+f"(d[31]) : "l"(a), "l"(b), "r"(keep), "n"(kA), "n"(kB));
}
// d [64, n] = a [64, 16] b [16, n] (+ d), in T (bf16 or f16) with f32 sums; n is 8, 16, 32 or 64. With warp w, g =
// lane / 4, q = lane % 4 * 2, the thread has d[4 i + j] at row 16 w + g + j / 2 * 8, column 8 i + q + j % 2.
template <class T, Major kMajorA = Major::kK, Major kMajorB = Major::kK, int kCount>
PAGEDSERVE_DEVICE void wgmma_m64k16(float (&d)[kCount], uint64_t a, uint64_t b, bool accumulate = true) {
  wgmma_async<T, kMajorA == Major::kMN, kMajorB == Major::kMN>(d, a, b, accumulate);
}

#undef PAGEDSERVE_ASM_OF

// ---- matrices and registers ----

// The inverse of load_matrices.
template <int N>
PAGEDSERVE_DEVICE void store_matrices(const uint32_t (&r)[N], void* row) {
  static_assert(N == 1 || N == 2 || N == 4, "store_matrices stores 1, 2 or 4");
  const uint32_t address = shared_address(row);
  if constexpr (N == 1)
    asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(address), "r"(r[0]) : "memory");
  else if constexpr (N == 2)
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(r[0]), "r"(r[1])
                 : "memory");
  else
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]),
                 "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}

// Registers that each thread of the warp group may have from here on, a multiple of 8.
template <int kRegisters>
PAGEDSERVE_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
PAGEDSERVE_DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace pagedserve::target
