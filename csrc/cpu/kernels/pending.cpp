// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>

#include "../kernels.h"

namespace pagedserve::cpu {

template <> void Kernels<kIsa>::paged_attention(const PagedAttentionParams&, Worker&) { std::abort(); }
template <> void Kernels<kIsa>::merge_states(const MergeStatesParams&, Worker&) { std::abort(); }
template <> void Kernels<kIsa>::append_kv(const AppendKvParams&, Worker&) { std::abort(); }

}  // namespace pagedserve::cpu
