// SPDX-License-Identifier: Apache-2.0
// emu_hopper.h: what sm_90 adds, emulated. Included by emu.h; meanings stand in cuda_hopper.cuh.
//
// Bulk copies land while somebody waits for their mbarrier, in any order, and are an agent of their own for the race
// detector.
#pragma once

namespace pagedserve::target {
// As the emulator's make_tensor_map_2d leaves it.
struct alignas(64) TensorMap {
  const void* base;
  uint64_t width, height, pitch_bytes;
  uint32_t box_height;
};
}  // namespace pagedserve::target

namespace pagedserve::emulator {

using target::TensorMap;
constexpr int kBoxRowBytes = 128;

struct Mbarrier {
  int expected = 0, pending = 0;
  int64_t bytes = 0;
  int phase = 0;
};
struct BulkCopy {
  char* shared;
  const char* global;  // or a map, and where its box begins
  uint32_t bytes;
  uint64_t* barrier;
  const TensorMap* map;
  int x, y;
};
// One warp's 16 rows of a product.
struct GroupProduct {
  std::vector<void*> d;       // [32, n / 2], where each lane keeps its f32 results
  std::vector<float> before;  // what they were
  uint64_t a, b;
  uint32_t a_registers[32][4];
  Half type;
  int first_row, n;
  bool a_in_registers, a_is_mn, b_is_mn, accumulates, continues;  // continues: d is what a product before it leaves
};
struct GroupQueue {
  std::vector<GroupProduct> open;
  std::vector<std::vector<GroupProduct>> groups;
};
struct HopperState {
  std::map<uint64_t*, Mbarrier> barriers;
  std::vector<BulkCopy> copies;
  std::map<Warp*, GroupQueue> queues;
#if defined(PAGEDSERVE_EMU_TSAN)
  void* copier = __tsan_create_fiber(0);
  ~HopperState() { __tsan_destroy_fiber(copier); }
#endif
};

inline HopperState& hopper() {
  Block& block = *self().block;
  if (!block.hopper) block.hopper = std::make_shared<HopperState>();
  return *block.hopper;
}

// ---- mbarriers ----

PAGEDSERVE_EMU_INTERNAL inline void mbarrier_init(uint64_t* barrier, int arrivals, const Site& site) {
  Hidden hidden;
  check_shared("mbarrier_init", barrier, 8, 8, site);
  hopper().barriers[barrier] = {arrivals, arrivals, 0, 0};
}
PAGEDSERVE_EMU_INTERNAL inline Mbarrier& mbarrier_at(uint64_t* barrier, const char* word, const Site& site) {
  const auto found = hopper().barriers.find(barrier);
  if (found == hopper().barriers.end()) {
    fail("uninitialised-mbarrier", std::string(word) + " on an mbarrier that no thread has initialised yet", site);
  }
  return found->second;
}
// In the detector, each phase of a barrier is half of its 8 bytes.
inline void* phase_object(uint64_t* barrier, int phase) { return reinterpret_cast<char*>(barrier) + phase * 4; }
PAGEDSERVE_EMU_INTERNAL inline void end_phase_if_complete(uint64_t* key, Mbarrier& barrier) {
  if (barrier.pending || barrier.bytes) return;
  barrier.phase ^= 1;
  barrier.pending = barrier.expected;
  wake(key, *self().block);
}
PAGEDSERVE_EMU_INTERNAL inline void mbarrier_arrive(uint64_t* key, uint32_t bytes, const Site& site) {
  Hidden hidden;
  self().last_site = site;
  Mbarrier& barrier = mbarrier_at(key, "mbarrier_arrive", site);
  release(phase_object(key, barrier.phase));
  barrier.bytes += bytes;
  if (--barrier.pending < 0) {
    fail("divergent-barrier",
         "more threads arrive at an mbarrier than the " + std::to_string(barrier.expected) + " it was made for", site);
  }
  end_phase_if_complete(key, barrier);
}

// ---- bulk copies ----

// Reads and writes that sanitizers see, but for those of BulkCopy itself: it stands on the stack of a lane.
__attribute__((noinline)) inline void move_box(char* shared, const TensorMap& map, int box_x, int box_y) {
  for (uint32_t row = 0; row < map.box_height; ++row) {
    for (int byte = 0; byte < kBoxRowBytes; byte += 8) {
      const int64_t y = box_y + static_cast<int64_t>(row), x = box_x + byte / 2;
      uint64_t value = 0;
      for (int i = 0; i < 4; ++i) {  // the matrix may end inside of 8 bytes
        if (y < 0 || y >= static_cast<int64_t>(map.height) || x + i < 0 || x + i >= static_cast<int64_t>(map.width)) {
          continue;
        }
        const char* element =
            static_cast<const char*>(map.base) + y * static_cast<int64_t>(map.pitch_bytes) + (x + i) * 2;
        value |= static_cast<uint64_t>(*reinterpret_cast<const volatile uint16_t*>(element)) << 16 * i;
      }
      uintptr_t to = row * kBoxRowBytes + static_cast<uintptr_t>(byte);
      to ^= (to >> 7 & 7) << 4;
      *reinterpret_cast<volatile uint64_t*>(shared + to) = value;
    }
  }
}
__attribute__((noinline)) inline void move_bytes(char* shared, const char* global, uint32_t bytes) {
  for (uint32_t i = 0; i < bytes; i += 8) {
    *reinterpret_cast<volatile uint64_t*>(shared + i) = *reinterpret_cast<const volatile uint64_t*>(global + i);
  }
}
PAGEDSERVE_EMU_INTERNAL inline void move_bulk(const BulkCopy& copy) {
  if (copy.map) {
    move_box(copy.shared, *copy.map, copy.x, copy.y);
  } else {
    move_bytes(copy.shared, copy.global, copy.bytes);
  }
}
PAGEDSERVE_EMU_INTERNAL inline void land(const BulkCopy& copy) {
#if defined(PAGEDSERVE_EMU_TSAN)
  void *const copier = hopper().copier, *const lane = self().fiber->race;
  void* const ended = phase_object(copy.barrier, hopper().barriers[copy.barrier].phase);
  __tsan_switch_to_fiber(copier, __tsan_switch_to_fiber_no_sync);
  acquire(copy.shared + 8);  // where who started it released
  move_bulk(copy);
  release(ended);
  __tsan_switch_to_fiber(lane, __tsan_switch_to_fiber_no_sync);
#else
  move_bulk(copy);
#endif
  Hidden hidden;
  Mbarrier& barrier = hopper().barriers[copy.barrier];
  barrier.bytes -= copy.bytes;
  end_phase_if_complete(copy.barrier, barrier);
}
PAGEDSERVE_EMU_INTERNAL inline void start_bulk(const BulkCopy& copy, const Site& site) {
  {
    Hidden hidden;
    self().last_site = site;
    const char* word = copy.map ? "copy_tensor_2d" : "copy_bulk";
    check_shared(word, copy.shared, copy.bytes, copy.map ? 1024 : 16, site);
    if (!copy.map && ((reinterpret_cast<uintptr_t>(copy.global) | copy.bytes) & 15)) {
      fail("misaligned", "copy_bulk is given a global address or a size that is no multiple of 16", site);
    }
    mbarrier_at(copy.barrier, word, site);
    release(copy.shared + 8);
    ++machine.counters.async_copies;
    machine.counters.async_copy_bytes += copy.bytes;
    if (!machine.config.eager_copies) {
      hopper().copies.push_back(copy);
      wake(copy.barrier, *self().block);  // who waits may let it land
      return;
    }
  }
  land(copy);
}
// Takes a copy that may land now.
PAGEDSERVE_EMU_INTERNAL inline bool next_bulk(BulkCopy& copy) {
  std::vector<BulkCopy>& copies = hopper().copies;
  if (copies.empty()) return false;
  const size_t i = machine.config.schedule == Schedule::kRandom ? random_number() % copies.size() : 0;
  copy = copies[i];
  copies.erase(copies.begin() + static_cast<ptrdiff_t>(i));
  return true;
}
PAGEDSERVE_EMU_INTERNAL inline bool phase_has_ended(uint64_t* key, int parity, BulkCopy& copy, bool& has_copy,
                                                    const Site& site) {
  Hidden hidden;
  if (mbarrier_at(key, "mbarrier_wait", site).phase != (parity & 1)) return true;
  has_copy = next_bulk(copy);
  if (!has_copy) wait_for(key, "mbarrier_wait", site);
  return false;
}
inline void mbarrier_wait(uint64_t* key, int parity, const Site& site) {
  BulkCopy copy;
  bool has_copy = false;
  while (!phase_has_ended(key, parity, copy, has_copy, site)) {
    if (has_copy) land(copy);
  }
  acquire(phase_object(key, parity & 1));
}

}  // namespace pagedserve::emulator

