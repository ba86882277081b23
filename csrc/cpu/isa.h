// SPDX-License-Identifier: Apache-2.0
// isa.h: which instruction set a kernel is compiled for, and which this processor has.
//
// Every file of csrc/cpu/kernels is compiled once per Isa, with that set's compiler flags and
// PAGEDSERVE_ISA naming it; it defines specialisations of Kernels<kIsa>. Nothing with external
// linkage but those specialisations may stand in such a file: a library template instantiated there
// could be the copy that the linker keeps for processors that lack the instructions.
#pragma once

namespace pagedserve::cpu {

enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

constexpr int kNumIsas = 4;

constexpr const char* name(Isa isa) {
  constexpr const char* names[kNumIsas] = {"portable", "avx2", "avx512", "avx512bf16"};
  return names[static_cast<int>(isa)];
}

// The best set that is both compiled in and present: avx2 means AVX2 + FMA + F16C; avx512 means
// F, BW, DQ, VL and VNNI; avx512bf16 adds BF16.
Isa detect();
bool compiled(Isa isa);
bool supported(Isa isa);

#ifdef PAGEDSERVE_ISA
constexpr Isa kIsa = Isa::PAGEDSERVE_ISA;
#endif

}  // namespace pagedserve::cpu
