// SPDX-License-Identifier: Apache-2.0
// paged_decode.cuh: from a call's sizes to one of the instantiations for a format of keys and values. Each format is a
// launch file of its own, so that they compile side by side.
#pragma once

#include "../kernels/attention/paged_decode.cuh"
#include "../plan/decode_plan.h"
#include "launch.h"

namespace pagedserve::launchers {

inline kernels::DecodeCall decode_call(const PagedAttentionParams& p) {
  PlanDecodeParams plan{};
  plan.workspace = p.workspace;
  plan.workspace_bytes = p.workspace_bytes;
  plan.num_seqs = p.num_seqs;
  plan.num_q_heads = p.num_q_heads;
  plan.num_kv_heads = p.num_kv_heads;
  plan.head_dim = p.head_dim;
  plan.q_len = p.q_len;
  const plan::Workspace w = plan::workspace_of(plan);
  return {p, w.blocks, w.tasks, w.counters, w.partials, plan::tile_rows(plan)};
}

template <class C>
int launch_config(const kernels::DecodeCall& call, void* stream) {
  target::LaunchShape shape;
  shape.grid.x = static_cast<uint32_t>(call.p.num_blocks);
  shape.threads = C::kThreads;
  shape.shared_bytes = sizeof(kernels::DecodeShared<C>);
  return target::launch("paged_decode", shape, stream, kernels::paged_decode<C>, call);
}

template <class Kv, int kHeadDim, int kColumns>
int launch_decode(const kernels::DecodeCall& call, void* stream) {
  return launch_config<kernels::DecodeConfig<Kv, kHeadDim, kColumns>>(call, stream);
}

template <class Kv, int kHeadDim>
int launch_columns(const kernels::DecodeCall& call, void* stream) {
  if constexpr (!parts::KvFormat<Kv>::kScaled) {
    using C = kernels::CoresConfig<Kv, kHeadDim>;
    static_assert(C::kRows == plan::max_tile_rows(1, kHeadDim), "a strand's rows fit into registers");
    if (call.group_size() == 1) return launch_config<C>(call, stream);
  }
  constexpr int kMaxRows = plan::max_tile_rows(2, kHeadDim);
  if constexpr (kMaxRows > 16) {
    if (call.tile_rows > 16) return launch_decode<Kv, kHeadDim, 32>(call, stream);
  }
  if constexpr (kMaxRows > 8) {
    if (call.tile_rows > 8) return launch_decode<Kv, kHeadDim, 16>(call, stream);
  }
  return launch_decode<Kv, kHeadDim, 8>(call, stream);
}

template <class Kv>
int launch_paged_decode(const PagedAttentionParams& p, void* stream) {
  if (p.num_seqs == 0) return 0;
  const kernels::DecodeCall call = decode_call(p);
#if defined(PAGEDSERVE_DECODE_COLUMNS)  // one kernel alone, for builds that take long to compile; 1: on CUDA cores
  constexpr int kHeadDim = PAGEDSERVE_DECODE_HEAD_DIM, kColumns = PAGEDSERVE_DECODE_COLUMNS;
  if constexpr (kColumns == 1) return launch_config<kernels::CoresConfig<Kv, kHeadDim>>(call, stream);
  if constexpr (kColumns > 1) return launch_decode<Kv, kHeadDim, kColumns>(call, stream);
#elif defined(PAGEDSERVE_DECODE_HEAD_DIM)  // one bucket alone
  return launch_columns<Kv, PAGEDSERVE_DECODE_HEAD_DIM>(call, stream);
#else
  if (p.head_dim <= 64) return launch_columns<Kv, 64>(call, stream);
  if (p.head_dim <= 128) return launch_columns<Kv, 128>(call, stream);
  return launch_columns<Kv, 256>(call, stream);
#endif
}

}  // namespace pagedserve::launchers
