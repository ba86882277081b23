// SPDX-License-Identifier: Apache-2.0
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace pagedserve::cpu {

namespace {

template <Isa isa>
constexpr KernelTable table() {
  using K = Kernels<isa>;
  return {K::paged_attention, K::merge_states, K::append_kv, K::rms_norm,  K::rope,     K::act_mul,
          K::quantize_rows,   K::linear,       K::embed,     K::take_rows, K::soft_cap, K::sample};
}

}  // namespace

bool compiled(Isa isa) {
#ifdef PAGEDSERVE_X86
  (void)isa;
  return true;
#else
  return isa == Isa::kPortable;
#endif
}

bool supported(Isa isa) {
  if (isa == Isa::kPortable) return true;
#ifdef PAGEDSERVE_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni");
  switch (isa) {
    case Isa::kAvx2:
      return avx2;
    case Isa::kAvx512:
      return avx512;
    default:
      return avx512 && __builtin_cpu_supports("avx512bf16");
  }
#else
  return false;
#endif
}

Isa detect() {
  for (const Isa isa : {Isa::kAvx512Bf16, Isa::kAvx512, Isa::kAvx2}) {
    if (supported(isa)) return isa;
  }
  return Isa::kPortable;
}

const KernelTable& kernels(Isa isa) {
  if (!supported(isa)) {
    throw std::invalid_argument(std::string("this processor does not have ") + name(isa) + "; the best it has is " +
                                name(detect()));
  }
#ifdef PAGEDSERVE_X86
  static constexpr KernelTable avx2 = table<Isa::kAvx2>();
  static constexpr KernelTable avx512 = table<Isa::kAvx512>();
  static constexpr KernelTable avx512bf16 = table<Isa::kAvx512Bf16>();
  if (isa == Isa::kAvx2) return avx2;
  if (isa == Isa::kAvx512) return avx512;
  if (isa == Isa::kAvx512Bf16) return avx512bf16;
#endif
  static constexpr KernelTable portable = table<Isa::kPortable>();
  return portable;
}

}  // namespace pagedserve::cpu
