// SPDX-License-Identifier: Apache-2.0
// merge_states.cu: one kernel for each dtype.
#include "../kernels/attention/merge_states.cuh"
#include "launch.h"

namespace pagedserve {
namespace {

template <class T>
int launch(const MergeStatesParams& p, void* stream) {
  constexpr int kRows = kernels::kMergeThreads / target::kWarpSize;  // of a block
  target::LaunchShape shape;
  shape.threads = kernels::kMergeThreads;
  shape.grid.x = static_cast<uint32_t>((p.num_tokens * p.num_heads + kRows - 1) / kRows);
  return target::launch("merge_states", shape, stream, kernels::merge_states<T>, p);
}

}  // namespace
}  // namespace pagedserve

extern "C" int pagedserve_merge_states(const pagedserve::MergeStatesParams* p, void* stream) {
  using namespace pagedserve;
  if (p->num_tokens == 0 || p->num_heads == 0) return 0;
  switch (p->dtype) {
    case DType::kF32:
      return launch<float>(*p, stream);
    case DType::kF16:
      return launch<target::F16>(*p, stream);
    default:
      return launch<target::BF16>(*p, stream);
  }
}
