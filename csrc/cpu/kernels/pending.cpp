// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>

#include "../kernels.h"

namespace pagedserve::cpu {

template <> void Kernels<kIsa>::paged_attention(const PagedAttentionParams&, Worker&) { std::abort(); }
template <> void Kernels<kIsa>::merge_states(const MergeStatesParams&, Worker&) { std::abort(); }
template <> void Kernels<kIsa>::append_kv(const AppendKvParams&, Worker&) { std::abort(); }
template <> void Kernels<kIsa>::rms_norm(const RmsNormParams&, Worker&) { std::abort(); }
template <> void Kernels<kIsa>::rope(const RopeParams&, Worker&) { std::abort(); }
template <> void Kernels<kIsa>::act_mul(const ActMulParams&, Worker&) { std::abort(); }
template <> void Kernels<kIsa>::linear(const LinearParams&, Worker&) { std::abort(); }
template <> void Kernels<kIsa>::embed(const EmbedParams&, Worker&) { std::abort(); }
template <> void Kernels<kIsa>::take_rows(const TakeRowsParams&, Worker&) { std::abort(); }
template <> void Kernels<kIsa>::soft_cap(const SoftCapParams&, Worker&) { std::abort(); }

}  // namespace pagedserve::cpu
