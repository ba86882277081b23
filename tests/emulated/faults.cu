// SPDX-License-Identifier: Apache-2.0
// faults.cu: small kernels, each with one fault that a check must name, and their right twins.
#include "../../csrc/target/target.cuh"
#include "params.h"

namespace pagedserve::faults {

using namespace target;

constexpr int kThreads = 64;
constexpr uint32_t kLowHalf = 0x0000ffffu;

// ---- what any run finds ----

PAGEDSERVE_KERNEL(64, 1) deadlock(FaultParams) {
  if (thread_index() < 32) {
    sync_named(1, 64);
  } else {
    sync_named(2, 64);
  }
}
PAGEDSERVE_KERNEL(64, 1) divergent_barrier(FaultParams p) {
  if (thread_index() == 40) return;
  sync_threads();
  p.out[thread_index()] = 1;
}
PAGEDSERVE_KERNEL(64, 1) barrier_counts_differ(FaultParams) { sync_named(1, thread_index() < 32 ? 64 : 32); }
PAGEDSERVE_KERNEL(64, 1) divergent_warp(FaultParams p) {
  float value = 1;
  if (lane_index() < 16) {
    value = shuffle_xor(value, 1);
  } else {
    value = shuffle_xor(value, 2);
  }
  p.out[thread_index()] = value;
}
PAGEDSERVE_KERNEL(64, 1) lane_not_in_mask(FaultParams p) { p.out[thread_index()] = shuffle(1.f, 0, kLowHalf); }
PAGEDSERVE_KERNEL(64, 1) lane_ended(FaultParams) {
  if (lane_index() == 31) return;
  sync_warp(0x7fffffffu);
  sync_warp();
}
PAGEDSERVE_KERNEL(64, 1) misaligned(FaultParams p) {
  PAGEDSERVE_DYNAMIC_SHARED(shared);
  copy_async<16>(shared + 8, p.in);
}
PAGEDSERVE_KERNEL(64, 1) not_shared(FaultParams p) {
  uint32_t r[4];
  load_matrices(r, p.in + lane_index() * 4);
}
PAGEDSERVE_KERNEL(64, 1) copy_past_the_end(FaultParams p) {
  PAGEDSERVE_DYNAMIC_SHARED(shared);
  copy_async<16>(shared + p.shared_bytes - 16 + thread_index() / 63 * 16, p.in);
}
PAGEDSERVE_KERNEL(64, 1) write_past_the_end(FaultParams p) {
  PAGEDSERVE_DYNAMIC_SHARED(shared);
  reinterpret_cast<float*>(shared)[p.shared_bytes / 4 - 60 + thread_index()] = 1;
}
PAGEDSERVE_KERNEL(64, 1) endless_spin(FaultParams p) {
  while (atomic_load<Order::kAcquire>(p.flags) == 0) spin_pause();
}

// ---- what differs between runs ----

// With kWrong, reads what it copied before it waited.
template <bool kWrong>
PAGEDSERVE_KERNEL(64, 1)
wait(FaultParams p) {
  PAGEDSERVE_DYNAMIC_SHARED(shared);
  float* own = reinterpret_cast<float*>(shared) + thread_index();
  copy_async<4>(own, p.in + thread_index());
  copy_async_commit();
  if (!kWrong) copy_async_wait<0>();
  p.out[thread_index()] = *own;
}
template <bool kWrong>
PAGEDSERVE_KERNEL(64, 1)
initialise(FaultParams p) {
  PAGEDSERVE_SHARED(sums, float[64]);
  if (!kWrong || thread_index() != 5) sums[thread_index()] = 1;
  sync_threads();
  p.out[thread_index()] = sums[thread_index() ^ 1];
}

// ---- races ----

template <bool kWrong>
PAGEDSERVE_KERNEL(64, 1)
barrier(FaultParams p) {
  PAGEDSERVE_SHARED(values, float[64]);
  values[thread_index()] = p.in[thread_index()];
  if (!kWrong) sync_threads();
  p.out[thread_index()] = values[63 - thread_index()];
}
// Overwrites what other threads may still read.
template <bool kWrong>
PAGEDSERVE_KERNEL(64, 1)
barrier_before_overwrite(FaultParams p) {
  PAGEDSERVE_SHARED(values, float[64]);
  float sum = 0;
  for (int round = 0; round < 3; ++round) {
    values[thread_index()] = p.in[thread_index()] * static_cast<float>(round);
    sync_threads();
    sum += values[63 - thread_index()];
    if (!kWrong) sync_threads();
  }
  p.out[thread_index()] = sum;
}
// A shuffle orders registers, not memory.
template <bool kWrong>
PAGEDSERVE_KERNEL(64, 1)
warp_barrier(FaultParams p) {
  PAGEDSERVE_SHARED(values, float[64]);
  values[thread_index()] = p.in[thread_index()];
  if (kWrong) {
    shuffle(1, 0);
  } else {
    sync_warp();
  }
  p.out[thread_index()] = values[thread_index() ^ 1];
}
// Each block leaves its part; the last one adds them up. With kWrong, nothing orders parts before the count.
template <bool kWrong>
PAGEDSERVE_KERNEL(64, 1)
fence(FaultParams p) {
  PAGEDSERVE_SHARED(is_last, int);
  float* part = p.scratch + block_index().x * kThreads;
  fence_device();  // one too early orders nothing that comes after it
  part[thread_index()] = p.in[thread_index()];
  sync_threads();
  if (thread_index() == 0) {
    if (!kWrong) fence_device();
    is_last = atomic_add(p.flags, 1u) == num_blocks().x - 1;
    if (!kWrong) fence_device();
  }
  sync_threads();
  if (!is_last) return;
  float sum = 0;
  for (uint32_t block = 0; block < num_blocks().x; ++block) sum += p.scratch[block * kThreads + thread_index()];
  p.out[thread_index()] = sum;
}
// The same by an atomic that acquires and releases.
template <Order kOrder>
PAGEDSERVE_KERNEL(64, 1)
ordered_atomic(FaultParams p) {
  PAGEDSERVE_SHARED(is_last, int);
  p.scratch[block_index().x * kThreads + thread_index()] = p.in[thread_index()];
  sync_threads();
  if (thread_index() == 0) is_last = atomic_increment_wrap<kOrder>(p.flags, num_blocks().x - 1) == num_blocks().x - 1;
  sync_threads();
  if (!is_last) return;
  float sum = 0;
  for (uint32_t block = 0; block < num_blocks().x; ++block) sum += p.scratch[block * kThreads + thread_index()];
  p.out[thread_index()] = sum;
}
// Blocks write the same place; with kWrong, different values for nobody knows which to stay.
template <bool kWrong>
PAGEDSERVE_KERNEL(64, 1)
blocks(FaultParams p) {
  if (kWrong || block_index().x == 0) p.out[thread_index()] = static_cast<float>(block_index().x);
}
// Block 0 waits for the others: right where they are resident with it.
PAGEDSERVE_KERNEL(64, 1) wait_for_blocks(FaultParams p) {
  if (block_index().x == 0) {
    while (atomic_load<Order::kAcquire>(p.flags) != num_blocks().x - 1) spin_pause();
    p.out[thread_index()] = p.scratch[thread_index()];
  } else {
    if (block_index().x == 1) p.scratch[thread_index()] = p.in[thread_index()];
    sync_threads();
    if (thread_index() == 0) atomic_add<Order::kRelease>(p.flags, 1u);
  }
}
// The second kernel may start before the first has ended, and reads what that writes.
PAGEDSERVE_KERNEL(64, 1) first_kernel(FaultParams p) {
  p.scratch[thread_index()] = p.in[thread_index()];
  let_next_kernel_start();
}
template <bool kWrong>
PAGEDSERVE_KERNEL(64, 1)
second_kernel(FaultParams p) {
  if (!kWrong) wait_for_previous_kernel();
  p.out[thread_index()] = p.scratch[63 - thread_index()];
}

// ---- what the address sanitizer finds ----

template <bool kWrong>
PAGEDSERVE_KERNEL(64, 1)
global_bounds(FaultParams p) {
  p.out[thread_index()] = p.in[thread_index() + kWrong];
}
template <bool kWrong>
PAGEDSERVE_KERNEL(64, 1)
static_bounds(FaultParams p) {
  PAGEDSERVE_SHARED(values, float[64]);
  float* begin = values;
  begin[thread_index() + kWrong] = 1;
  p.out[thread_index()] = 1;
}
template <bool kWrong>
PAGEDSERVE_KERNEL(64, 1)
dynamic_read_bounds(FaultParams p) {
  PAGEDSERVE_DYNAMIC_SHARED(shared);
  float* values = reinterpret_cast<float*>(shared);
  values[thread_index()] = 1;
  sync_threads();
  const int end = p.shared_bytes / 4;
  p.out[thread_index()] = values[kWrong && thread_index() == 7 ? end : thread_index()];
}
template <bool kWrong>
PAGEDSERVE_KERNEL(64, 1)
registers(FaultParams p) {
  float sums[4] = {};
  const int last = p.shared_bytes / 256 + (kWrong ? 1 : 0);  // 3, or 4
  sums[last] = 1;
  p.out[thread_index()] = sums[last];
}
template <bool kWrong>
PAGEDSERVE_KERNEL(64, 1)
overflow(FaultParams p) {
  const int32_t large = p.shared_bytes << 20;  // 805306368
  p.out[thread_index()] = kWrong ? static_cast<float>(large * 4) : static_cast<float>(static_cast<int64_t>(large) * 4);
}

template <class Kernel>
int start(const char* name, Kernel kernel, const FaultParams* p, void* stream, int blocks = 1, bool overlaps = false) {
  const LaunchShape shape{{static_cast<uint32_t>(blocks), 1, 1}, kThreads, p->shared_bytes, overlaps};
  return launch(name, shape, stream, kernel, *p);
}

}  // namespace pagedserve::faults

