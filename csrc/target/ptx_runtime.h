// SPDX-License-Identifier: Apache-2.0
// ptx_runtime.h: the words of kernels translated from PTX (pagedserve/emulate/ptx*.py) on the emulator.
//
// Generic addresses are pointers; those of shared memory count from the start of the block's window, as on the device.
// Every word knows the PTX line that it stands for by __builtin_LINE, which the translator sets with #line.
#pragma once

#include <dlfcn.h>

#include "ptx_convert.h"
#include "ptx_matrix.h"

namespace pagedserve::ptx {

using emulator::Site;
using target::Dim3;
using target::Order;

// What a translated file defines. A kernel takes the addresses of its parameters.
struct Kernel {
  const char* name;
  void (*body)(const void* const* parameters);
  int num_parameters;
  const uint32_t* parameter_bytes;
};
extern const Kernel kKernels[];
extern const int kNumKernels;

#if defined(PAGEDSERVE_EMULATED_PTX)
// The translation of the kernel whose source's address this is; an error where there is none.
inline Body translated(const void* kernel) {
  Dl_info found;
  const char* name = dladdr(kernel, &found) && found.dli_sname ? found.dli_sname : "a kernel without a name";
  for (int i = 0; i < kNumKernels; ++i) {
    if (!strcmp(kKernels[i].name, name)) return kKernels[i].body;
  }
  emulator::machine.error = {"not-translated", std::string("PTX is not translated of ") + name};
  return nullptr;
}
#endif

// ---- where am I ----

inline Dim3 thread() { return {static_cast<uint32_t>(emulator::self().thread), 0, 0}; }
inline Dim3 threads() { return {static_cast<uint32_t>(emulator::machine.shape.threads), 1, 1}; }
inline Dim3 block() { return emulator::self().block->index; }
inline Dim3 blocks() { return emulator::machine.shape.grid; }
inline uint32_t lane() { return static_cast<uint32_t>(emulator::self().lane); }
inline uint32_t warp() { return static_cast<uint32_t>(emulator::self().warp->index); }
inline uint32_t dynamic_shared_bytes() { return static_cast<uint32_t>(emulator::machine.shape.shared_bytes); }

[[noreturn]] inline void fail(const char* text, Site site = Site::here()) { emulator::fail("trap", text, site); }

// ---- addresses ----

inline char* pointer(uint64_t address, int64_t offset) {
  return reinterpret_cast<char*>(static_cast<uintptr_t>(address + static_cast<uint64_t>(offset)));
}
inline char* shared_pointer(uint32_t address, int64_t offset) {
  return static_cast<char*>(emulator::shared_pointer(address + static_cast<uint32_t>(offset)));
}
inline uint32_t offset_of(const char* shared) { return emulator::shared_address(shared); }
inline bool in_shared(const char* place) { return emulator::is_shared(place, 1); }
inline char* dynamic_shared() { return reinterpret_cast<char*>(emulator::dynamic_shared()); }
inline char* static_shared(const void* key, size_t bytes, size_t alignment, Site site = Site::here()) {
  return static_cast<char*>(emulator::static_shared(key, bytes, alignment, site));
}

// ---- loads and stores; sanitizers see them as the kernel's own ----

inline void check_access(bool is_shared, const char* place, size_t bytes, Site site = Site::here()) {
  if (is_shared) {
    emulator::check_shared("an access", place, bytes, bytes, site);
  } else if (reinterpret_cast<uintptr_t>(place) % bytes) {
    emulator::fail("misaligned",
                   "an access of " + std::to_string(bytes) + " bytes to an address that is no multiple of it", site);
  }
}
template <class T>
T load(const char* place) {
  using Word = std::conditional_t<sizeof(T) == 16, uint64_t, T>;
  if constexpr (sizeof(T) == 16) {
    const volatile Word* words = reinterpret_cast<const volatile Word*>(place);
    return static_cast<T>(words[0]) | static_cast<T>(words[1]) << 64;
  } else if constexpr (std::is_arithmetic<T>::value) {
    return *reinterpret_cast<const volatile T*>(place);
  } else {
    return as<T>(*reinterpret_cast<const volatile std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>*>(place));
  }
}
template <class T>
void store(char* place, T value) {
  if constexpr (sizeof(T) == 16) {
    volatile uint64_t* words = reinterpret_cast<volatile uint64_t*>(place);
    words[0] = static_cast<uint64_t>(value);
    words[1] = static_cast<uint64_t>(value >> 64);
  } else if constexpr (std::is_arithmetic<T>::value) {
    *reinterpret_cast<volatile T*>(place) = value;
  } else {
    using Word = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;
    *reinterpret_cast<volatile Word*>(place) = as<Word>(value);
  }
}
template <class T>
T load_atomic(const char* place, Order order, Site site = Site::here()) {
  return emulator::atomic_read(reinterpret_cast<const T*>(place), order, "ld", site);
}
template <class T>
void store_atomic(char* place, T value, Order order, Site site = Site::here()) {
  emulator::atomic_write(reinterpret_cast<T*>(place), value, order, "st", site);
}

// ---- atomics: each gives the value that stood there ----

template <class T, class Change>
T atomic(char* place, Order order, const char* word, Site site, Change change) {
  return emulator::atomic_update(reinterpret_cast<T*>(place), order, word, site, change);
}
#define PAGEDSERVE_PTX_ATOMIC(name, result)                                           \
  template <class T>                                                                  \
  T atomic_##name(char* place, T b, Order order, Site site = Site::here()) {          \
    return atomic<T>(place, order, "atom." #name, site, [b](T a) { return result; }); \
  }
PAGEDSERVE_PTX_ATOMIC(add, add(a, b))
PAGEDSERVE_PTX_ATOMIC(min, min(a, b))
PAGEDSERVE_PTX_ATOMIC(max, max(a, b))
PAGEDSERVE_PTX_ATOMIC(and, bit_and(a, b))
PAGEDSERVE_PTX_ATOMIC(or, bit_or(a, b))
PAGEDSERVE_PTX_ATOMIC(xor, bit_xor(a, b))
PAGEDSERVE_PTX_ATOMIC(exch, ((void)a, b))
PAGEDSERVE_PTX_ATOMIC(inc, a >= b ? T{0} : static_cast<T>(a + 1))
PAGEDSERVE_PTX_ATOMIC(dec, a == 0 || a > b ? b : static_cast<T>(a - 1))
#undef PAGEDSERVE_PTX_ATOMIC
template <class T>
T atomic_cas(char* place, T expected, T value, Order order, Site site = Site::here()) {
  return atomic<T>(place, order, "atom.cas", site, [=](T a) { return a == expected ? value : a; });
}
inline void fence() { emulator::fence(); }

// ---- async copies ----

inline void async_copy(char* shared, const char* global, uint32_t bytes, uint32_t valid_bytes,
                       Site site = Site::here()) {
  emulator::copy_async(shared, global, static_cast<int>(bytes), static_cast<int>(valid_bytes), site);
}
inline void async_commit() { emulator::commit_copies(); }
inline void async_wait(uint32_t pending) { emulator::wait_for_copies(static_cast<int>(pending)); }
inline void async_wait_all() {
  emulator::commit_copies();
  emulator::wait_for_copies(0);
}

// ---- mbarriers and bulk copies ----

inline uint64_t* mbarrier_of(char* place) { return reinterpret_cast<uint64_t*>(place); }
inline void mbarrier_init(char* place, uint32_t arrivals, Site site = Site::here()) {
  emulator::mbarrier_init(mbarrier_of(place), static_cast<int>(arrivals), site);
}
inline void mbarrier_arrive(char* place, uint32_t bytes, Site site = Site::here()) {
  emulator::mbarrier_arrive(mbarrier_of(place), bytes, site);
}
inline void mbarrier_wait(char* place, uint32_t parity, Site site = Site::here()) {
  emulator::mbarrier_wait(mbarrier_of(place), static_cast<int>(parity), site);
}
inline void copy_bulk(char* shared, const char* global, uint32_t bytes, char* mbarrier, Site site = Site::here()) {
  target::copy_bulk(shared, global, bytes, mbarrier_of(mbarrier), site);
}

// ---- products of a warp group: d are the registers that receive the results; a is null where descriptor_a counts ----

struct GroupLayout {
  bool a_is_mn, b_is_mn;
};
template <class T, int kCount>
void group_product(void* const (&d)[kCount], const uint32_t* a, uint64_t descriptor_a, uint64_t descriptor_b,
                   GroupLayout layout, bool accumulate, Site site = Site::here()) {
  constexpr emulator::Half kType = std::is_same<T, BF16>::value ? emulator::Half::kBF16 : emulator::Half::kF16;
  emulator::start_product(
      d, {2 * kCount, a, descriptor_a, descriptor_b, kType, layout.a_is_mn, layout.b_is_mn, accumulate}, site);
}
inline void commit_products(Site site = Site::here()) { emulator::commit_products(site); }
inline void wait_for_products(uint32_t pending, Site site = Site::here()) {
  emulator::wait_for_products(static_cast<int>(pending), site);
}

// ---- barriers ----

inline void block_sync(uint32_t id, uint32_t threads, Site site = Site::here()) {
  emulator::block_barrier(static_cast<int>(id), static_cast<int>(threads), true, "bar.sync", site);
}
inline void block_arrive(uint32_t id, uint32_t threads, Site site = Site::here()) {
  emulator::block_barrier(static_cast<int>(id), static_cast<int>(threads), false, "bar.arrive", site);
}
inline void warp_sync(uint32_t members, Site site = Site::here()) { emulator::sync_warp(members, site); }
inline void spin_pause(Site site = Site::here()) { emulator::spin("nanosleep", site); }
inline void wait_for_previous_kernel() { emulator::wait_for_previous_kernel(); }

// ---- matrices; mma is in ptx_matrix.h ----

inline void load_matrices(uint32_t* r, int count, const char* row, bool transposed, Site site = Site::here()) {
  emulator::load_matrices(r, count, row, transposed, site);
}
inline void store_matrices(const uint32_t* r, int count, char* row, Site site = Site::here()) {
  emulator::store_matrices(r, count, row, site);
}

// ---- lanes of a warp ----

struct Shuffled {
  uint32_t value;
  bool inside;  // whether the lane asked for is in the segment; else the lane's own value
};
enum ShuffleKind { kIdx, kXor, kUp, kDown };

// `clamp` holds a segment mask in bits 8 to 12 and the last lane in bits 0 to 4.
template <ShuffleKind kKind>
Shuffled shuffle(uint32_t value, uint32_t by, uint32_t clamp, uint32_t members, Site site = Site::here()) {
  const uint32_t here = lane(), segment = clamp >> 8 & 31, first = here & segment, delta = by & 31;
  const uint32_t last = first | (clamp & 31 & ~segment);
  uint32_t from;
  bool inside;
  if (kKind == kUp) {
    from = here - delta;
    inside = static_cast<int32_t>(from) >= static_cast<int32_t>(last);
  } else {
    from = kKind == kDown ? here + delta : kKind == kXor ? here ^ delta : first | (delta & ~segment);
    inside = from <= last;
  }
  const int lane_asked = static_cast<int>(inside ? from : here);
  return {emulator::shuffle_value(emulator::Shuffle::kIndex, value, lane_asked, members, 32, "shfl.sync", site),
          inside};
}
inline uint32_t vote_ballot(bool yes, uint32_t members, Site site = Site::here()) {
  return emulator::vote(yes, members, "vote.sync", site);
}
inline bool vote_any(bool yes, uint32_t members, Site site = Site::here()) {
  return vote_ballot(yes, members, site) != 0;
}
inline bool vote_all(bool yes, uint32_t members, Site site = Site::here()) {
  return vote_ballot(yes, members, site) == members;
}
inline bool vote_uni(bool yes, uint32_t members, Site site = Site::here()) {
  const uint32_t votes = vote_ballot(yes, members, site);
  return votes == 0 || votes == members;
}
inline uint32_t first_lane(uint32_t members, Site site = Site::here()) {
  vote_ballot(true, members, site);
  return static_cast<uint32_t>(__builtin_ctz(members));
}
// An 8 x 8 matrix of 16-bit elements, two neighbours of row lane / 4 in each lane, to its transpose.
inline uint32_t transpose_matrix(uint32_t matrix, Site site = Site::here()) {
  const uint32_t column = lane() / 4;
  uint32_t pair = 0;
  for (uint32_t j = 0; j < 2; ++j) {
    const int from = static_cast<int>((lane() % 4 * 2 + j) * 4 + column / 2);
    const uint32_t word =
        emulator::shuffle_value(emulator::Shuffle::kIndex, matrix, from, target::kAllLanes, 32, "movmatrix", site);
    pair |= (word >> 16 * (column % 2) & 0xffff) << 16 * j;
  }
  return pair;
}
// Folds the members' values, lowest lane first.
template <class T, class Fold>
T reduce(T value, uint32_t members, Site site, Fold fold) {
  emulator::Lane& self = emulator::self();
  {
    emulator::Hidden hidden;
    memcpy(&self.warp->in[self.lane][0], &value, sizeof(T));
    emulator::collective(members, "redux.sync", site, false, [=](emulator::Warp& warp) {
      const auto value_of = [&](int i) { return as<T>(warp.in[i][0]); };
      T total = value_of(__builtin_ctz(members));
      for (int i = __builtin_ctz(members) + 1; i < 32; ++i) {
        if (members >> i & 1) total = fold(total, value_of(i));
      }
      for (int i = 0; i < 32; ++i) {
        if (members >> i & 1) set(warp.out[i][0], total);
      }
    });
    return as<T>(self.warp->out[self.lane][0]);
  }
}
#define PAGEDSERVE_PTX_REDUCE(name, fold)                                     \
  template <class T>                                                          \
  T reduce_##name(T value, uint32_t members, Site site = Site::here()) {      \
    return reduce(value, members, site, [](T a, T b) { return fold(a, b); }); \
  }
