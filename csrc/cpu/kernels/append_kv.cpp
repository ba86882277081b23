// SPDX-License-Identifier: Apache-2.0
// append_kv.cpp: page slot / page_size, row slot % page_size = the key and value of the slot's token
//
//   k, v               [num_tokens, num_kv_heads, head_dim]               f32, bf16, f16
//   k_pages, v_pages   [num_pages, page_size, num_kv_heads, head_dim]     f32, bf16, f16, i8, fp8; i4 by twos
//   scales             [num_pages, page_size, num_kv_heads]               f32    of i8, fp8, i4: value = code * scale
//   slot_mapping       [num_tokens]                                       i64    negative: skipped
//
// Work     a share of the tokens a thread
// Rounds   to nearest even; scale = amax / 127, amax / 448 or amax / 7, 1 where that is 0; codes never beyond amax's.
//          A row that holds NaN or an infinity gets the scale NaN, so that every value read from it is NaN
// Traffic  reads and writes 2 * num_tokens * num_kv_heads * head_dim elements
// Source   Kwon et al. 2023 (pages); Micikevicius et al. 2022 (e4m3fn)
// Oracle   pagedserve/backends/reference/cache.py::append_kv
#include "../kernels.h"
#include "simd.h"

namespace pagedserve::cpu {
namespace {

template <class T>
constexpr float kLargestCode = 0;  // no scale
template <>
constexpr float kLargestCode<int8_t> = 127;
template <>
constexpr float kLargestCode<F8> = 448;
template <>
constexpr float kLargestCode<I4> = 7;

inline int8_t to_code(float x) { return x == x ? static_cast<int8_t>(x) : int8_t{0}; }
inline void put(float x, int d, int8_t* row) { row[d] = to_code(x); }
// Elements are put in order: an even one writes the byte, the odd one its other half.
inline void put(float x, int d, I4* row) {
  const auto bits = static_cast<uint8_t>(to_code(x) + 8);
  row[d / 2].bits = static_cast<uint8_t>(d % 2 == 0 ? bits : row[d / 2].bits | bits << 4);
}

// |x| <= 448. Above 2^-6 the f32 is rounded at its 20th bit and the exponent's bias corrected; below, adding
// 2^14 leaves a subnormal's bits.
inline F8 to_f8(float x) {
  constexpr float kAlign = 0x1p14f;
  uint32_t bits, align;
  memcpy(&bits, &x, sizeof(bits));
  memcpy(&align, &kAlign, sizeof(align));
  const uint32_t sign = bits >> 24 & 0x80;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return {static_cast<uint8_t>(sign | 0x7f)};
  if (bits >= (127u - 6) << 23)
    return {static_cast<uint8_t>(sign | (bits - (120u << 23) + 0x7ffff + (bits >> 20 & 1)) >> 20)};
  float magnitude;
  memcpy(&magnitude, &bits, sizeof(bits));
  magnitude += kAlign;
  memcpy(&bits, &magnitude, sizeof(bits));
  return {static_cast<uint8_t>(sign | (bits - align))};
}

inline void put(float x, int d, F8* row) { row[d] = to_f8(x); }

template <class From>
inline float row_scale(const From* from, int head_dim, float largest_code) {
  Vec largest = zero(), poison = zero();
  for (int d = 0; d < head_dim; d += kLanes) {
    const Vec x = load(from + d, head_dim - d);
    largest = max(largest, abs(x));
    poison = fma(x, zero(), poison);  // NaN where x is not finite
  }
  const float scale = (max_lane(largest) + sum(poison)) / largest_code;
  return scale == 0 ? 1 : scale;
}

template <class From, class To>
inline void append_row(const From* from, int head_dim, To* to, float* scale) {
  if constexpr (kLargestCode<To> == 0) {
    for (int d = 0; d < head_dim; d += kLanes) store(to + d, load(from + d, head_dim - d), head_dim - d);
  } else {
    const Vec largest = splat(kLargestCode<To>);
    *scale = row_scale(from, head_dim, kLargestCode<To>);
    for (int d = 0; d < head_dim; d += kLanes) {
      float codes[kLanes];
      const Vec scaled = min(largest, max(zero() - largest, load(from + d, head_dim - d) / splat(*scale)));
      store(codes, kLargestCode<To> == kLargestCode<F8> ? scaled : round(scaled));
      for (int j = 0; j < smaller(kLanes, head_dim - d); ++j) put(codes[j], d + j, to);
    }
  }
}

template <class From, class To>
inline void append_token(const From* from, int64_t head_stride, const AppendKvParams& p, const KvPages& pages,
                         int64_t slot) {
  const int64_t page = slot / p.page_size, row = slot % p.page_size;
  To* to = static_cast<To*>(pages.data) + page * pages.page_stride + row * pages.token_stride;
  float* scale = pages.scales == nullptr
                     ? nullptr
                     : pages.scales + page * pages.scale_page_stride + row * pages.scale_token_stride;
  for (int head = 0; head < p.num_kv_heads; ++head) {
    append_row(from + head * head_stride, p.head_dim, to + head * pages.head_stride,
               scale == nullptr ? nullptr : scale + head * pages.scale_head_stride);
  }
}

// The tokens of one of k and v that this thread has.
inline void append_share(const void* from, int64_t token_stride, int64_t head_stride, const AppendKvParams& p,
                         const KvPages& pages, const Worker& worker) {
  const int64_t begin = p.num_tokens * worker.rank() / worker.size();
  const int64_t end = p.num_tokens * (worker.rank() + 1) / worker.size();
  with_float_type(p.src_dtype, [&](auto source) {
    with_kv_type(pages.dtype, [&](auto target) {
      using From = decltype(source);
      using To = decltype(target);
      for (int64_t t = begin; t < end; ++t) {
        if (p.slot_mapping[t] < 0) continue;
        append_token<From, To>(static_cast<const From*>(from) + t * token_stride, head_stride, p, pages,
                               p.slot_mapping[t]);
      }
    });
  });
}

}  // namespace

template <>
void Kernels<kIsa>::append_kv(const AppendKvParams& p, Worker& worker) {
  append_share(p.k, p.k_token_stride, p.k_head_stride, p, p.k_pages, worker);
  append_share(p.v, p.v_token_stride, p.v_head_stride, p, p.v_pages, worker);
}

}  // namespace pagedserve::cpu
