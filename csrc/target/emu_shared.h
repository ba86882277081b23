// SPDX-License-Identifier: Apache-2.0
// emu_shared.h: shared memory of the emulator: poisoned, between guards, its addresses checked. Included by emu.h.
#pragma once

#include "emu_machine.h"

namespace pagedserve::emulator {

// The header holds no data: its bytes stand for barriers and warps in the race detector.
constexpr size_t kSharedHeader = 1024, kGuardBytes = 256, kStaticGuard = 32, kStaticCapacity = 48 * 1024;
constexpr int kMaxSharedBytes = 227 * 1024;

inline size_t round_up(size_t value, size_t step) { return (value + step - 1) / step * step; }
inline size_t static_begin() { return kSharedHeader + round_up(machine.shape.shared_bytes, 64) + kGuardBytes; }

// Sets or tests bytes without being seen by a sanitizer.
__attribute__((noinline, no_sanitize("thread"), no_sanitize("address"))) inline void fill_unseen(char* begin,
                                                                                                 size_t bytes,
                                                                                                 int value) {
  volatile uint64_t* words = reinterpret_cast<uint64_t*>(begin);  // begin and bytes are multiples of 8
  const uint64_t pattern = 0x0101010101010101ull * static_cast<uint8_t>(value);
  for (size_t i = 0; i < bytes / 8; ++i) words[i] = pattern;
}
__attribute__((noinline, no_sanitize("thread"), no_sanitize("address"))) inline bool holds_unseen(const char* begin,
                                                                                                  size_t bytes,
                                                                                                  int value) {
  const volatile uint8_t* all = reinterpret_cast<const uint8_t*>(begin);
  for (size_t i = 0; i < bytes; ++i) {
    if (all[i] != static_cast<uint8_t>(value)) return false;
  }
  return true;
}

PAGEDSERVE_EMU_INTERNAL inline void free_shared(Block& block) {
  if (!block.shared) return;
#if defined(PAGEDSERVE_EMU_ASAN)
  ASAN_UNPOISON_MEMORY_REGION(block.shared, block.shared_bytes);
#endif
  munmap(block.shared, block.shared_bytes);
  block.shared = nullptr;
}

// Poisoned memory for a new block: a new mapping, so that the race detector forgets the block before.
PAGEDSERVE_EMU_INTERNAL inline void renew_shared(Block& block) {
  block.statics.clear();
  block.static_used = 0;
  block.hopper.reset();
  free_shared(block);
  block.shared_bytes = round_up(static_begin() + kStaticCapacity, kPageBytes);
  void* memory = mmap(nullptr, block.shared_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) stop("launch", "the emulator has no memory for a block's shared memory");
  block.shared = static_cast<char*>(memory);
  fill_unseen(block.shared + kSharedHeader, static_begin() - kSharedHeader, machine.config.poison);
#if defined(PAGEDSERVE_EMU_ASAN)
  ASAN_POISON_MEMORY_REGION(block.shared, block.shared_bytes);
  ASAN_UNPOISON_MEMORY_REGION(block.shared + kSharedHeader, machine.shape.shared_bytes);
#endif
}

inline unsigned char* dynamic_shared() {
  return reinterpret_cast<unsigned char*>(self().block->shared) + kSharedHeader;
}

// The block's variable that `key` stands for.
PAGEDSERVE_EMU_INTERNAL inline void* static_shared(const void* key, size_t bytes, size_t alignment, const Site& site) {
  Hidden hidden;
  Block& block = *self().block;
  const auto found = block.statics.find(key);
  if (found != block.statics.end()) return found->second.begin;
  const size_t at = round_up(static_begin() + block.static_used, std::max<size_t>(alignment, 16));
  const size_t end = round_up(at + bytes, 8) + kStaticGuard;
  if (end > block.shared_bytes) fail("launch", "more than 48 KB of static shared memory", site);
  fill_unseen(block.shared + at, end - at, machine.config.poison);
  block.static_used = end - static_begin();
#if defined(PAGEDSERVE_EMU_ASAN)
  ASAN_UNPOISON_MEMORY_REGION(block.shared + at, bytes);
#endif
  block.statics[key] = {block.shared + at, bytes};
  return block.shared + at;
}

// Whether [pointer, pointer + bytes) is the block's dynamic shared memory, or one variable of it.
PAGEDSERVE_EMU_INTERNAL inline bool is_shared(const void* pointer, size_t bytes) {
  const Block& block = *self().block;
  const char* begin = static_cast<const char*>(pointer);
  const char* dynamic = block.shared + kSharedHeader;
  if (begin >= dynamic && begin + bytes <= dynamic + machine.shape.shared_bytes) return true;
  for (const auto& [key, variable] : block.statics) {
    if (begin >= variable.begin && begin + bytes <= variable.begin + variable.bytes) return true;
  }
  return false;
}
// Errors unless it is, and aligned.
PAGEDSERVE_EMU_INTERNAL inline void check_shared(const char* word, const void* pointer, size_t bytes, size_t alignment,
                                                 const Site& site) {
  const Block& block = *self().block;
  const char* begin = static_cast<const char*>(pointer);
  if (!is_shared(pointer, bytes)) {
    const bool near = begin >= block.shared && begin < block.shared + block.shared_bytes;
    if (near) {
      fail("out-of-bounds",
           std::string(word) + " takes " + std::to_string(bytes) + " bytes of shared memory at byte " +
               std::to_string(begin - block.shared - static_cast<ptrdiff_t>(kSharedHeader)) + " of the block's " +
               std::to_string(machine.shape.shared_bytes) + " dynamic ones",
           site);
    }
    fail("not-shared", std::string(word) + " is given an address that is not in the block's shared memory", site);
  }
  if ((begin - block.shared) % static_cast<ptrdiff_t>(alignment)) {
    fail("misaligned",
         std::string(word) + " is given a shared address that is no multiple of " + std::to_string(alignment), site);
  }
}

// What instructions call it: bytes from the start of the block's window.
inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const char*>(pointer) - self().block->shared);
}
inline void* shared_pointer(uint32_t address) { return self().block->shared + address; }

// After a block's end: the guards are as they were. Finds writes past an end without any sanitizer.
PAGEDSERVE_EMU_INTERNAL inline void check_guards(const Block& block) {
  const int poison = machine.config.poison;
  const size_t dynamic_end = kSharedHeader + static_cast<size_t>(machine.shape.shared_bytes);
  bool whole = holds_unseen(block.shared + dynamic_end, static_begin() - dynamic_end, poison);
  for (const auto& [key, variable] : block.statics) {
    whole = whole && holds_unseen(variable.begin + variable.bytes, kStaticGuard, poison);
  }
  if (!whole && machine.error.text.empty()) {
    machine.error = {"out-of-bounds", "kernel " + std::string(machine.kernel) + ", block " + text_of(block.index) +
                                          ": a thread wrote past the end of shared memory (" +
                                          std::to_string(machine.shape.shared_bytes) +
                                          " dynamic bytes); --check bounds names the line"};
  }
}

}  // namespace pagedserve::emulator
