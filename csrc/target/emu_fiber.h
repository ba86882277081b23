// SPDX-License-Identifier: Apache-2.0
// emu_fiber.h: a fiber for each CUDA thread, known to AddressSanitizer and ThreadSanitizer. Included by emu.h.
//
// A switch takes about 35 ns with the x86-64 routine and 235 ns with ucontext, which serves every other processor.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#define PAGEDSERVE_EMU_ASAN 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#define PAGEDSERVE_EMU_TSAN 1
#include <sanitizer/tsan_interface.h>
// In libtsan, but not in GCC 12's header.
extern "C" {
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

// Not inlined into kernels, and without race checks of its own.
#define PAGEDSERVE_EMU_INTERNAL __attribute__((noinline, no_sanitize("thread")))

namespace pagedserve::emulator {

constexpr size_t kStackBytes = 256 * 1024, kPageBytes = 4096;

// While one lives, the emulator's own reads and writes are no kernel's races.
struct Hidden {
#if defined(PAGEDSERVE_EMU_TSAN)
  Hidden() {
    AnnotateIgnoreReadsBegin(__FILE__, 0);
    AnnotateIgnoreWritesBegin(__FILE__, 0);
  }
  ~Hidden() {
    AnnotateIgnoreWritesEnd(__FILE__, 0);
    AnnotateIgnoreReadsEnd(__FILE__, 0);
  }
#else
  Hidden() {}
  ~Hidden() {}
#endif
  Hidden(const Hidden&) = delete;
  Hidden& operator=(const Hidden&) = delete;
};

// What came before release(object) happens before what comes after a later acquire(object).
inline void release([[maybe_unused]] void* object) {
#if defined(PAGEDSERVE_EMU_TSAN)
  __tsan_release(object);
#endif
}
inline void acquire([[maybe_unused]] void* object) {
#if defined(PAGEDSERVE_EMU_TSAN)
  __tsan_acquire(object);
#endif
}

struct Fiber {
  char* stack = nullptr;  // null: the stack of whoever launches
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
#if defined(PAGEDSERVE_EMU_ASAN)
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  size_t bytes = 0;
#endif
#if defined(PAGEDSERVE_EMU_TSAN)
  void* race = nullptr;
#endif
};

#if defined(__x86_64__)
// Saves what the System V ABI has a callee keep, and goes on where the other stack was left.
__attribute__((naked, noinline)) inline void swap_stacks(void** /*save*/, void* /*to*/) {
  asm volatile(
      "pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15;"
      "movq %rsp, (%rdi); movq %rsi, %rsp;"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}
#endif

// Makes `fiber` start at `entry`, which never returns. Stacks and race detector's fibers are kept: making one of the
// latter takes a millisecond. False where the system gives no stack.
PAGEDSERVE_EMU_INTERNAL inline bool prepare(Fiber& fiber, void (*entry)()) {
  if (!fiber.stack) {
    void* memory =
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return false;
    if (mprotect(memory, kPageBytes, PROT_NONE) != 0) {
      munmap(memory, kStackBytes);
      return false;
    }
    fiber.stack = static_cast<char*>(memory);
#if defined(PAGEDSERVE_EMU_TSAN)
    fiber.race = __tsan_create_fiber(0);
#endif
  }
#if defined(PAGEDSERVE_EMU_ASAN)
  ASAN_UNPOISON_MEMORY_REGION(fiber.stack + kPageBytes, kStackBytes - kPageBytes);
  fiber.fake_stack = nullptr;
  fiber.bottom = fiber.stack;
  fiber.bytes = kStackBytes;
#endif
#if defined(__x86_64__)
  void** top = reinterpret_cast<void**>(fiber.stack + kStackBytes);
  *--top = nullptr;  // a return address, so that the stack is 8 past a multiple of 16 on entry
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
#endif
  return true;
}

// Leaves `from`, for good if it `ends`, and goes on in `to`.
PAGEDSERVE_EMU_INTERNAL inline void switch_fibers(Fiber& from, Fiber& to, [[maybe_unused]] bool ends) {
#if defined(PAGEDSERVE_EMU_ASAN)
  __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake_stack, to.bottom, to.bytes);
#endif
#if defined(PAGEDSERVE_EMU_TSAN)
  __tsan_switch_to_fiber(to.race, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__x86_64__)
  swap_stacks(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
#if defined(PAGEDSERVE_EMU_ASAN)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// The first thing a fiber does. `launcher` is the fiber of who launched it, whose stack is not known before.
PAGEDSERVE_EMU_INTERNAL inline void enter_fiber([[maybe_unused]] Fiber& launcher) {
#if defined(PAGEDSERVE_EMU_ASAN)
  const void* bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (!launcher.bottom) {
    launcher.bottom = bottom;
    launcher.bytes = bytes;
  }
#endif
}

}  // namespace pagedserve::emulator
