// SPDX-License-Identifier: Apache-2.0
// emu_launch.h: runs a grid on fibers, and the C functions by which pagedserve/emulate speaks to a library of kernels.
// Included by emu.h.
#pragma once

#include "emu_memory.h"

namespace pagedserve::emulator {

constexpr int kFailed = -1;  // what a launch returns after an error; pagedserve_emulator_error says which

PAGEDSERVE_EMU_INTERNAL inline void end_lane() {
  Lane* next = nullptr;
  {
    Hidden hidden;
    Lane& lane = self();
    check_barriers_at_exit();
    lane.done = true;
    lane.warp->exited |= 1u << lane.lane;
    machine.idle_spins = 0;
    if (--lane.block->live) {
      next = pick();
      if (!next) deadlock();
    }
  }
  switch_to(next);
  __builtin_trap();
}
inline void run_lane() {
  enter_fiber(machine.launcher);
  acquire(&machine.launch_object);
  machine.body(machine.arguments.get());
  release(&machine.done_objects[machine.done_parity]);
  end_lane();
}

// False where the system gives no stack.
PAGEDSERVE_EMU_INTERNAL inline bool start_lane(Block& block, int thread, Fiber* fiber) {
  Lane& lane = block.lanes[static_cast<size_t>(thread)];
#if defined(PAGEDSERVE_EMU_TSAN)
  void* fence_race = lane.fence_race;
#endif
  lane = Lane{};
#if defined(PAGEDSERVE_EMU_TSAN)
  lane.fence_race = fence_race;
#endif
  lane.fiber = fiber;
  lane.block = &block;
  lane.warp = &block.warps[static_cast<size_t>(thread / 32)];
  lane.lane = thread % 32;
  lane.thread = thread;
  lane.done = false;
  if (!prepare(*fiber, run_lane)) return false;
#if defined(PAGEDSERVE_EMU_TSAN)
  const std::string name = "block " + text_of(block.index) + " thread " + std::to_string(thread);
  __tsan_set_fiber_name(fiber->race, name.c_str());
#endif
  machine.runnable.push(&lane);
  return true;
}

// Unmaps the stacks that are kept from launch to launch. Sanitisers know them, and have a process for each launch.
PAGEDSERVE_EMU_INTERNAL inline void give_back_stacks() {
#if !defined(PAGEDSERVE_EMU_ASAN) && !defined(PAGEDSERVE_EMU_TSAN)
  for (auto& fibers : machine.fibers) {
    for (const auto& fiber : fibers) {
      if (fiber && fiber->stack) munmap(fiber->stack, kStackBytes);
    }
    fibers.clear();
  }
#endif
}

PAGEDSERVE_EMU_INTERNAL inline void start_block(size_t slot) {
  Block& block = machine.slots[slot];
  const size_t threads = static_cast<size_t>(machine.shape.threads);
  block.index = machine.waiting_blocks[machine.next_block++];
  block.live = machine.shape.threads;
  block.lanes.resize(threads);
  block.warps.resize((threads + 31) / 32);
  for (size_t i = 0; i < block.warps.size(); ++i) {
    block.warps[i].open.clear();
    block.warps[i].exited = i * 32 + 32 > threads ? ~0u << threads % 32 : 0;
    block.warps[i].index = static_cast<int>(i);
  }
  for (BlockBarrier& barrier : block.barriers) barrier = BlockBarrier{};
  renew_shared(block);
  ++machine.counters.blocks;
  auto& fibers = machine.fibers[machine.fibers_in_use];
  for (size_t i = 0; i < threads; ++i) {
    if (fibers.size() <= slot * 1024 + i) fibers.resize(slot * 1024 + 1024);
    auto& fiber = fibers[slot * 1024 + i];
    if (!fiber) fiber = std::make_unique<Fiber>();
    if (!start_lane(block, static_cast<int>(i), fiber.get())) {
      give_back_stacks();
      machine.error = {"launch", "kernel " + std::string(machine.kernel) + ": the system has no stack of " +
                                     std::to_string(kStackBytes >> 10) + " KiB for thread " + std::to_string(i) +
                                     " of resident block " + std::to_string(slot) +
                                     ": a process has an address space (ulimit -v) and 65,530 mappings "
                                     "(vm.max_map_count), of which a stack takes two; let fewer blocks be resident"};
      return;
    }
  }
}

inline bool check_shape(const LaunchShape& shape) {
  const Dim3 grid = shape.grid;
  const bool grid_fits = grid.x && grid.y && grid.z && grid.x <= 0x7fffffffu && grid.y <= 65535 && grid.z <= 65535;
  if (grid_fits && shape.threads >= 1 && shape.threads <= 1024 && shape.shared_bytes >= 0 &&
      shape.shared_bytes <= kMaxSharedBytes) {
    return true;
  }
  machine.error = {"launch", "kernel " + std::string(machine.kernel) + ": a grid of " + text_of(grid) + " blocks of " +
                                 std::to_string(shape.threads) + " threads and " + std::to_string(shape.shared_bytes) +
                                 " bytes of shared memory; a launch has 1 to 1024 threads, up to " +
                                 std::to_string(kMaxSharedBytes) +
                                 " bytes, and 1 to 2147483647 x 65535 x 65535 blocks"};
  return false;
}

inline void queue_blocks(const Dim3& grid) {
  machine.waiting_blocks.clear();
  machine.next_block = 0;
  for (uint32_t z = 0; z < grid.z; ++z) {
    for (uint32_t y = 0; y < grid.y; ++y) {
      for (uint32_t x = 0; x < grid.x; ++x) machine.waiting_blocks.push_back({x, y, z});
    }
  }
  std::vector<Dim3>& blocks = machine.waiting_blocks;
  if (machine.config.schedule == Schedule::kReversed) std::reverse(blocks.begin(), blocks.end());
  if (machine.config.schedule != Schedule::kRandom) return;
  for (size_t i = blocks.size(); i > 1; --i) std::swap(blocks[i - 1], blocks[random_number() % i]);
}

// Runs lanes until all blocks have ended, or an error.
PAGEDSERVE_EMU_INTERNAL inline void run_blocks() {
  for (;;) {
    bool any = false;
    for (size_t slot = 0; slot < machine.slots.size() && machine.error.text.empty(); ++slot) {
      Block& block = machine.slots[slot];
      if (block.live == 0 && block.shared) {
        check_guards(block);
        free_shared(block);
      }
      if (block.live == 0 && machine.next_block < machine.waiting_blocks.size()) start_block(slot);
      any = any || block.live > 0;
    }
    if (!any || !machine.error.text.empty()) return;
    switch_to(pick());
  }
}

// Runs body(arguments) once per thread of the grid. Returns 0 or kFailed. Launches of one library wait for each other.
PAGEDSERVE_EMU_INTERNAL inline int run(const char* kernel, const LaunchShape& shape, void (*body)(const void*),
                                       std::shared_ptr<const void> arguments) {
  const std::lock_guard<std::mutex> lock(machine.busy);
  Hidden hidden;
  machine.error = {};
  machine.kernel = kernel;
  machine.shape = shape;
  machine.body = body;
  if (!check_shape(shape)) return kFailed;
  ++machine.counters.launches;
  machine.random_state = machine.config.seed * 0x9e3779b97f4a7c15ull | 1;
  machine.launcher = Fiber{};
#if defined(PAGEDSERVE_EMU_TSAN)
  machine.launcher.race = __tsan_get_current_fiber();
#endif
  // A launch that overlaps the one before is not ordered after it, but by wait_for_previous_kernel.
  if (!shape.overlap_previous) {
    acquire(&machine.done_objects[machine.done_parity]);
    machine.calls.clear();
  }
  machine.calls.push_back(arguments);
  machine.arguments = std::move(arguments);
  machine.done_parity ^= 1;
  if (shape.overlap_previous) machine.fibers_in_use ^= 1;
  release(&machine.launch_object);
  queue_blocks(shape.grid);
  const size_t resident = static_cast<size_t>(std::max(1, machine.config.resident_blocks));
  machine.slots.resize(std::min(resident, machine.waiting_blocks.size()));
  for (Block& block : machine.slots) block.live = 0;
  machine.runnable.clear();
  machine.current = nullptr;
  machine.idle_spins = 0;
  run_blocks();
  for (Block& block : machine.slots) free_shared(block);
  return machine.error.text.empty() ? 0 : kFailed;
}

PAGEDSERVE_EMU_INTERNAL inline void wait_for_previous_kernel() {
  Hidden hidden;
  acquire(&machine.done_objects[machine.done_parity ^ 1]);
}

}  // namespace pagedserve::emulator

