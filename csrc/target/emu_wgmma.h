// SPDX-License-Identifier: Apache-2.0
// emu_wgmma.h: products of warp groups, emulated. Included by emu.h; meanings stand in cuda_hopper.cuh.
//
// A product is computed when it is waited for, and reads shared memory then; its accumulators are NaN until then. What
// is not checked: wgmma_fence and fence_async_proxy may be missing.
#pragma once

#include <array>

#include "emu_hopper.h"

namespace pagedserve::emulator {

PAGEDSERVE_EMU_INTERNAL inline uint64_t describe_tile(const void* tile, uint32_t next_64_bytes, const Site& site) {
  Hidden hidden;
  check_shared("describe_tile", tile, 1024, 1024, site);
  return static_cast<uint64_t>(shared_address(tile) >> 4) | static_cast<uint64_t>(next_64_bytes >> 4) << 16 |
         64ull << 32 | 1ull << 62;
}
// Element (row of the product, k) of the matrix that a descriptor tells of.
inline float element_of(uint64_t descriptor, int row, int k, bool is_mn, Half type) {
  const uint32_t start = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
  const uint32_t next_8 = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  const uint32_t next_64 = static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4;
  uint32_t at = is_mn ? start + k / 8 * next_8 + row / 64 * next_64 + k % 8 * 128 + row % 64 * 2
                      : start + row / 8 * next_8 + row % 8 * 128 + k * 2;
  at ^= (at >> 7 & 7) << 4;
  return float_of(*static_cast<const volatile uint16_t*>(shared_pointer(at)), type);
}

struct GroupCall {
  int n;
  const uint32_t* a_registers;  // the lane's part of a, as mma_m16n8k16 takes it; null: a is a descriptor
  uint64_t a, b;
  Half type;
  bool a_is_mn, b_is_mn, accumulates;
};
// d: where the lane keeps each of its n / 2 results, f32.
PAGEDSERVE_EMU_INTERNAL inline void start_product(void* const* d, const GroupCall& call, const Site& site) {
  Hidden hidden;
  Lane& lane = self();
  if (call.n < 8 || call.n > 256 || call.n % 8) {
    fail("launch", "wgmma_m64k16 with " + std::to_string(call.n) + " columns; there are multiples of 8 up to 256",
         site);
  }
  if ((!call.a_registers && call.a >> 62 != 1) || call.b >> 62 != 1) {
    fail("launch", "only descriptors of describe_tile are emulated", site);
  }
  uint64_t* in = lane.warp->in[lane.lane];
  in[0] = reinterpret_cast<uint64_t>(d);
  in[1] = call.a;
  in[2] = call.b;
  in[3] = reinterpret_cast<uint64_t>(call.a_registers);
  const int first_row = lane.thread / 32 % 4 * 16;
  static constexpr float kNaN = NAN;
  collective(kAllLanes, "wgmma_m64k16", site, false, [&](Warp& warp) {
    ++machine.counters.matrix_products;
    GroupProduct product{};
    product.a = call.a;
    product.b = call.b;
    product.type = call.type;
    product.n = call.n;
    product.a_in_registers = call.a_registers != nullptr;
    product.first_row = first_row;
    product.a_is_mn = call.a_is_mn;
    product.b_is_mn = call.b_is_mn;
    product.accumulates = call.accumulates;
    GroupQueue& queue = hopper().queues[&warp];
    void* const first = reinterpret_cast<void* const*>(warp.in[0][0])[0];
    for (const GroupProduct& other : queue.open) product.continues = product.continues || other.d[0] == first;
    for (const auto& group : queue.groups) {
      for (const GroupProduct& other : group) product.continues = product.continues || other.d[0] == first;
    }
    for (int i = 0; i < 32; ++i) {
      if (warp.in[i][1] != call.a || warp.in[i][2] != call.b) {
        fail("divergent-warp", "wgmma_m64k16: lanes give different descriptors", site);
      }
      if (call.a_registers) memcpy(product.a_registers[i], reinterpret_cast<void*>(warp.in[i][3]), 16);
      for (int j = 0; j < call.n / 2; ++j) {
        void* const place = reinterpret_cast<void* const*>(warp.in[i][0])[j];
        float before;
        memcpy(&before, place, sizeof before);
        memcpy(place, &kNaN, sizeof kNaN);
        product.d.push_back(place);
        product.before.push_back(before);
      }
    }
    queue.open.push_back(product);
  });
}
PAGEDSERVE_EMU_INTERNAL inline void commit_products(const Site& site) {
  Hidden hidden;
  collective(kAllLanes, "wgmma_commit", site, false, [](Warp& warp) {
    GroupQueue& queue = hopper().queues[&warp];
    queue.groups.push_back(std::move(queue.open));
    queue.open.clear();
  });
}
struct GroupOperands {
  float a[16][16];
  std::vector<std::array<float, 16>> b;  // [n][k]
};
// Reads shared memory, as the lane's own reads.
inline void read_operands(const GroupProduct& product, GroupOperands& operands) {
  operands.b.resize(static_cast<size_t>(product.n));
  for (int k = 0; k < 16; ++k) {
    for (int m = 0; m < 16; ++m) {
      const uint32_t pair = product.a_registers[m % 8 * 4 + k % 8 / 2][m / 8 + k / 8 * 2];
      operands.a[m][k] = product.a_in_registers
                             ? float_of(static_cast<uint16_t>(k % 2 ? pair >> 16 : pair), product.type)
                             : element_of(product.a, product.first_row + m, k, product.a_is_mn, product.type);
    }
    for (int n = 0; n < product.n; ++n) {
      operands.b[static_cast<size_t>(n)][static_cast<size_t>(k)] =
          element_of(product.b, n, k, product.b_is_mn, product.type);
    }
  }
}
PAGEDSERVE_EMU_INTERNAL inline void finish_product(const GroupProduct& product, const GroupOperands& operands) {
  Hidden hidden;
  size_t place = 0;
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < product.n / 2; ++i, ++place) {
      const float* row = operands.a[lane / 4 + (i & 2 ? 8 : 0)];
      const auto& column = operands.b[static_cast<size_t>(i / 4 * 8 + lane % 4 * 2 + (i & 1))];
      float sum = product.before[place];
      if (product.continues) memcpy(&sum, product.d[place], sizeof sum);
      if (!product.accumulates) sum = 0;
      for (size_t k = 0; k < 16; ++k) sum += row[k] * column[k];
      memcpy(product.d[place], &sum, sizeof sum);
    }
  }
}
PAGEDSERVE_EMU_INTERNAL inline bool next_group(int pending, std::vector<GroupProduct>& group) {
  Hidden hidden;
  auto& groups = hopper().queues[self().warp].groups;
  if (static_cast<int>(groups.size()) <= pending) return false;
  group = std::move(groups.front());
  groups.erase(groups.begin());
  return true;
}
inline void wait_for_products(int pending, const Site& site) {
  static constexpr const char* kWord = "wgmma_wait";
  {
    Hidden hidden;
    collective(kAllLanes, kWord, site, false, [](Warp&) {});
  }
  if (self().lane == 0) {
    std::vector<GroupProduct> group;
    while (next_group(pending, group)) {
      for (const GroupProduct& product : group) {
        GroupOperands operands;
        read_operands(product, operands);
        finish_product(product, operands);
      }
    }
  }
  Hidden hidden;
  collective(kAllLanes, kWord, site, false, [](Warp&) {});
}

}  // namespace pagedserve::emulator

