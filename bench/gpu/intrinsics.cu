// SPDX-License-Identifier: Apache-2.0
// intrinsics.cu: out[block, lane] = word(in[block, lane]) for every word of csrc/target that a GPU could mean otherwise
// than the emulator. Numbered as WORDS in intrinsics.py.
//
// Work     a block is one warp
// Oracle   the same source under emu.h
#include "../../csrc/target/target.cuh"
#include "intrinsics.h"

namespace pagedserve {
namespace {

using namespace target;

constexpr int kWords = 8;
using Registers = uint32_t[kWords];

struct Memory {
  uint32_t* global;  // the lane's own words
  uint32_t* shared;  // [32, 8] of the block
};

PAGEDSERVE_DEVICE float f(uint32_t bits) { return bits_float(bits); }
PAGEDSERVE_DEVICE uint32_t b(float value) { return float_bits(value); }

PAGEDSERVE_DEVICE void lanes(int which, const Registers& in, Registers& out) {
  const int by = static_cast<int>(in[1] & 31);
  if (which == 0) out[0] = shuffle(in[0], by);
  if (which == 1) out[0] = shuffle_xor(in[0], static_cast<int>(shuffle(in[1], 0) & 31));
  if (which == 2) out[0] = shuffle_up(in[0], static_cast<int>(shuffle(in[1], 0) & 31));
  if (which == 3) out[0] = shuffle_down(in[0], static_cast<int>(shuffle(in[1], 0) & 31));
  if (which == 4) out[0] = shuffle(in[0], by & 7, kAllLanes, 8);
  if (which == 5) out[0] = shuffle_down(in[0], 3, kAllLanes, 8);
  if (which == 6) out[0] = ballot(in[0] & 1);
  if (which == 7) out[0] = static_cast<uint32_t>(any_lane((in[0] & 31) == 0)) | all_lanes((in[0] & 31) != 0) << 1;
}

PAGEDSERVE_DEVICE void conversions(int which, const Registers& in, Registers& out) {
  if (which == 8) out[0] = pack<BF16>(f(in[0]), f(in[1]));
  if (which == 9) out[0] = pack<F16>(f(in[0]), f(in[1]));
  if (which == 10 || which == 11) {
    const FloatPair pair = which == 10 ? unpack<BF16>(in[0]) : unpack<F16>(in[0]);
    out[0] = b(pair.low);
    out[1] = b(pair.high);
  }
  if (which == 12) out[0] = f16x2_of_f8x2(static_cast<uint16_t>(in[0]));
  if (which == 13) out[0] = f8x2_of_floats(f(in[0]), f(in[1]));
  if (which == 14) out[0] = static_cast<uint8_t>(i8_of_float(f(in[0])));
  if (which == 15) out[0] = from_float<BF16>(f(in[0])).bits;
  if (which == 16) out[0] = from_float<F16>(f(in[0])).bits;
  if (which == 17) out[0] = b(to_float(F8E4M3{static_cast<uint8_t>(in[0])}));
}

PAGEDSERVE_DEVICE void numbers(int which, const Registers& in, Registers& out) {
  if (which == 18) out[0] = fma_f16x2(in[0], in[1], in[2]);
  if (which == 19) out[0] = add_f16x2(in[0], in[1]);
  if (which == 20) out[0] = sub_f16x2(in[0], in[1]);
  if (which == 21) out[0] = mul_f16x2(in[0], in[1]);
  if (which == 22) out[0] = fma_bf16x2(in[0], in[1], in[2]);
  if (which == 23) out[0] = permute_bytes(in[0], in[1], in[2] & 0xffff);
  if (which == 24) out[0] = logic3<0xea>(in[0], in[1], in[2]);
  if (which == 25) out[0] = b(exp2_approx(f(in[0])));
  if (which == 26) out[0] = b(log2_approx(f(in[0])));
  if (which == 27) out[0] = b(reciprocal_approx(f(in[0])));
  if (which == 28) out[0] = b(rsqrt_approx(f(in[0])));
  if (which == 29) out[0] = b(tanh_approx(f(in[0])));
}

template <int N>
PAGEDSERVE_DEVICE void load(bool transposed, const Memory& memory, Registers& out) {
  uint32_t r[N];
  const void* row = memory.shared + lane_index() * 4;  // 16 bytes each
  if (transposed)
    load_matrices_transposed<N>(r, row);
  else
    load_matrices<N>(r, row);
  for (int i = 0; i < N; ++i) out[i] = r[i];
}

PAGEDSERVE_DEVICE void matrices(int which, const Registers& in, const Memory& memory, Registers& out) {
  for (int i = 0; i < kWords; ++i) memory.shared[lane_index() * kWords + i] = in[i];
  sync_warp();
  if (which == 30) load<1>(false, memory, out);
  if (which == 31) load<2>(false, memory, out);
  if (which == 32) load<4>(false, memory, out);
  if (which == 33) load<1>(true, memory, out);
  if (which == 34) load<2>(true, memory, out);
  if (which == 35) load<4>(true, memory, out);
}

template <class T>
PAGEDSERVE_DEVICE void multiply(bool is_deep, const Registers& in, Registers& out) {
  float d[4] = {1.f, -1.f, 0.5f, 0.f};
  if (is_deep) {
    const uint32_t a[4] = {in[0], in[1], in[2], in[3]}, b2[2] = {in[4], in[5]};
    mma_m16n8k16<T>(d, a, b2);
  } else {
    const uint32_t a[2] = {in[0], in[1]}, b1[1] = {in[4]};
    mma_m16n8k8<T>(d, a, b1);
  }
  for (int i = 0; i < 4; ++i) out[i] = b(d[i]);
}

PAGEDSERVE_DEVICE void copies(int which, const Registers& in, const Memory& memory, Registers& out) {
  uint32_t* const to = memory.shared + lane_index() * kWords;
  for (int i = 0; i < kWords; ++i) to[i] = 0xdeadbeef;
  sync_warp();
  const int valid = static_cast<int>(in[0] & 15) + 1;
  if (which == 40) copy_async<16>(to, memory.global, valid);
  if (which == 41) copy_async<8>(to, memory.global, valid > 8 ? 8 : valid);
  if (which == 42) copy_async<4>(to, memory.global, valid > 4 ? 4 : valid);
  if (which == 43) copy_async<16>(to, memory.global, 0);
  copy_async_commit();
  copy_async_wait<0>();
  sync_warp();
  for (int i = 0; i < 4; ++i) out[i] = to[i];
}

// All lanes of a block work on its first words; only what stands there in the end does not depend on their order.
PAGEDSERVE_DEVICE void atomics(int which, const Registers& in, const Memory& memory, Registers& out) {
  uint32_t* const word = memory.global - lane_index() * kWords;
  if (which == 44) atomic_add(word, in[0]);
  if (which == 45) atomic_max(reinterpret_cast<int32_t*>(word), static_cast<int32_t>(in[0]));
  if (which == 46) atomic_min(reinterpret_cast<int32_t*>(word), static_cast<int32_t>(in[0]));
  if (which == 47) atomic_increment_wrap(word, 4);
  if (which == 48) out[1] = atomic_cas(memory.global + 1, in[0] & 1 ? memory.global[1] : in[1], in[2]);
  if (which == 49) out[1] = atomic_exchange<Order::kAcqRel>(memory.global + 1, in[2]);
  sync_warp();
  out[0] = atomic_load<Order::kAcquire>(word);
  out[2] = atomic_load(memory.global + 1);
}

PAGEDSERVE_DEVICE void streams(const Registers& in, const Memory& memory, Registers& out) {
  const U32x4 four = load_streaming(reinterpret_cast<const U32x4*>(memory.global));
  store_streaming(memory.global + 4, four.x);
  store_streaming(reinterpret_cast<U32x2*>(memory.global + 6), U32x2{four.y, in[0]});
  for (int i = 0; i < 4; ++i) out[i] = memory.global[4 + i];
}

PAGEDSERVE_KERNEL(kWarpSize, 1) intrinsics_kernel(PAGEDSERVE_GRID_CONSTANT IntrinsicsParams p) {
  PAGEDSERVE_SHARED(shared, uint32_t[kWarpSize * kWords]);
  const int64_t at = (static_cast<int64_t>(block_index().x) * kWarpSize + lane_index()) * kWords;
  Registers in, out = {};
  for (int i = 0; i < kWords; ++i) in[i] = p.in[at + i];
  const Memory memory{p.global + at, shared};
  const int which = p.which;
  lanes(which, in, out);
  conversions(which, in, out);
  numbers(which, in, out);
  if (which >= 30 && which < 36) matrices(which, in, memory, out);
  if (which == 36 || which == 37) multiply<BF16>(which == 36, in, out);
  if (which == 38 || which == 39) multiply<F16>(which == 38, in, out);
  if (which >= 40 && which < 44) copies(which, in, memory, out);
  if (which >= 44 && which < 50) atomics(which, in, memory, out);
  if (which == 50) streams(in, memory, out);
  if (which == 51) out[0] = transpose_matrix(in[0]);
  for (int i = 0; i < kWords; ++i) p.out[at + i] = out[i];
}

}  // namespace
}  // namespace pagedserve

extern "C" __attribute__((visibility("default"))) int pagedserve_intrinsics(const pagedserve::IntrinsicsParams* p,
                                                                            void* stream) {
  using namespace pagedserve;
  target::LaunchShape shape;
  shape.grid.x = static_cast<uint32_t>(p->num_blocks);
  shape.threads = target::kWarpSize;
  return target::launch("intrinsics", shape, stream, intrinsics_kernel, *p);
}