namespace pagedserve::target {

inline void mbarrier_init(uint64_t* barrier, int arrivals, Site site = Site::here()) {
  emulator::mbarrier_init(barrier, arrivals, site);
}
inline void mbarrier_init_fence() {}
inline void mbarrier_arrive(uint64_t* barrier, Site site = Site::here()) {
  emulator::mbarrier_arrive(barrier, 0, site);
}
inline void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes, Site site = Site::here()) {
  emulator::mbarrier_arrive(barrier, bytes, site);
}
inline void mbarrier_wait(uint64_t* barrier, int parity, Site site = Site::here()) {
  emulator::mbarrier_wait(barrier, parity, site);
}
inline void fence_async_proxy() {}

inline void copy_bulk(void* shared, const void* global, uint32_t bytes, uint64_t* barrier, Site site = Site::here()) {
  emulator::start_bulk({static_cast<char*>(shared), static_cast<const char*>(global), bytes, barrier, nullptr, 0, 0},
                       site);
}
inline void copy_tensor_2d(void* shared, const TensorMap* map, int x, int y, uint64_t* barrier,
                           Site site = Site::here()) {
  const uint32_t bytes = map->box_height * emulator::kBoxRowBytes;
  emulator::start_bulk({static_cast<char*>(shared), nullptr, bytes, barrier, map, x, y}, site);
}
inline int make_tensor_map_2d(TensorMap* map, const void* base, uint64_t width, uint64_t height, uint64_t pitch_bytes,
                              uint32_t box_height) {
  *map = {base, width, height, pitch_bytes, box_height};
  const bool aligned = reinterpret_cast<uintptr_t>(base) % 16 == 0 && pitch_bytes % 16 == 0;
  return aligned && box_height >= 1 && box_height <= 256 ? 0 : 1;
}

template <int N>
void store_matrices(const uint32_t (&r)[N], void* row, Site site = Site::here()) {
  static_assert(N == 1 || N == 2 || N == 4, "store_matrices stores 1, 2 or 4");
  emulator::store_matrices(r, N, row, site);
}
template <int kRegisters>
void take_registers() {}
template <int kRegisters>
void give_registers() {}

}  // namespace pagedserve::target
