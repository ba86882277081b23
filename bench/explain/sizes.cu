// SPDX-License-Identifier: Apache-2.0
// sizes.cu: the sizes of one instantiation of paged_decode, as the compiler has them.
#include "../../csrc/kernels/attention/paged_decode.cuh"

namespace {

using namespace pagedserve;

template <class C>
void write(int32_t* out) {
  const int32_t sizes[] = {C::kThreads,
                           C::kStages,
                           C::kWarpTokens,
                           C::kTileTokens,
                           C::kTilesPerSplit,
                           C::kRowBytes,
                           static_cast<int32_t>(sizeof(kernels::DecodeShared<C>)),
                           kernels::kMergeAhead};
  for (int i = 0; i < 8; ++i) out[i] = sizes[i];
}

template <class Kv, int kHeadDim>
void of_columns(int32_t columns, int32_t* out) {
  if (columns == 8) write<kernels::DecodeConfig<Kv, kHeadDim, 8>>(out);
  if constexpr (kHeadDim <= 128) {
    if (columns == 16) write<kernels::DecodeConfig<Kv, kHeadDim, 16>>(out);
  }
  if constexpr (kHeadDim <= 64) {
    if (columns == 32) write<kernels::DecodeConfig<Kv, kHeadDim, 32>>(out);
  }
}

template <class Kv>
void of_head_dim(int32_t head_dim, int32_t columns, int32_t* out) {
  if (head_dim == 64) of_columns<Kv, 64>(columns, out);
  if (head_dim == 128) of_columns<Kv, 128>(columns, out);
  if (head_dim == 256) of_columns<Kv, 256>(columns, out);
}

}  // namespace

// format: bf16, f16, f8, i8, i4. head_dim and columns are those of a bucket; others leave `out` as it is.
extern "C" __attribute__((visibility("default"))) void pagedserve_decode_sizes(int32_t format, int32_t head_dim,
                                                                               int32_t columns, int32_t* out) {
  if (format == 0) of_head_dim<target::BF16>(head_dim, columns, out);
  if (format == 1) of_head_dim<target::F16>(head_dim, columns, out);
  if (format == 2) of_head_dim<target::F8E4M3>(head_dim, columns, out);
  if (format == 3) of_head_dim<int8_t>(head_dim, columns, out);
  if (format == 4) of_head_dim<parts::I4x2>(head_dim, columns, out);
}