// ---- the C side ----

#define PAGEDSERVE_EMU_EXPORT extern "C" __attribute__((weak, used, visibility("default")))

#if defined(PAGEDSERVE_EMU_ASAN)
namespace pagedserve::emulator {
// AddressSanitizer knows no CUDA threads: says after its report which one it was.
inline void say_who(const char*) {
  if (!machine.current) return;
  const Lane& lane = self();
  std::fprintf(stderr, "pagedserve: kernel %s, block %s, thread %d\n", machine.kernel,
               text_of(lane.block->index).c_str(), lane.thread);
}
}  // namespace pagedserve::emulator
#endif

PAGEDSERVE_EMU_EXPORT void pagedserve_emulator_configure(const pagedserve::emulator::Config* config) {
#if defined(PAGEDSERVE_EMU_ASAN)
  __asan_set_error_report_callback(pagedserve::emulator::say_who);
#endif
  pagedserve::emulator::machine.config = *config;
  pagedserve::emulator::machine.counters = {};
}
PAGEDSERVE_EMU_EXPORT void pagedserve_emulator_give_back() {
  const std::lock_guard<std::mutex> lock(pagedserve::emulator::machine.busy);
  pagedserve::emulator::give_back_stacks();
}
PAGEDSERVE_EMU_EXPORT void pagedserve_emulator_counters(pagedserve::emulator::Counters* counters) {
  *counters = pagedserve::emulator::machine.counters;
}
// Of the last launch: a word such as "deadlock", and a sentence; empty where all went well.
PAGEDSERVE_EMU_EXPORT const char* pagedserve_emulator_error_kind() {
  return pagedserve::emulator::machine.error.kind.c_str();
}
PAGEDSERVE_EMU_EXPORT const char* pagedserve_emulator_error() {
  return pagedserve::emulator::machine.error.text.c_str();
}
