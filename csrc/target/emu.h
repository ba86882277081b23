// SPDX-License-Identifier: Apache-2.0
// emu.h: the vocabulary of kernels for any C++17 compiler. A kernel runs on the CPU, a fiber for each thread, and
// what it may not do is an error that names kernel, block, thread and line. Meanings stand in cuda.cuh and the files it
// includes; here stands how they are emulated.
//
// Compile with -DPAGEDSERVE_EMULATED -x c++; -fsanitize=address,undefined or -fsanitize=thread as wanted.
#pragma once

#include <cmath>
#include <tuple>
#include <type_traits>

#define PAGEDSERVE_DEVICE inline
#define PAGEDSERVE_HOST_DEVICE inline
#define PAGEDSERVE_KERNEL(max_threads, min_blocks) inline void
#define PAGEDSERVE_GRID_CONSTANT const
#define PAGEDSERVE_UNROLL
#define PAGEDSERVE_ROLLED
#define PAGEDSERVE_DYNAMIC_SHARED(name) unsigned char* const name = ::pagedserve::emulator::dynamic_shared()
#define PAGEDSERVE_SHARED(name, ...)                                                                           \
  static const char name##_key = 0;                                                                            \
  auto& name = *static_cast<::pagedserve::target::TypeOf<__VA_ARGS__>*>(::pagedserve::emulator::static_shared( \
      &name##_key, sizeof(__VA_ARGS__), alignof(__VA_ARGS__), ::pagedserve::emulator::Site::here()))

#include "emu_launch.h"
#include "emu_matrix.h"

namespace pagedserve::target {

using emulator::Site;

template <class T>
struct TypeIdentity {
  using Type = T;
};
template <class T>
using TypeOf = typename TypeIdentity<T>::Type;

#if defined(PAGEDSERVE_EMULATED_ARCH)
constexpr int kArch = PAGEDSERVE_EMULATED_ARCH;
#else
constexpr int kArch = 90;
#endif
constexpr bool kHasHopper = kArch == 90;

// ---- where am I ----

inline int thread_index() { return emulator::self().thread; }
inline int num_threads() { return emulator::machine.shape.threads; }
inline int lane_index() { return emulator::self().lane; }
inline int warp_index() { return emulator::self().thread / kWarpSize; }
inline Dim3 block_index() { return emulator::self().block->index; }
inline Dim3 num_blocks() { return emulator::machine.shape.grid; }

// ---- barriers, fences, the grid ----

inline void sync_threads(Site site = Site::here()) { emulator::block_barrier(0, 0, true, "sync_threads", site); }
inline void sync_warp(uint32_t members = kAllLanes, Site site = Site::here()) { emulator::sync_warp(members, site); }
inline void sync_named(int barrier, int threads, Site site = Site::here()) {
  emulator::block_barrier(barrier, threads, true, "sync_named", site);
}
inline void arrive_named(int barrier, int threads, Site site = Site::here()) {
  emulator::block_barrier(barrier, threads, false, "arrive_named", site);
}
// A barrier's kind of order within the block is weaker than the device's; both are taken for the device's.
inline void fence_block() { emulator::fence(); }
inline void fence_device() { emulator::fence(); }
inline void spin_pause(Site site = Site::here()) {
  emulator::Hidden hidden;
  emulator::spin("spin_pause", site);
}
inline void wait_for_previous_kernel() { emulator::wait_for_previous_kernel(); }
inline void let_next_kernel_start() {}

// ---- lanes of a warp ----

template <class T>
T shuffle(T value, int lane, uint32_t members = kAllLanes, int width = kWarpSize, Site site = Site::here()) {
  return emulator::shuffle_value(emulator::Shuffle::kIndex, value, lane, members, width, "shuffle", site);
}
template <class T>
T shuffle_xor(T value, int mask, uint32_t members = kAllLanes, int width = kWarpSize, Site site = Site::here()) {
  return emulator::shuffle_value(emulator::Shuffle::kXor, value, mask, members, width, "shuffle_xor", site);
}
template <class T>
T shuffle_up(T value, int delta, uint32_t members = kAllLanes, int width = kWarpSize, Site site = Site::here()) {
  return emulator::shuffle_value(emulator::Shuffle::kUp, value, delta, members, width, "shuffle_up", site);
}
template <class T>
T shuffle_down(T value, int delta, uint32_t members = kAllLanes, int width = kWarpSize, Site site = Site::here()) {
  return emulator::shuffle_value(emulator::Shuffle::kDown, value, delta, members, width, "shuffle_down", site);
}
inline uint32_t ballot(bool predicate, uint32_t members = kAllLanes, Site site = Site::here()) {
  return emulator::vote(predicate, members, "ballot", site);
}
inline bool any_lane(bool predicate, uint32_t members = kAllLanes, Site site = Site::here()) {
  return emulator::vote(predicate, members, "any_lane", site) != 0;
}
inline bool all_lanes(bool predicate, uint32_t members = kAllLanes, Site site = Site::here()) {
  return emulator::vote(predicate, members, "all_lanes", site) == members;
}

// ---- atomics ----

template <Order kOrder = Order::kRelaxed, class T>
T atomic_add(T* address, T value, Site site = Site::here()) {
  // Integers wrap around, as the instruction does.
  return emulator::atomic_update(address, kOrder, "atomic_add", site, [=](T old) {
    if constexpr (std::is_integral<T>::value) {
      using U = std::make_unsigned_t<T>;
      return static_cast<T>(static_cast<U>(old) + static_cast<U>(value));
    } else {
      return old + value;
    }
  });
}
template <Order kOrder = Order::kRelaxed, class T>
T atomic_exchange(T* address, T value, Site site = Site::here()) {
  return emulator::atomic_update(address, kOrder, "atomic_exchange", site, [=](T) { return value; });
}
template <Order kOrder = Order::kRelaxed, class T>
T atomic_cas(T* address, T expected, T value, Site site = Site::here()) {
  return emulator::atomic_update(address, kOrder, "atomic_cas", site,
                                 [=](T old) { return old == expected ? value : old; });
}
template <Order kOrder = Order::kRelaxed>
int32_t atomic_max(int32_t* address, int32_t value, Site site = Site::here()) {
  return emulator::atomic_update(address, kOrder, "atomic_max", site,
                                 [=](int32_t old) { return std::max(old, value); });
}
template <Order kOrder = Order::kRelaxed>
int32_t atomic_min(int32_t* address, int32_t value, Site site = Site::here()) {
  return emulator::atomic_update(address, kOrder, "atomic_min", site,
                                 [=](int32_t old) { return std::min(old, value); });
}
template <Order kOrder = Order::kRelaxed>
uint32_t atomic_increment_wrap(uint32_t* address, uint32_t limit, Site site = Site::here()) {
  return emulator::atomic_update(address, kOrder, "atomic_increment_wrap", site,
                                 [=](uint32_t old) { return old >= limit ? 0 : old + 1; });
}
template <Order kOrder = Order::kRelaxed, class T>
T atomic_load(const T* address, Site site = Site::here()) {
  static_assert(kOrder == Order::kRelaxed || kOrder == Order::kAcquire, "a load is relaxed or acquires");
  return emulator::atomic_read(address, kOrder, "atomic_load", site);
}
template <Order kOrder = Order::kRelaxed, class T>
void atomic_store(T* address, T value, Site site = Site::here()) {
  static_assert(kOrder == Order::kRelaxed || kOrder == Order::kRelease, "a store is relaxed or releases");
  emulator::atomic_write(address, value, kOrder, "atomic_store", site);
}

// ---- global memory ----

template <class T>
T load_streaming(const T* address, Site site = Site::here()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "load_streaming moves 4, 8 or 16 bytes");
  emulator::check_address(address, sizeof(T), "load_streaming", site);
  return *address;
}
template <class T>
void store_streaming(T* address, T value, Site site = Site::here()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "store_streaming moves 4, 8 or 16 bytes");
  emulator::check_address(address, sizeof(T), "store_streaming", site);
  *address = value;
}
inline void prefetch_l2(const void*) {}

// ---- async copies, global to shared ----

inline uint32_t shared_address(const void* pointer) { return emulator::shared_address(pointer); }

template <int kBytes>
void copy_async(void* shared, const void* global, int valid_bytes, Site site = Site::here()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "copy_async moves 4, 8 or 16 bytes");
  emulator::copy_async(shared, global, kBytes, valid_bytes, site);
}
template <int kBytes>
void copy_async(void* shared, const void* global, Site site = Site::here()) {
  copy_async<kBytes>(shared, global, kBytes, site);
}
inline void copy_async_commit() { emulator::commit_copies(); }
template <int kPending>
void copy_async_wait() {
  emulator::wait_for_copies(kPending);
}

