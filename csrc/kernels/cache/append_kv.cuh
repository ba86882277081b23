// SPDX-License-Identifier: Apache-2.0
// append_kv.cuh: page slot / page_size, row slot % page_size = the key and value of the slot's token
//
//   k, v               [num_tokens, num_kv_heads, head_dim]               f32, bf16, f16
//   k_pages, v_pages   [num_pages, page_size, num_kv_heads, head_dim]     f32, bf16, f16, i8, fp8; i4 by twos
//   scales             [num_pages, page_size, num_kv_heads]               f32    of i8, fp8, i4: value = code * scale
//   slot_mapping       [num_tokens]                                       i64    negative: skipped
//
// Work     2, 4, ... 32 lanes a row of one token's key or value of one head, 8 elements a lane and pass
// Rounds   to nearest even; scale = amax / 127, amax / 448 or amax / 7, 1 where that is 0; codes never beyond amax's.
//          A row that holds NaN or an infinity gets the scale NaN, so that every value read from it is NaN
// Traffic  reads and writes 2 * num_tokens * num_kv_heads * head_dim elements
// Bound    memory; 16-byte loads where rows are aligned to them
// Source   Kwon et al. 2023 (pages); Micikevicius et al. 2022 (e4m3fn)
// Oracle   pagedserve/backends/reference/cache.py::append_kv
#pragma once

#include "../../params.h"
#include "../../target/target.cuh"

