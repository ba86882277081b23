// SPDX-License-Identifier: Apache-2.0
// cuda_memory.cuh: atomics, loads and stores, async copies and launches of nvcc's dictionary. Included by cuda.cuh.
#pragma once

namespace pagedserve::target {

// ---- atomics: 32-bit and 64-bit integers, f32 for add; device scope ----

// One instruction for each order, which is part of its name.
#define PAGEDSERVE_ATOM_1(operation, type, letter, result, address, a)   \
  if constexpr (kOrder == Order::kRelaxed)                               \
    asm volatile("atom.relaxed.gpu." operation "." type " %0, [%1], %2;" \
                 : "=" letter(result)                                    \
                 : "l"(address), letter(a)                               \
                 : "memory");                                            \
  else if constexpr (kOrder == Order::kAcquire)                          \
    asm volatile("atom.acquire.gpu." operation "." type " %0, [%1], %2;" \
                 : "=" letter(result)                                    \
                 : "l"(address), letter(a)                               \
                 : "memory");                                            \
  else if constexpr (kOrder == Order::kRelease)                          \
    asm volatile("atom.release.gpu." operation "." type " %0, [%1], %2;" \
                 : "=" letter(result)                                    \
                 : "l"(address), letter(a)                               \
                 : "memory");                                            \
  else                                                                   \
    asm volatile("atom.acq_rel.gpu." operation "." type " %0, [%1], %2;" \
                 : "=" letter(result)                                    \
                 : "l"(address), letter(a)                               \
                 : "memory")
#define PAGEDSERVE_ATOM_2(operation, type, letter, result, address, a, b)    \
  if constexpr (kOrder == Order::kRelaxed)                                   \
    asm volatile("atom.relaxed.gpu." operation "." type " %0, [%1], %2, %3;" \
                 : "=" letter(result)                                        \
                 : "l"(address), letter(a), letter(b)                        \
                 : "memory");                                                \
  else if constexpr (kOrder == Order::kAcquire)                              \
    asm volatile("atom.acquire.gpu." operation "." type " %0, [%1], %2, %3;" \
                 : "=" letter(result)                                        \
                 : "l"(address), letter(a), letter(b)                        \
                 : "memory");                                                \
  else if constexpr (kOrder == Order::kRelease)                              \
    asm volatile("atom.release.gpu." operation "." type " %0, [%1], %2, %3;" \
                 : "=" letter(result)                                        \
                 : "l"(address), letter(a), letter(b)                        \
                 : "memory");                                                \
  else                                                                       \
    asm volatile("atom.acq_rel.gpu." operation "." type " %0, [%1], %2, %3;" \
                 : "=" letter(result)                                        \
                 : "l"(address), letter(a), letter(b)                        \
                 : "memory")

template <Order kOrder = Order::kRelaxed, class T>
PAGEDSERVE_DEVICE T atomic_add(T* address, T value) {
  T old;
  if constexpr (std::is_same<T, float>::value) {
    PAGEDSERVE_ATOM_1("add", "f32", "f", old, address, value);
  } else if constexpr (sizeof(T) == 4) {
    PAGEDSERVE_ATOM_1("add", "u32", "r", old, address, value);
  } else {
    PAGEDSERVE_ATOM_1("add", "u64", "l", old, address, value);
  }
  return old;
}

template <Order kOrder = Order::kRelaxed, class T>
PAGEDSERVE_DEVICE T atomic_exchange(T* address, T value) {
  T old;
  if constexpr (sizeof(T) == 4) {
    PAGEDSERVE_ATOM_1("exch", "b32", "r", old, address, value);
  } else {
    PAGEDSERVE_ATOM_1("exch", "b64", "l", old, address, value);
  }
  return old;
}

// Stores `value` where `expected` stands; returns what stood there.
template <Order kOrder = Order::kRelaxed, class T>
PAGEDSERVE_DEVICE T atomic_cas(T* address, T expected, T value) {
  T old;
  if constexpr (sizeof(T) == 4) {
    PAGEDSERVE_ATOM_2("cas", "b32", "r", old, address, expected, value);
  } else {
    PAGEDSERVE_ATOM_2("cas", "b64", "l", old, address, expected, value);
  }
  return old;
}

template <Order kOrder = Order::kRelaxed>
PAGEDSERVE_DEVICE int32_t atomic_max(int32_t* address, int32_t value) {
  int32_t old;
  PAGEDSERVE_ATOM_1("max", "s32", "r", old, address, value);
  return old;
}

template <Order kOrder = Order::kRelaxed>
PAGEDSERVE_DEVICE int32_t atomic_min(int32_t* address, int32_t value) {
  int32_t old;
  PAGEDSERVE_ATOM_1("min", "s32", "r", old, address, value);
  return old;
}

// Counts 0, 1, .. limit, 0, ..; returns what stood there. A counter that resets itself.
template <Order kOrder = Order::kRelaxed>
PAGEDSERVE_DEVICE uint32_t atomic_increment_wrap(uint32_t* address, uint32_t limit) {
  uint32_t old;
  PAGEDSERVE_ATOM_1("inc", "u32", "r", old, address, limit);
  return old;
}
#undef PAGEDSERVE_ATOM_1
#undef PAGEDSERVE_ATOM_2

template <Order kOrder = Order::kRelaxed, class T>
PAGEDSERVE_DEVICE T atomic_load(const T* address) {
  static_assert(kOrder == Order::kRelaxed || kOrder == Order::kAcquire, "a load is relaxed or acquires");
  T value;
  if constexpr (sizeof(T) == 4 && kOrder == Order::kRelaxed)
    asm volatile("ld.relaxed.gpu.b32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  else if constexpr (sizeof(T) == 4)
    asm volatile("ld.acquire.gpu.b32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
  else if constexpr (kOrder == Order::kRelaxed)
    asm volatile("ld.relaxed.gpu.b64 %0, [%1];" : "=l"(value) : "l"(address) : "memory");
  else
    asm volatile("ld.acquire.gpu.b64 %0, [%1];" : "=l"(value) : "l"(address) : "memory");
  return value;
}

template <Order kOrder = Order::kRelaxed, class T>
PAGEDSERVE_DEVICE void atomic_store(T* address, T value) {
  static_assert(kOrder == Order::kRelaxed || kOrder == Order::kRelease, "a store is relaxed or releases");
  if constexpr (sizeof(T) == 4 && kOrder == Order::kRelaxed)
    asm volatile("st.relaxed.gpu.b32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
  else if constexpr (sizeof(T) == 4)
    asm volatile("st.release.gpu.b32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
  else if constexpr (kOrder == Order::kRelaxed)
    asm volatile("st.relaxed.gpu.b64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
  else
    asm volatile("st.release.gpu.b64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
}

// ---- global memory ----

// Reads 4, 8 or 16 bytes that no thread writes while the kernel runs, and that are not read again soon.
template <class T>
PAGEDSERVE_DEVICE T load_streaming(const T* address) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "load_streaming moves 4, 8 or 16 bytes");
  U32x4 v;
  if constexpr (sizeof(T) == 4)
    asm volatile("ld.global.nc.L1::no_allocate.b32 %0, [%1];" : "=r"(v.x) : "l"(address));
  else if constexpr (sizeof(T) == 8)
    asm volatile("ld.global.nc.L1::no_allocate.v2.b32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(address));
  else
    asm volatile("ld.global.nc.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(address));
  T value;
  memcpy(&value, &v, sizeof(T));
  return value;
}

// Writes 4, 8 or 16 bytes that are not read again soon.
template <class T>
PAGEDSERVE_DEVICE void store_streaming(T* address, T value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "store_streaming moves 4, 8 or 16 bytes");
  U32x4 v;
  memcpy(&v, &value, sizeof(T));
  if constexpr (sizeof(T) == 4)
    asm volatile("st.global.cs.b32 [%0], %1;" ::"l"(address), "r"(v.x) : "memory");
  else if constexpr (sizeof(T) == 8)
    asm volatile("st.global.cs.v2.b32 [%0], {%1, %2};" ::"l"(address), "r"(v.x), "r"(v.y) : "memory");
  else
    asm volatile("st.global.cs.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}

PAGEDSERVE_DEVICE void prefetch_l2(const void* address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }

// ---- async copies, global to shared ----

// The 32-bit address that instructions know shared memory by.
PAGEDSERVE_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies the first `valid_bytes` of kBytes and writes zeros for the rest; 0 reads nothing. Both addresses are multiples
// of kBytes. What it writes may be read after commit, wait and a barrier.
template <int kBytes>
PAGEDSERVE_DEVICE void copy_async(void* shared, const void* global, int valid_bytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "copy_async moves 4, 8 or 16 bytes");
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid_bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global),
                 "n"(kBytes), "r"(valid_bytes)
                 : "memory");
}
template <int kBytes>
PAGEDSERVE_DEVICE void copy_async(void* shared, const void* global) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "copy_async moves 4, 8 or 16 bytes");
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(shared)), "l"(global), "n"(kBytes)
                 : "memory");
}
PAGEDSERVE_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kPending of the groups that this thread committed are under way.
template <int kPending>
PAGEDSERVE_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- launching; host code ----

// Puts kernel(arguments...) into the stream. Returns 0, or an error that error_text explains.
template <class... Parameters, class... Arguments>
int launch(const char* /*name*/, const LaunchShape& shape, void* stream, void (*kernel)(Parameters...),
           Arguments... arguments) {
  if (shape.shared_bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes);
    if (error != cudaSuccess) return static_cast<int>(error);
  }
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(shape.grid.x, shape.grid.y, shape.grid.z);
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &overlap;
  config.numAttrs = shape.overlap_previous ? 1 : 0;
  return static_cast<int>(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

inline const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace pagedserve::target