// ---- launching; host code ----

#if defined(PAGEDSERVE_EMULATED_PTX)
}  // namespace pagedserve::target
namespace pagedserve::ptx {
using Body = void (*)(const void* const* parameters);
inline Body translated(const void* kernel);  // ptx_runtime.h
}  // namespace pagedserve::ptx
namespace pagedserve::target {
#endif

template <class... Parameters, class... Arguments>
int launch(const char* name, const LaunchShape& shape, void* /*stream*/, void (*kernel)(Parameters...),
           Arguments... arguments) {
#if defined(PAGEDSERVE_EMULATED_PTX)
  const ptx::Body translated = ptx::translated(reinterpret_cast<const void*>(kernel));
  if (!translated) return emulator::kFailed;
  const auto body = [translated, values = std::tuple<std::remove_cv_t<Parameters>...>(arguments...)] {
    std::apply(
        [translated](const auto&... value) {
          const void* const parameters[] = {&value...};
          translated(parameters);
        },
        values);
  };
#else
  const auto body = [=] { kernel(static_cast<Parameters>(arguments)...); };
#endif
  using Body = const decltype(body);
  return emulator::run(
      name, shape, [](const void* call) { (*static_cast<Body*>(call))(); }, std::make_shared<Body>(body));
}
inline const char* error_text(int error) { return error ? pagedserve_emulator_error() : "no error"; }

}  // namespace pagedserve::target

#include "emu_hopper.h"
#include "emu_numbers.h"
#include "emu_wgmma.h"
