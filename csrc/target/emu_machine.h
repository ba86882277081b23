// SPDX-License-Identifier: Apache-2.0
// emu_machine.h: lanes, warps, blocks, the schedule and errors of the emulator. Included by emu.h.
//
// All threads of all resident blocks are fibers of one OS thread: whatever stands between two switches is indivisible.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "emu_fiber.h"
#include "types.h"

namespace pagedserve::emulator {

using target::Dim3;
using target::kAllLanes;
using target::LaunchShape;

// Where in a kernel's source a word stands. As a default argument it is the caller's place.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

enum class Schedule : int32_t { kInOrder = 0, kReversed = 1, kRandom = 2 };

// How to run; pagedserve/emulate/library.py has the same fields.
struct Config {
  Schedule schedule = Schedule::kInOrder;  // of threads, and of blocks
  int32_t resident_blocks = 4;             // blocks that run at once
  int32_t eager_copies = 0;                // 1: async copies land when issued; 0: when waited for
  int32_t poison = 0xff;                   // the byte that shared memory holds at first
  uint64_t seed = 1;
};

// What was done, over all launches since configure.
struct Counters {
  uint64_t launches, blocks, switches, barriers, collectives, matrix_products, matrix_loads, matrix_load_wavefronts,
      matrix_load_wavefronts_ideal, async_copies, async_copy_bytes, atomics;
};

struct AsyncCopy {
  void* shared;
  const void* global;
  int bytes, valid_bytes;
};

struct Block;
struct Warp;
struct HopperState;

struct Lane {
  Fiber* fiber = nullptr;
  Block* block = nullptr;
  Warp* warp = nullptr;
  int lane = 0, thread = 0;
  bool done = true, spinning = false;
  const void* waits_for = nullptr;  // who wakes it
  const char* waits_in = nullptr;   // the word it waits in
  Site waits_at{"", 0};
  Site last_site{"", 0};
  std::vector<AsyncCopy> open_copies;
  std::vector<std::vector<AsyncCopy>> copy_groups;
  std::vector<void*> relaxed_reads;  // atomics read since the last fence
  bool fenced = false;
#if defined(PAGEDSERVE_EMU_TSAN)
  void* fence_race = nullptr;  // a detector's fiber that knows what came before this lane's fences, and no more
#endif
  char fence_object = 0;
};

// A collective of a warp that some lanes have reached.
struct Collective {
  uint32_t members = 0, arrived = 0;
  const char* word = nullptr;
  Site site{"", 0};
};
struct Warp {
  std::vector<Collective> open;
  uint64_t in[32][10];
  uint64_t out[32][4];
  uint32_t exited = 0;
  int index = 0;
};
struct BlockBarrier {
  int arrived = 0, expected = 0, generation = 0;
};
struct StaticShared {
  char* begin;
  size_t bytes;
};
struct Block {
  Dim3 index;
  int live = 0;
  BlockBarrier barriers[16];
  std::vector<Warp> warps;
  std::vector<Lane> lanes;
  char* shared = nullptr;  // [kSharedHeader | dynamic | guard | static variables, each with a guard]
  size_t shared_bytes = 0, static_used = 0;
  std::map<const void*, StaticShared> statics;
  std::shared_ptr<HopperState> hopper;
};

struct Error {
  std::string kind, text;
};

// Lanes that can run, first come first.
class RunQueue {
 public:
  bool empty() const { return first_ == lanes_.size(); }
  size_t size() const { return lanes_.size() - first_; }
  void push(Lane* lane) { lanes_.push_back(lane); }
  void clear() { lanes_.clear(), first_ = 0; }
  Lane* take_first() {
    Lane* lane = lanes_[first_++];
    if (first_ > 4096 && first_ * 2 > lanes_.size()) {
      lanes_.erase(lanes_.begin(), lanes_.begin() + static_cast<ptrdiff_t>(first_));
      first_ = 0;
    }
    return lane;
  }
  Lane* take_last() {
    Lane* lane = lanes_.back();
    lanes_.pop_back();
    return lane;
  }
  Lane* take(size_t i) {
    std::swap(lanes_[first_ + i], lanes_.back());
    return take_last();
  }