namespace pagedserve::kernels {

constexpr int kAppendThreads = 256;
constexpr int kAppendElements = 8;  // of a row, a lane and pass

// How many bytes 8 elements take.
constexpr int bytes_of_8(DType dtype) {
  return dtype == DType::kF32 ? 32 : dtype == DType::kI4 ? 4 : dtype == DType::kI8 || dtype == DType::kF8E4M3 ? 8 : 16;
}
constexpr int64_t bytes_of(DType dtype, int64_t elements) { return elements * bytes_of_8(dtype) / 8; }

// 0: kept as it is, without a scale.
constexpr float largest_code(DType dtype) {
  return dtype == DType::kI8 ? 127.f : dtype == DType::kF8E4M3 ? 448.f : dtype == DType::kI4 ? 7.f : 0.f;
}

struct AppendShape {
  int lanes;     // of a row; a power of two
  bool aligned;  // 8 elements of every row may be moved at once
};

// Eight elements as the words that hold them.
template <int kBytes>
struct Words {
  uint32_t word[kBytes / 4];
};

template <int kBytes>
PAGEDSERVE_DEVICE Words<kBytes> load_words(const char* from) {
  Words<kBytes> to;
  if constexpr (kBytes >= 16) {
    PAGEDSERVE_UNROLL
    for (int i = 0; i < kBytes / 16; ++i) {
      const auto four = target::load_streaming(reinterpret_cast<const target::U32x4*>(from) + i);
      memcpy(to.word + 4 * i, &four, 16);
    }
  }
  return to;
}

template <int kBytes>
PAGEDSERVE_DEVICE void store_words(char* to, const Words<kBytes>& from) {
  if constexpr (kBytes == 4) {
    *reinterpret_cast<uint32_t*>(to) = from.word[0];
  } else if constexpr (kBytes == 8) {
    *reinterpret_cast<target::U32x2*>(to) = {from.word[0], from.word[1]};
  } else {
    PAGEDSERVE_UNROLL
    for (int i = 0; i < kBytes / 16; ++i) {
      const uint32_t* w = from.word + 4 * i;
      reinterpret_cast<target::U32x4*>(to)[i] = {w[0], w[1], w[2], w[3]};
    }
  }
}

template <DType kFrom>
PAGEDSERVE_DEVICE float element(const char* row, int d) {
  if constexpr (kFrom == DType::kF32) {
    return reinterpret_cast<const float*>(row)[d];
  } else if constexpr (kFrom == DType::kBF16) {
    return target::to_float(reinterpret_cast<const target::BF16*>(row)[d]);
  } else {
    return target::to_float(reinterpret_cast<const target::F16*>(row)[d]);
  }
}

// Elements first to first + 7 of a row; zero behind head_dim.
template <DType kFrom>
PAGEDSERVE_DEVICE void load_elements(const char* row, int first, int head_dim, bool aligned, float (&x)[8]) {
  if (aligned && first < head_dim) {
    const auto words = load_words<bytes_of_8(kFrom)>(row + bytes_of(kFrom, first));
    PAGEDSERVE_UNROLL
    for (int i = 0; i < 8; ++i) x[i] = element<kFrom>(reinterpret_cast<const char*>(words.word), i);
    return;
  }
  PAGEDSERVE_UNROLL
  for (int i = 0; i < 8; ++i) x[i] = first + i < head_dim ? element<kFrom>(row, first + i) : 0.f;
}

// The words of 8 elements of a page, from numbers in the code's range.
template <DType kTo>
PAGEDSERVE_DEVICE Words<bytes_of_8(kTo)> encode(const float (&x)[8]) {
  Words<bytes_of_8(kTo)> to;
  if constexpr (kTo == DType::kF32) {
    memcpy(to.word, x, sizeof(to));
  } else if constexpr (kTo == DType::kBF16 || kTo == DType::kF16) {
    using Half = typename std::conditional<kTo == DType::kBF16, target::BF16, target::F16>::type;
    PAGEDSERVE_UNROLL
    for (int i = 0; i < 4; ++i) to.word[i] = target::pack<Half>(x[2 * i], x[2 * i + 1]);
  } else if constexpr (kTo == DType::kF8E4M3) {
    PAGEDSERVE_UNROLL
    for (int i = 0; i < 2; ++i) {
      const uint32_t low = target::f8x2_of_floats(x[4 * i], x[4 * i + 1]);
      to.word[i] = low | static_cast<uint32_t>(target::f8x2_of_floats(x[4 * i + 2], x[4 * i + 3])) << 16;
    }
  } else {
    constexpr int kBits = kTo == DType::kI8 ? 8 : 4, kBias = kTo == DType::kI8 ? 0 : 8;
    constexpr uint32_t kMask = (1u << kBits) - 1;
    PAGEDSERVE_UNROLL
    for (int w = 0; w < bytes_of_8(kTo) / 4; ++w) {
      to.word[w] = 0;
      PAGEDSERVE_UNROLL
      for (int i = 0; i < 32 / kBits; ++i) {
        const int code = target::i8_of_float(x[w * (32 / kBits) + i]) + kBias;
        to.word[w] |= (static_cast<uint32_t>(code) & kMask) << (kBits * i);
      }
    }
  }
  return to;
}

template <DType kTo>
PAGEDSERVE_DEVICE void store_elements(char* row, int first, int head_dim, bool aligned, const float (&x)[8]) {
  if (first >= head_dim) return;
  const auto words = encode<kTo>(x);
  char* const to = row + bytes_of(kTo, first);
  if (aligned) return store_words(to, words);
  const int count = static_cast<int>(bytes_of(kTo, head_dim - first < 8 ? head_dim - first : 8));
  PAGEDSERVE_UNROLL
  for (int i = 0; i < bytes_of_8(kTo); ++i) {
    if (i < count) to[i] = static_cast<char>(words.word[i / 4] >> (8 * (i % 4)));
  }
}

// amax / largest over a row that `lanes` lanes hold parts of. As integers, |x| keeps its order and NaN and infinity
// stand above all: no element can hide.
template <DType kFrom>
PAGEDSERVE_DEVICE float row_scale(const char* row, int part, const AppendShape& shape, int head_dim, float largest) {
  uint32_t amax = 0;
  float x[8];
  for (int first = part * 8; first < head_dim; first += shape.lanes * 8) {
    load_elements<kFrom>(row, first, head_dim, shape.aligned, x);
    PAGEDSERVE_UNROLL
    for (int i = 0; i < 8; ++i) {
      const uint32_t magnitude = target::float_bits(x[i]) & 0x7fffffffu;
      amax = magnitude > amax ? magnitude : amax;
    }
  }
  for (int mask = shape.lanes / 2; mask > 0; mask /= 2) {
    const uint32_t other = target::shuffle_xor(amax, mask);
    amax = other > amax ? other : amax;
  }
  if (amax >= 0x7f800000u) return target::bits_float(0x7fc00000u);
  const float scale = target::bits_float(amax) / largest;
  return scale == 0.f ? 1.f : scale;
}

template <DType kFrom, DType kTo>
PAGEDSERVE_KERNEL(kAppendThreads, 1)
append_kv_kernel(PAGEDSERVE_GRID_CONSTANT AppendKvParams p, PAGEDSERVE_GRID_CONSTANT AppendShape shape) {
  target::wait_for_previous_kernel();
  const int64_t rows_of_token = 2 * static_cast<int64_t>(p.num_kv_heads);
  const int64_t row =
      (static_cast<int64_t>(target::block_index().x) * kAppendThreads + target::thread_index()) / shape.lanes;
  const int part = target::thread_index() % shape.lanes;
  const int64_t token = row / rows_of_token;
  const int64_t slot = token < p.num_tokens ? p.slot_mapping[token] : -1;
  // Lanes without a row stay for the shuffles.
  const bool takes_part = slot >= 0;
  const bool is_value = row % rows_of_token >= p.num_kv_heads;
  const int64_t head = row % p.num_kv_heads;
  const KvPages& pages = is_value ? p.v_pages : p.k_pages;
  const int64_t from_offset =
      is_value ? token * p.v_token_stride + head * p.v_head_stride : token * p.k_token_stride + head * p.k_head_stride;
  const char* const from = static_cast<const char*>(is_value ? p.v : p.k) + bytes_of(kFrom, from_offset);
  const int64_t page = slot / p.page_size, place = slot % p.page_size;

  constexpr float kLargest = largest_code(kTo);
  float scale = 1.f;
  if constexpr (kLargest > 0.f) {
    scale = row_scale<kFrom>(from, part, shape, takes_part ? p.head_dim : 0, kLargest);
  }
  if (!takes_part) return;
  if (kLargest > 0.f && part == 0) {
    pages.scales[page * pages.scale_page_stride + place * pages.scale_token_stride + head * pages.scale_head_stride] =
        scale;
  }
  // i4 counts its strides in bytes.
  const int64_t to_offset = page * pages.page_stride + place * pages.token_stride + head * pages.head_stride;
  char* const to = static_cast<char*>(pages.data) + (kTo == DType::kI4 ? to_offset : bytes_of(kTo, to_offset));
  float x[8];
  for (int first = part * 8; first < p.head_dim; first += shape.lanes * 8) {
    load_elements<kFrom>(from, first, p.head_dim, shape.aligned, x);
    if constexpr (kLargest > 0.f) {
      PAGEDSERVE_UNROLL
      for (int i = 0; i < 8; ++i) {
        const float code = x[i] / scale;
        x[i] = code > kLargest ? kLargest : code < -kLargest ? -kLargest : code;  // NaN stays
      }
    }
    store_elements<kTo>(to, first, p.head_dim, shape.aligned, x);
  }
}

}  // namespace pagedserve::kernels
