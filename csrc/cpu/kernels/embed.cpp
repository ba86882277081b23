// SPDX-License-Identifier: Apache-2.0
// embed.cpp: out[t] = scale * row token_ids[t] of a packed weight
//
//   token_ids   [num_tokens]                    i32, within the vocabulary
//   weight      [vocab_size, hidden]            packed panels of 16 rows: f32, bf16, q8, q4 (packed_weight.h)
//   out         [num_tokens, hidden]            f32
//
// Work     each worker takes a contiguous range of tokens
// Traffic  a row of a panel lies in pieces of 4 bytes, so up to 64 bytes are read for each
// Bound    memory latency; nothing beside the layers
// Oracle   pagedserve/backends/reference/: embed
#include "../kernels.h"
#include "../packed_weight.h"
#include "simd.h"

namespace pagedserve::cpu {
namespace {

// One row of one panel.
struct PackedRow {
  const uint8_t* panel;
  PanelLayout layout;
  int row;
  bool half_scales;
};

float scale_at(const PackedRow& from, const uint8_t* scales) {
  return from.half_scales ? first_lane(load(reinterpret_cast<const F16*>(scales) + from.row, 1))
                          : reinterpret_cast<const float*>(scales)[from.row];
}

void read_f32(const PackedRow& from, float* out, int32_t hidden) {
  const float* w = reinterpret_cast<const float*>(from.panel) + from.row;
  for (int64_t k = 0; k < hidden; ++k) out[k] = w[k * kPanelRows];
}

void read_bf16(const PackedRow& from, float* out, int32_t hidden) {
  const Bf16* w = reinterpret_cast<const Bf16*>(from.panel) + 2 * from.row;
  for (int64_t k = 0; k < hidden; ++k) {
    const uint32_t bits = static_cast<uint32_t>(w[k / 2 * 2 * kPanelRows + k % 2].bits) << 16;
    memcpy(out + k, &bits, sizeof(bits));
  }
}

void read_q8(const PackedRow& from, float* out, int32_t hidden) {
  const uint8_t* block = from.panel;
  for (int32_t k = 0; k < hidden; k += kBlock, block += from.layout.block_bytes) {
    const float scale = scale_at(from, block + from.layout.scales);
    for (int i = 0; i < kBlock; ++i) {
      const int code = block[(i / 4 * kPanelRows + from.row) * 4 + i % 4] - 128;
      out[k + i] = scale * static_cast<float>(code);
    }
  }
}

void read_q4(const PackedRow& from, float* out, int32_t hidden) {
  constexpr int kHalf = kBlock / 2;
  const uint8_t* block = from.panel;
  for (int32_t k = 0; k < hidden; k += kBlock, block += from.layout.block_bytes) {
    const float scale = scale_at(from, block + from.layout.scales);
    const float minimum = scale_at(from, block + from.layout.minimums);
    for (int i = 0; i < kHalf; ++i) {
      const int both = block[(i / 4 * kPanelRows + from.row) * 4 + i % 4];
      out[k + i] = scale * static_cast<float>(both & 15) + minimum;
      out[k + kHalf + i] = scale * static_cast<float>(both >> 4) + minimum;
    }
  }
}

}  // namespace

template <>
void Kernels<kIsa>::embed(const EmbedParams& p, Worker& worker) {
  const auto* header = static_cast<const PackedHeader*>(p.weight);
  const bool half_scales = header->half_scales != 0;
  const PanelLayout layout = panel_layout(p.format, p.hidden, half_scales);
  const Range tokens = worker.share(p.num_tokens);
  for (int64_t token = tokens.begin; token < tokens.end; ++token) {
    const int64_t id = p.token_ids[token];
    const auto* panels = reinterpret_cast<const uint8_t*>(header + 1);
    const PackedRow from{panels + id / kPanelRows * layout.panel_bytes, layout, static_cast<int>(id % kPanelRows),
                         half_scales};
    float* out = p.out + token * p.out_stride;
    switch (p.format) {
      case WeightFormat::kF32:
        read_f32(from, out, p.hidden);
        break;
      case WeightFormat::kBF16:
        read_bf16(from, out, p.hidden);
        break;
      case WeightFormat::kQ8:
        read_q8(from, out, p.hidden);
        break;
      case WeightFormat::kQ4:
        read_q4(from, out, p.hidden);
        break;
    }
    if (p.scale != 1.f) {
      for (int32_t k = 0; k < p.hidden; ++k) out[k] *= p.scale;
    }
  }
}

}  // namespace pagedserve::cpu
