// SPDX-License-Identifier: Apache-2.0
// emu_memory.h: atomics, fences and async copies of the emulator. Included by emu.h.
//
// Order between threads comes from barriers, from atomics that acquire or release, and from relaxed atomics beside
// fences, as in C++. The race detector sees a kernel's own reads and writes, and nothing else orders them.
#pragma once

#include "emu_warp.h"

namespace pagedserve::emulator {

using target::Order;

// ---- fences and atomics ----

// What came before is released by the relaxed atomics after it; what they read is acquired.
PAGEDSERVE_EMU_INTERNAL inline void fence() {
  Hidden hidden;
  Lane& lane = self();
  for (void* object : lane.relaxed_reads) acquire(object);
  lane.relaxed_reads.clear();
  lane.fenced = true;
#if defined(PAGEDSERVE_EMU_TSAN)
  release(&lane.fence_object);
  if (!lane.fence_race) lane.fence_race = __tsan_create_fiber(0);
  __tsan_switch_to_fiber(lane.fence_race, __tsan_switch_to_fiber_no_sync);
  acquire(&lane.fence_object);
  __tsan_switch_to_fiber(lane.fiber->race, __tsan_switch_to_fiber_no_sync);
#endif
}
// A relaxed write releases what its lane's last fence released, not what came since.
PAGEDSERVE_EMU_INTERNAL inline void release_up_to_fence([[maybe_unused]] void* object) {
#if defined(PAGEDSERVE_EMU_TSAN)
  Lane& lane = self();
  if (!lane.fenced) return;
  __tsan_switch_to_fiber(lane.fence_race, __tsan_switch_to_fiber_no_sync);
  release(object);
  __tsan_switch_to_fiber(lane.fiber->race, __tsan_switch_to_fiber_no_sync);
#endif
}
PAGEDSERVE_EMU_INTERNAL inline void order_atomic(void* object, Order order, bool reads, bool writes) {
  Hidden hidden;
  ++machine.counters.atomics;
  if (writes && (order == Order::kRelease || order == Order::kAcqRel)) {
    release(object);
  } else if (writes) {
    release_up_to_fence(object);
  }
  if (reads && (order == Order::kAcquire || order == Order::kAcqRel)) {
    acquire(object);
  } else if (reads) {
    self().relaxed_reads.push_back(object);
  }
}
PAGEDSERVE_EMU_INTERNAL inline void check_address(const void* address, size_t bytes, const char* word,
                                                  const Site& site) {
  if (reinterpret_cast<uintptr_t>(address) % bytes) {
    fail("misaligned", std::string(word) + " is given an address that is no multiple of " + std::to_string(bytes),
         site);
  }
}
PAGEDSERVE_EMU_INTERNAL inline void after_atomic(bool changed, const char* word, const Site& site) {
  Hidden hidden;
  Lane& lane = self();
  lane.last_site = site;
  if (changed) {
    machine.idle_spins = 0;
    lane.spinning = false;
    maybe_preempt();
  } else if (lane.spinning) {
    spin(word, site);
  } else {
    lane.spinning = true;
    maybe_preempt();
  }
}

// All fibers share an OS thread, so reading and then writing is indivisible.
template <class T, class Change>
T atomic_update(T* address, Order order, const char* word, const Site& site, Change change) {
  check_address(address, sizeof(T), word, site);
  T old, changed;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  changed = change(old);
  __atomic_store(address, &changed, __ATOMIC_RELAXED);
  order_atomic(address, order, true, true);
  after_atomic(memcmp(&old, &changed, sizeof(T)) != 0, word, site);
  return old;
}
template <class T>
T atomic_read(const T* address, Order order, const char* word, const Site& site) {
  check_address(address, sizeof(T), word, site);
  T value;
  // Before reading: a lane that spins lets others change the value first.
  after_atomic(false, word, site);
  __atomic_load(address, &value, __ATOMIC_RELAXED);
  order_atomic(const_cast<T*>(address), order, true, false);
  return value;
}
template <class T>
void atomic_write(T* address, T value, Order order, const char* word, const Site& site) {
  check_address(address, sizeof(T), word, site);
  order_atomic(address, order, false, true);
  __atomic_store(address, &value, __ATOMIC_RELAXED);
  after_atomic(true, word, site);
}

// ---- async copies ----

// Reads and writes that sanitizers see, as the lane's own.
inline void land(const AsyncCopy& copy) {
  char* shared = static_cast<char*>(copy.shared);
  const char* global = static_cast<const char*>(copy.global);
  for (int i = 0; i < copy.bytes; i += 4) {
    uint32_t word = 0;
    if (i + 4 <= copy.valid_bytes) {
      word = *reinterpret_cast<const volatile uint32_t*>(global + i);
    } else {
      for (int j = i; j < copy.valid_bytes; ++j)
        word |= static_cast<uint32_t>(static_cast<uint8_t>(global[j])) << 8 * (j - i);
    }
    *reinterpret_cast<volatile uint32_t*>(shared + i) = word;
  }
}

PAGEDSERVE_EMU_INTERNAL inline void check_copy(const AsyncCopy& copy, const Site& site) {
  Hidden hidden;
  self().last_site = site;
  check_shared("copy_async", copy.shared, static_cast<size_t>(copy.bytes), static_cast<size_t>(copy.bytes), site);
  if (copy.valid_bytes < 0 || copy.valid_bytes > copy.bytes) {
    fail("out-of-bounds",
         "copy_async of " + std::to_string(copy.bytes) + " bytes, " + std::to_string(copy.valid_bytes) +
             " of them valid",
         site);
  }
  // The instruction wants the address aligned even where it reads nothing.
  if (reinterpret_cast<uintptr_t>(copy.global) % static_cast<size_t>(copy.bytes)) {
    fail("misaligned", "copy_async is given a global address that is no multiple of " + std::to_string(copy.bytes),
         site);
  }
  ++machine.counters.async_copies;
  machine.counters.async_copy_bytes += static_cast<uint64_t>(copy.valid_bytes);
}

inline void copy_async(void* shared, const void* global, int bytes, int valid_bytes, const Site& site) {
  const AsyncCopy copy{shared, global, bytes, valid_bytes};
  check_copy(copy, site);
  if (machine.config.eager_copies) {
    land(copy);
    return;
  }
  // Under way: NaN until it is waited for, and a write that races with who still reads what stood here.
  for (int i = 0; i < bytes; i += 4) *reinterpret_cast<volatile uint32_t*>(static_cast<char*>(shared) + i) = ~0u;
  Hidden hidden;
  self().open_copies.push_back(copy);
  maybe_preempt();
}
PAGEDSERVE_EMU_INTERNAL inline void commit_copies() {
  Hidden hidden;
  Lane& lane = self();
  lane.copy_groups.push_back(std::move(lane.open_copies));
  lane.open_copies.clear();
}
// The next copy of the oldest group, if more than `pending` groups are under way.
PAGEDSERVE_EMU_INTERNAL inline bool next_landing(int pending, AsyncCopy& copy) {
  Hidden hidden;
  Lane& lane = self();
  while (static_cast<int>(lane.copy_groups.size()) > pending) {
    std::vector<AsyncCopy>& group = lane.copy_groups.front();
    if (!group.empty()) {
      copy = group.back();
      group.pop_back();
      return true;
    }
    lane.copy_groups.erase(lane.copy_groups.begin());
  }
  return false;
}
inline void wait_for_copies(int pending) {
  AsyncCopy copy;
  while (next_landing(pending, copy)) land(copy);
}

}  // namespace pagedserve::emulator