PAGEDSERVE_PTX_REDUCE(add, add)
PAGEDSERVE_PTX_REDUCE(min, min)
PAGEDSERVE_PTX_REDUCE(max, max)
PAGEDSERVE_PTX_REDUCE(and, bit_and)
PAGEDSERVE_PTX_REDUCE(or, bit_or)
PAGEDSERVE_PTX_REDUCE(xor, bit_xor)
#undef PAGEDSERVE_PTX_REDUCE
// Which members hold the same value.
template <class T>
uint32_t match_any(T value, uint32_t members, Site site = Site::here()) {
  uint32_t same = 0;
  for (int i = 0; i < 32; ++i) {
    if (!(members >> i & 1)) continue;
    const uint64_t other = emulator::shuffle_bits(emulator::Shuffle::kIndex, value, i, members, 32, "match.sync", site);
    same |= static_cast<uint32_t>(static_cast<T>(other) == value) << i;
  }
  return same;
}

}  // namespace pagedserve::ptx

// ---- the C side; pagedserve/emulate/ptx.py has the same ----

namespace pagedserve::ptx {

// Parameters stand behind it, each at a multiple of kParameterAlignment.
struct Launch {
  uint32_t grid[3], threads, shared_bytes, kernel, unused[10];
};
constexpr size_t kParameterAlignment = 64, kMaxParameters = 512;

// A kernel and its parameters, on memory as aligned as they want it.
struct Call {
  alignas(kParameterAlignment) char storage[32 * 1024];
  const void* parameters[kMaxParameters];
  const Kernel* kernel;
};

inline int launch(const char* given) {
  Launch launch;
  memcpy(&launch, given, sizeof launch);
  const auto call = std::make_shared<Call>();
  call->kernel = &kKernels[launch.kernel];
  size_t end = 0;
  for (int i = 0; i < call->kernel->num_parameters; ++i) {
    call->parameters[i] = call->storage + end;
    end += emulator::round_up(call->kernel->parameter_bytes[i], kParameterAlignment);
  }
  memcpy(call->storage, given + sizeof(Launch), end);
  const target::LaunchShape shape{{launch.grid[0], launch.grid[1], launch.grid[2]},
                                  static_cast<int>(launch.threads),
                                  static_cast<int>(launch.shared_bytes),
                                  false};
  const auto body = [](const void* made) {
    const Call& call = *static_cast<const Call*>(made);
    call.kernel->body(call.parameters);
  };
  return emulator::run(call->kernel->name, shape, body, call);
}

}  // namespace pagedserve::ptx

PAGEDSERVE_EMU_EXPORT int pagedserve_ptx_launch(const char* call, void* /*stream*/) {
  return pagedserve::ptx::launch(call);
}