namespace pagedserve::target {

inline uint64_t describe_tile(const void* tile, uint32_t next_64_bytes = 16, Site site = Site::here()) {
  return emulator::describe_tile(tile, next_64_bytes, site);
}
inline void wgmma_fence() {}
inline void wgmma_commit(Site site = Site::here()) { emulator::commit_products(site); }
template <int kPending>
void wgmma_wait(Site site = Site::here()) {
  emulator::wait_for_products(kPending, site);
}
template <class T, Major kMajorA = Major::kK, Major kMajorB = Major::kK, int kCount>
void wgmma_m64k16(float (&d)[kCount], uint64_t a, uint64_t b, bool accumulate = true, Site site = Site::here()) {
  static_assert(std::is_same<T, BF16>::value || std::is_same<T, F16>::value, "wgmma multiplies bf16 or f16");
  constexpr emulator::Half kType = std::is_same<T, BF16>::value ? emulator::Half::kBF16 : emulator::Half::kF16;
  void* places[kCount];
  for (int i = 0; i < kCount; ++i) places[i] = &d[i];
  emulator::start_product(
      places, {2 * kCount, nullptr, a, b, kType, kMajorA == Major::kMN, kMajorB == Major::kMN, accumulate}, site);
}

}  // namespace pagedserve::target
