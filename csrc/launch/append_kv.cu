// SPDX-License-Identifier: Apache-2.0
// append_kv.cu: one kernel for each dtype of the source and of the pages.
#include "../kernels/cache/append_kv.cuh"
#include "launch.h"

namespace pagedserve {
namespace {

using kernels::bytes_of;

// Whether an address and strides, counted in elements, are multiples of what 8 elements take, or of 16 bytes.
template <class... Strides>
bool aligned(const void* data, DType dtype, Strides... strides) {
  const int bytes = kernels::bytes_of_8(dtype) < 16 ? kernels::bytes_of_8(dtype) : 16;
  const DType counted = dtype == DType::kI4 ? DType::kI8 : dtype;  // i4 counts its strides in bytes
  return reinterpret_cast<uintptr_t>(data) % bytes == 0 && ((bytes_of(counted, strides) % bytes == 0) && ...);
}

kernels::AppendShape shape_of(const AppendKvParams& p) {
  kernels::AppendShape shape{1, false};
  while (shape.lanes < target::kWarpSize && shape.lanes * 8 < p.head_dim) shape.lanes *= 2;
  const KvPages &k = p.k_pages, &v = p.v_pages;
  shape.aligned = p.head_dim % 8 == 0 && aligned(p.k, p.src_dtype, p.k_token_stride, p.k_head_stride) &&
                  aligned(p.v, p.src_dtype, p.v_token_stride, p.v_head_stride) &&
                  aligned(k.data, k.dtype, k.page_stride, k.token_stride, k.head_stride) &&
                  aligned(v.data, v.dtype, v.page_stride, v.token_stride, v.head_stride);
  return shape;
}

template <DType kFrom, DType kTo>
int launch(const AppendKvParams& p, void* stream) {
  const kernels::AppendShape rows = shape_of(p);
  const int64_t threads = p.num_tokens * 2 * p.num_kv_heads * rows.lanes;
  target::LaunchShape shape;
  shape.threads = kernels::kAppendThreads;
  shape.grid.x = static_cast<uint32_t>((threads + shape.threads - 1) / shape.threads);
  return target::launch("append_kv", shape, stream, kernels::append_kv_kernel<kFrom, kTo>, p, rows);
}

template <DType kFrom>
int launch_from(const AppendKvParams& p, void* stream) {
  switch (p.k_pages.dtype) {
    case DType::kF32:
      return launch<kFrom, DType::kF32>(p, stream);
    case DType::kF16:
      return launch<kFrom, DType::kF16>(p, stream);
    case DType::kBF16:
      return launch<kFrom, DType::kBF16>(p, stream);
    case DType::kI8:
      return launch<kFrom, DType::kI8>(p, stream);
    case DType::kF8E4M3:
      return launch<kFrom, DType::kF8E4M3>(p, stream);
    default:
      return launch<kFrom, DType::kI4>(p, stream);
  }
}

}  // namespace
}  // namespace pagedserve

extern "C" int pagedserve_append_kv(const pagedserve::AppendKvParams* p, void* stream) {
  using namespace pagedserve;
  if (p->num_tokens == 0 || p->num_kv_heads == 0) return 0;
  switch (p->src_dtype) {
    case DType::kF32:
      return launch_from<DType::kF32>(*p, stream);
    case DType::kF16:
      return launch_from<DType::kF16>(*p, stream);
    default:
      return launch_from<DType::kBF16>(*p, stream);
  }
}
