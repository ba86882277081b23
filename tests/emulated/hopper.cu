// SPDX-License-Identifier: Apache-2.0
// hopper.cu: c [64, n] = a [64, depth] b [n, depth]^T in bf16, two stages of tensor copies ahead of a warp group; and
// the same with one thing wrong.
//
// Work     one block of 128 threads; thread 0 starts copies
// Oracle   tests/emulated/test_hopper.py
#include "../../csrc/target/target.cuh"
#include "params.h"

namespace pagedserve::hopper {

using namespace target;

constexpr int kDepth = 64, kTileBytes = 64 * kDepth * 2;
enum class Wrong { kNothing, kNoInitBarrier, kNoFullWait, kLateProductWait, kNoEmptyWait, kTooManyBytes };

struct Maps {
  TensorMap a, b;
};

template <int kN, Major kMajor, Wrong kWrong>
PAGEDSERVE_KERNEL(128, 1)
product(PAGEDSERVE_GRID_CONSTANT Maps maps, PAGEDSERVE_GRID_CONSTANT HopperParams p) {
  PAGEDSERVE_DYNAMIC_SHARED(tiles);
  PAGEDSERVE_SHARED(full, uint64_t[2]);
  PAGEDSERVE_SHARED(empty, uint64_t[2]);
  const int thread = thread_index(), steps = p.depth / kDepth;
  if (thread == 0) {
    for (int stage = 0; stage < 2; ++stage) {
      mbarrier_init(&full[stage], 1);
      mbarrier_init(&empty[stage], 128);
    }
    mbarrier_init_fence();
  }
  if (kWrong != Wrong::kNoInitBarrier) sync_threads();

  const auto start = [&](int step) {
    unsigned char* const tile = tiles + step % 2 * 2 * kTileBytes;
    uint64_t* const barrier = &full[step % 2];
    const int b_rows = kMajor == Major::kK ? kN : kDepth;
    mbarrier_arrive_expect(barrier, kTileBytes + b_rows * 128 + (kWrong == Wrong::kTooManyBytes ? 16 : 0));
    copy_tensor_2d(tile, &maps.a, step * kDepth, 0, barrier);
    if (kMajor == Major::kK)
      copy_tensor_2d(tile + kTileBytes, &maps.b, step * kDepth, 0, barrier);
    else
      copy_tensor_2d(tile + kTileBytes, &maps.b, 0, step * kDepth, barrier);
  };
  if (thread == 0) {
    for (int step = 0; step < 2 && step < steps; ++step) start(step);
  }
  float sums[kN / 2] = {};
  for (int step = 0; step < steps; ++step) {
    const int stage = step % 2, parity = step / 2 % 2;
    if (kWrong != Wrong::kNoFullWait) mbarrier_wait(&full[stage], parity);
    const uint64_t a = describe_tile(tiles + stage * 2 * kTileBytes);
    const uint64_t b = describe_tile(tiles + stage * 2 * kTileBytes + kTileBytes);
    wgmma_fence();
    for (int k = 0; k < kDepth / 16; ++k) {
      wgmma_m64k16<BF16, Major::kK, kMajor>(sums, a + k * 2, b + k * (kMajor == Major::kK ? 2 : 128));
    }
    wgmma_commit();
    if (kWrong != Wrong::kLateProductWait) wgmma_wait<0>();
    mbarrier_arrive(&empty[stage]);
    if (thread == 0 && step + 2 < steps) {
      if (kWrong != Wrong::kNoEmptyWait) mbarrier_wait(&empty[stage], parity);
      start(step + 2);
    }
  }
  if (kWrong == Wrong::kLateProductWait) wgmma_wait<0>();
  for (int i = 0; i < kN / 2; ++i) {
    const int row = warp_index() * 16 + lane_index() / 4 + i / 2 % 2 * 8;
    p.c[row * kN + i / 4 * 8 + lane_index() % 4 * 2 + i % 2] = sums[i];
  }
}

// out = in, by one bulk copy for each 16 floats of each warp, read back by load_matrices and store_matrices.
PAGEDSERVE_KERNEL(32, 1) bulk(PAGEDSERVE_GRID_CONSTANT HopperParams p) {
  PAGEDSERVE_SHARED(landed, uint32_t[128]);
  PAGEDSERVE_SHARED(moved, uint32_t[128]);
  PAGEDSERVE_SHARED(barrier, uint64_t);
  if (thread_index() == 0) {
    mbarrier_init(&barrier, 1);
    mbarrier_init_fence();
  }
  sync_warp();
  if (thread_index() == 0) {
    mbarrier_arrive_expect(&barrier, 512);
    for (int i = 0; i < 8; ++i) copy_bulk(&landed[i * 16], static_cast<const char*>(p.a) + i * 64, 64, &barrier);
  }
  mbarrier_wait(&barrier, 0);
  uint32_t r[4];
  load_matrices(r, &landed[lane_index() * 4]);
  store_matrices(r, &moved[lane_index() * 4]);
  sync_warp();
  for (int i = 0; i < 4; ++i) p.c[lane_index() * 4 + i] = bits_float(moved[lane_index() * 4 + i]);
}

template <int kN, Major kMajor, Wrong kWrong = Wrong::kNothing>
int start(const HopperParams& p, void* stream) {
  Maps maps;
  const bool is_k = kMajor == Major::kK;
  int error = make_tensor_map_2d(&maps.a, p.a, p.depth, 64, p.depth * 2, 64);
  if (!error) {
    error = is_k ? make_tensor_map_2d(&maps.b, p.b, p.depth, kN, p.depth * 2, kN)
                 : make_tensor_map_2d(&maps.b, p.b, kN, p.depth, kN * 2, kDepth);
  }
  const LaunchShape shape{{1, 1, 1}, 128, 4 * kTileBytes};
  return error ? error : launch("product", shape, stream, product<kN, kMajor, kWrong>, maps, p);
}

}  // namespace pagedserve::hopper

#define PAGEDSERVE_HOPPER(name, ...)                                                                     \
  extern "C" __attribute__((visibility("default"))) int hopper_##name(const pagedserve::HopperParams* p, \
                                                                      void* stream) {                    \
    using namespace pagedserve::hopper;                                                                  \
    return start<__VA_ARGS__>(*p, stream);                                                               \
  }
PAGEDSERVE_HOPPER(n64, 64, Major::kK)
PAGEDSERVE_HOPPER(n16, 16, Major::kK)
PAGEDSERVE_HOPPER(n8, 8, Major::kK)
PAGEDSERVE_HOPPER(n64_mn, 64, Major::kMN)
PAGEDSERVE_HOPPER(n32_mn, 32, Major::kMN)
PAGEDSERVE_HOPPER(no_init_barrier, 16, Major::kK, Wrong::kNoInitBarrier)
PAGEDSERVE_HOPPER(no_full_wait, 16, Major::kK, Wrong::kNoFullWait)
PAGEDSERVE_HOPPER(late_product_wait, 16, Major::kK, Wrong::kLateProductWait)
PAGEDSERVE_HOPPER(no_empty_wait, 16, Major::kK, Wrong::kNoEmptyWait)
PAGEDSERVE_HOPPER(too_many_bytes, 16, Major::kK, Wrong::kTooManyBytes)

extern "C" __attribute__((visibility("default"))) int hopper_bulk(const pagedserve::HopperParams* p, void* stream) {
  using namespace pagedserve;
  return target::launch("bulk", target::LaunchShape{{1, 1, 1}, 32}, stream, hopper::bulk, *p);
}