#define PAGEDSERVE_FAULT(name, kernel, blocks)                                                                         \
  extern "C" __attribute__((visibility("default"))) int fault_##name(const pagedserve::FaultParams* p, void* stream) { \
    using namespace pagedserve::faults;                                                                                \
    return start(#name, kernel, p, stream, blocks);                                                                    \
  }
#define PAGEDSERVE_FAULT_AND_TWIN(name, blocks) \
  PAGEDSERVE_FAULT(name, name<true>, blocks)    \
  PAGEDSERVE_FAULT(name##_right, name<false>, blocks)

PAGEDSERVE_FAULT(deadlock, deadlock, 2)
PAGEDSERVE_FAULT(divergent_barrier, divergent_barrier, 1)
PAGEDSERVE_FAULT(barrier_counts_differ, barrier_counts_differ, 1)
PAGEDSERVE_FAULT(divergent_warp, divergent_warp, 1)
PAGEDSERVE_FAULT(lane_not_in_mask, lane_not_in_mask, 1)
PAGEDSERVE_FAULT(lane_ended, lane_ended, 1)
PAGEDSERVE_FAULT(misaligned, misaligned, 1)
PAGEDSERVE_FAULT(not_shared, not_shared, 1)
PAGEDSERVE_FAULT(copy_past_the_end, copy_past_the_end, 1)
PAGEDSERVE_FAULT(write_past_the_end, write_past_the_end, 1)
PAGEDSERVE_FAULT(endless_spin, endless_spin, 1)
PAGEDSERVE_FAULT_AND_TWIN(wait, 1)
PAGEDSERVE_FAULT_AND_TWIN(initialise, 1)
PAGEDSERVE_FAULT_AND_TWIN(barrier, 1)
PAGEDSERVE_FAULT_AND_TWIN(barrier_before_overwrite, 1)
PAGEDSERVE_FAULT_AND_TWIN(warp_barrier, 1)
PAGEDSERVE_FAULT_AND_TWIN(fence, 3)
PAGEDSERVE_FAULT(ordered_atomic, ordered_atomic<pagedserve::target::Order::kRelaxed>, 3)
PAGEDSERVE_FAULT(ordered_atomic_right, ordered_atomic<pagedserve::target::Order::kAcqRel>, 3)
PAGEDSERVE_FAULT_AND_TWIN(blocks, 2)
PAGEDSERVE_FAULT(wait_for_blocks, wait_for_blocks, 4)
PAGEDSERVE_FAULT_AND_TWIN(global_bounds, 1)
PAGEDSERVE_FAULT_AND_TWIN(static_bounds, 1)
PAGEDSERVE_FAULT_AND_TWIN(dynamic_read_bounds, 1)
PAGEDSERVE_FAULT_AND_TWIN(registers, 1)
PAGEDSERVE_FAULT_AND_TWIN(overflow, 1)

extern "C" __attribute__((visibility("default"))) int fault_too_many_threads(const pagedserve::FaultParams* p,
                                                                             void* stream) {
  using namespace pagedserve;
  return target::launch("too_many_threads", target::LaunchShape{{1, 1, 1}, 2048}, stream, faults::deadlock, *p);
}
template <bool kWrong>
static int overlap(const pagedserve::FaultParams* p, void* stream) {
  using namespace pagedserve::faults;
  const int error = start("first_kernel", first_kernel, p, stream);
  return error ? error : start("second_kernel", second_kernel<kWrong>, p, stream, 1, true);
}
extern "C" __attribute__((visibility("default"))) int fault_overlap(const pagedserve::FaultParams* p, void* stream) {
  return overlap<true>(p, stream);
}
extern "C" __attribute__((visibility("default"))) int fault_overlap_right(const pagedserve::FaultParams* p,
                                                                          void* stream) {
  return overlap<false>(p, stream);
}