 private:
  std::vector<Lane*> lanes_;
  size_t first_ = 0;
};

struct Machine {
  Config config;
  Counters counters{};
  Error error;
  std::mutex busy;
  // One launch.
  const char* kernel = "";
  LaunchShape shape;
  void (*body)(const void*) = nullptr;
  std::shared_ptr<const void> arguments;
  std::vector<Dim3> waiting_blocks;
  size_t next_block = 0;
  std::vector<Block> slots;
  RunQueue runnable;
  Lane* current = nullptr;
  Fiber launcher;
  uint64_t random_state = 1, idle_spins = 0;
  std::vector<std::unique_ptr<Fiber>> fibers[2];  // kept from launch to launch; a launch that overlaps takes the others
  int fibers_in_use = 0;
  std::vector<std::shared_ptr<const void>> calls;  // arguments of launches that may still be running, as they say
  char launch_object = 0, done_objects[2] = {};
  int done_parity = 0;
};

inline Machine& machine = *new Machine;  // never destroyed: fibers may outlive static objects
inline Lane& self() { return *machine.current; }

inline uint64_t random_number() {
  uint64_t x = machine.random_state;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return machine.random_state = x;
}

inline std::string basename(const char* path) {
  const char* slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}
inline std::string text_of(const Site& site) { return basename(site.file) + ":" + std::to_string(site.line); }
inline std::string text_of(const Dim3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

// ---- the schedule ----

PAGEDSERVE_EMU_INTERNAL inline Lane* pick() {
  if (machine.runnable.empty()) return nullptr;
  switch (machine.config.schedule) {
    case Schedule::kInOrder:
      return machine.runnable.take_first();
    case Schedule::kReversed:
      return machine.runnable.take_last();
    default:
      return machine.runnable.take(random_number() % machine.runnable.size());
  }
}
// Goes on in `to`, or where the launch was made if it is null.
PAGEDSERVE_EMU_INTERNAL inline void switch_to(Lane* to) {
  Lane* from = machine.current;
  if (from == to) return;
  ++machine.counters.switches;
  machine.current = to;
  switch_fibers(from ? *from->fiber : machine.launcher, to ? *to->fiber : machine.launcher, from && from->done);
}

// Ends the launch with an error. The fibers of all lanes are left where they stand.
[[noreturn]] PAGEDSERVE_EMU_INTERNAL inline void stop(const char* kind, const std::string& text) {
  if (machine.error.text.empty()) machine.error = {kind, text};
  switch_to(nullptr);
  __builtin_trap();
}
// An error of the lane that runs.
[[noreturn]] PAGEDSERVE_EMU_INTERNAL inline void fail(const char* kind, const std::string& text, const Site& site) {
  const Lane& lane = self();
  stop(kind, "kernel " + std::string(machine.kernel) + ", block " + text_of(lane.block->index) + ", thread " +
                 std::to_string(lane.thread) + (site.line ? ", " + text_of(site) : "") + ": " + text);
}

inline std::string whereabouts(const Lane& lane) {
  if (lane.done) return "have ended";
  if (lane.waits_in) return "wait in " + std::string(lane.waits_in) + " at " + text_of(lane.waits_at);
  return lane.last_site.line ? "run, and were last at " + text_of(lane.last_site) : "run";
}
// Where all lanes stand, grouped.
PAGEDSERVE_EMU_INTERNAL inline std::string where_all_stand() {
  std::map<std::pair<std::string, std::string>, int> places;
  for (const Block& block : machine.slots) {
    if (!block.live) continue;
    for (const Lane& lane : block.lanes) ++places[{text_of(block.index), whereabouts(lane)}];
  }
  std::string text;
  for (const auto& [place, count] : places) {
    text += "\n  block " + place.first + ": " + std::to_string(count) + " threads " + place.second;
  }
  return text;
}

[[noreturn]] PAGEDSERVE_EMU_INTERNAL inline void deadlock() {
  stop("deadlock", "kernel " + std::string(machine.kernel) + ": no thread can go on." + where_all_stand());
}

PAGEDSERVE_EMU_INTERNAL inline void wait_for(const void* key, const char* word, const Site& site) {
  Lane& lane = self();
  lane.waits_for = key;
  lane.waits_in = word;
  lane.waits_at = site;
  Lane* next = pick();
  if (!next) deadlock();
  switch_to(next);
  lane.waits_for = nullptr;
  lane.waits_in = nullptr;
}
PAGEDSERVE_EMU_INTERNAL inline void wake(const void* key, Block& block, uint32_t members = kAllLanes,
                                         const Warp* warp = nullptr) {
  machine.idle_spins = 0;
  for (Lane& lane : block.lanes) {
    if (lane.waits_for != key || (warp && (lane.warp != warp || !(members >> lane.lane & 1)))) continue;
    lane.waits_for = nullptr;
    machine.runnable.push(&lane);
  }
}
// Lets another lane run.
PAGEDSERVE_EMU_INTERNAL inline void yield() {
  machine.runnable.push(&self());
  switch_to(pick());
}
// A lane found again what it had found before. When nobody does anything else, nobody ever will.
PAGEDSERVE_EMU_INTERNAL inline void spin(const char* word, const Site& site) {
  Lane& lane = self();
  if (++machine.idle_spins > 100000 + 1000 * machine.slots.size() * static_cast<size_t>(machine.shape.threads)) {
    fail("endless-spin",
         std::string(word) +
             " finds the same value again and again, and no other thread can change it. A block can wait only for "
             "blocks that are resident with it (now " +
             std::to_string(machine.slots.size()) + ")." + where_all_stand(),
         site);
  }
  lane.waits_in = word;
  lane.waits_at = site;
  // In whatever order, those who spin come last.
  machine.runnable.push(&lane);
  switch_to(machine.config.schedule == Schedule::kRandom ? pick() : machine.runnable.take_first());
  lane.waits_in = nullptr;
}
PAGEDSERVE_EMU_INTERNAL inline void maybe_preempt() {
  if (machine.config.schedule == Schedule::kRandom && (random_number() & 3) == 0) yield();
}

}  // namespace pagedserve::emulator
