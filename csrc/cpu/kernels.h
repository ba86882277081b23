// SPDX-License-Identifier: Apache-2.0
// kernels.h: the CPU kernels, one specialisation per instruction set, and the table of those to use.
#pragma once

#include "../params.h"
#include "isa.h"
#include "team.h"

namespace pagedserve::cpu {

// Called by every thread of a team. Params are checked by the caller.
template <Isa isa>
struct Kernels {
  static void paged_attention(const PagedAttentionParams&, Worker&);
  static void merge_states(const MergeStatesParams&, Worker&);
  static void append_kv(const AppendKvParams&, Worker&);
  static void rms_norm(const RmsNormParams&, Worker&);
  static void rope(const RopeParams&, Worker&);
  static void act_mul(const ActMulParams&, Worker&);
  static void quantize_rows(const QuantizeRowsParams&, Worker&);
  static void linear(const LinearParams&, Worker&);
  static void embed(const EmbedParams&, Worker&);
  static void take_rows(const TakeRowsParams&, Worker&);
  static void soft_cap(const SoftCapParams&, Worker&);
  static void sample(const SampleParams&, Worker&);
};

struct KernelTable {
  void (*paged_attention)(const PagedAttentionParams&, Worker&);
  void (*merge_states)(const MergeStatesParams&, Worker&);
  void (*append_kv)(const AppendKvParams&, Worker&);
  void (*rms_norm)(const RmsNormParams&, Worker&);
  void (*rope)(const RopeParams&, Worker&);
  void (*act_mul)(const ActMulParams&, Worker&);
  void (*quantize_rows)(const QuantizeRowsParams&, Worker&);
  void (*linear)(const LinearParams&, Worker&);
  void (*embed)(const EmbedParams&, Worker&);
  void (*take_rows)(const TakeRowsParams&, Worker&);
  void (*soft_cap)(const SoftCapParams&, Worker&);
  void (*sample)(const SampleParams&, Worker&);
};

// The kernels of one instruction set. Throws std::invalid_argument where it is not supported().
const KernelTable& kernels(Isa isa);

// Plain memory moves: no instruction set of their own.
void copy_pages(const CopyPagesParams&, Worker&);

}  // namespace pagedserve::cpu
