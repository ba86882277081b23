// SPDX-License-Identifier: Apache-2.0
// emu_warp.h: barriers of a block, and what lanes of a warp do together. Included by emu.h.
#pragma once

#include "emu_shared.h"

namespace pagedserve::emulator {

// ---- barriers ----

// `threads` 0: the whole block. A lane that only arrives does not wait.
PAGEDSERVE_EMU_INTERNAL inline void block_barrier(int id, int threads, bool waits, const char* word, const Site& site) {
  Hidden hidden;
  Lane& lane = self();
  Block& block = *lane.block;
  const int whole = static_cast<int>(block.lanes.size());
  if (id < 0 || id > 15) fail("divergent-barrier", "there is no barrier " + std::to_string(id) + "; use 0 to 15", site);
  if (threads % 32 && threads != whole) {
    fail("divergent-barrier", std::string(word) + " for " + std::to_string(threads) + " threads: give a multiple of 32",
         site);
  }
  BlockBarrier& barrier = block.barriers[id];
  const int expected = threads ? threads : whole;
  if (barrier.arrived && barrier.expected != expected) {
    fail("divergent-barrier",
         "barrier " + std::to_string(id) + " is used for " + std::to_string(expected) + " threads while " +
             std::to_string(barrier.arrived) + " others are at it for " + std::to_string(barrier.expected),
         site);
  }
  if (!threads && block.live < whole) {
    fail("divergent-barrier",
         std::string(word) + " after " + std::to_string(whole - block.live) + " threads of the block have ended", site);
  }
  barrier.expected = expected;
  ++machine.counters.barriers;
  lane.last_site = site;
  const int generation = barrier.generation;
  void* object = block.shared + id * 2 + (generation & 1);
  release(object);
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    wake(&barrier, block);
  } else if (waits) {
    while (barrier.generation == generation) wait_for(&barrier, word, site);
  }
  if (waits) acquire(object);
}

// A lane ends. Others that wait at a barrier for the whole block would wait for ever.
PAGEDSERVE_EMU_INTERNAL inline void check_barriers_at_exit() {
  Lane& lane = self();
  const BlockBarrier& barrier = lane.block->barriers[0];
  if (barrier.arrived && barrier.expected == static_cast<int>(lane.block->lanes.size())) {
    fail("divergent-barrier", "the thread ends while others wait for it at a barrier." + where_all_stand(),
         lane.last_site);
  }
}

// ---- collectives ----

// The collective that the lane takes part in: one that others opened, or a new one.
PAGEDSERVE_EMU_INTERNAL inline size_t join_collective(uint32_t members, const char* word, const Site& site) {
  Lane& lane = self();
  Warp& warp = *lane.warp;
  char mask[16];
  std::snprintf(mask, sizeof mask, "0x%08x", members);
  if (!(members >> lane.lane & 1)) {
    fail("lane-not-in-mask",
         std::string(word) + " by lane " + std::to_string(lane.lane) + ", which is not in its mask " + mask, site);
  }
  if (members & warp.exited) {
    fail("lane-ended", std::string(word) + " with the mask " + mask + ", which names lanes that have ended", site);
  }
  lane.last_site = site;
  for (size_t i = 0; i < warp.open.size(); ++i) {
    Collective& other = warp.open[i];
    if (!(other.members & members)) continue;
    if (other.members != members || strcmp(other.word, word) || other.site.line != site.line ||
        strcmp(other.site.file, site.file)) {
      fail("divergent-warp",
           std::string(word) + " while other lanes of the mask wait in " + other.word + " at " + text_of(other.site),
           site);
    }
    return i;
  }
  warp.open.push_back({members, 0, word, site});
  return warp.open.size() - 1;
}

// Waits for all `members`; the last to come runs complete(warp), which reads `in` and writes `out` of each.
template <class Complete>
PAGEDSERVE_EMU_INTERNAL void collective(uint32_t members, const char* word, const Site& site, bool synchronises,
                                        Complete complete) {
  const size_t mine = join_collective(members, word, site);
  Lane& lane = self();
  Warp& warp = *lane.warp;
  void* object = lane.block->shared + 64 + warp.index;
  if (synchronises) release(object);
  warp.open[mine].arrived |= 1u << lane.lane;
  if (warp.open[mine].arrived == members) {
    ++machine.counters.collectives;
    complete(warp);
    warp.open.erase(warp.open.begin() + static_cast<ptrdiff_t>(mine));
    wake(&warp, *lane.block, members, &warp);
  } else {
    wait_for(&warp, word, site);
  }
  if (synchronises) acquire(object);
}

PAGEDSERVE_EMU_INTERNAL inline void sync_warp(uint32_t members, const Site& site) {
  Hidden hidden;
  collective(members, "sync_warp", site, true, [](Warp&) {});
}

enum class Shuffle { kIndex, kXor, kUp, kDown };

inline int shuffle_source(Shuffle kind, int lane, int argument, int width) {
  const int begin = lane & ~(width - 1);
  int source = lane;
  switch (kind) {
    case Shuffle::kIndex:
      return begin + (argument & (width - 1));
    case Shuffle::kXor:
      source = lane ^ argument;
      return source >= begin + width ? lane : source;
    case Shuffle::kUp:
      source = lane - argument;
      return source < begin ? lane : source;
    default:
      source = lane + argument;
      return source >= begin + width ? lane : source;
  }
}

// Shuffles 64 bits. A lane that is not in the mask gives all ones: it must not be read.
PAGEDSERVE_EMU_INTERNAL inline uint64_t shuffle_bits(Shuffle kind, uint64_t bits, int argument, uint32_t members,
                                                     int width, const char* word, const Site& site) {
  Hidden hidden;
  Lane& lane = self();
  if (width < 1 || width > 32 || (width & (width - 1))) {
    fail("divergent-warp",
         std::string(word) + " with width " + std::to_string(width) + ": give a power of two up to 32", site);
  }
  lane.warp->in[lane.lane][0] = bits;
  lane.warp->in[lane.lane][1] = static_cast<uint64_t>(static_cast<int64_t>(argument));
  collective(members, word, site, false, [=](Warp& warp) {
    for (int i = 0; i < 32; ++i) {
      if (!(members >> i & 1)) continue;
      const int source = shuffle_source(kind, i, static_cast<int>(warp.in[i][1]), width);
      warp.out[i][0] = members >> source & 1 ? warp.in[source][0] : ~0ull;
    }
  });
  return lane.warp->out[lane.lane][0];
}
template <class T>
T shuffle_value(Shuffle kind, T value, int argument, uint32_t members, int width, const char* word, const Site& site) {
  static_assert(sizeof(T) <= 8, "a shuffle moves up to 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = shuffle_bits(kind, bits, argument, members, width, word, site);
  memcpy(&value, &bits, sizeof(T));
  return value;
}

PAGEDSERVE_EMU_INTERNAL inline uint32_t vote(bool predicate, uint32_t members, const char* word, const Site& site) {
  Hidden hidden;
  Lane& lane = self();
  lane.warp->in[lane.lane][0] = predicate;
  collective(members, word, site, false, [=](Warp& warp) {
    uint64_t result = 0;
    for (int i = 0; i < 32; ++i) {
      if (members >> i & 1) result |= warp.in[i][0] << i;
    }
    for (int i = 0; i < 32; ++i) {
      if (members >> i & 1) warp.out[i][0] = result;
    }
  });
  return static_cast<uint32_t>(lane.warp->out[lane.lane][0]);
}

}  // namespace pagedserve::emulator
