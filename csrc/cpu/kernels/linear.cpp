// SPDX-License-Identifier: Apache-2.0
// linear.cpp: out = x W^T (+ bias) (+ out)
//
//   x        [num_tokens, in_features]    f32; q8, q4: quantised to int8 with a scale per 32 (quantized_rows.h)
//   weight   packed panels of 16 rows     f32, bf16, q8, q4 (packed_weight.h)
//   bias     [out_features]               f32, may be null
//   out      [num_tokens, out_features]   f32
//
// Work     few tokens: each worker streams its own contiguous run of panels; many: workers take
//          (128 tokens x a few panels) at a time, and a panel stays in cache for its tokens
// Sums     q8, q4: the int32 dot of each block of 32 is exact; one float chain over blocks adds minimum * (scale of x *
//          sum of x codes), then dot * (weight scale * x scale), both by fused multiply-add. f32, bf16: one chain of
//          fused multiply-adds over in_features. Bits depend on the row of x alone, and are the same on every
//          instruction set that has fused multiply-add
// Traffic  the weight once per 128 tokens, x, out
// Bound    memory up to 3 or 4 tokens of q4 (45 GB/s, 2 cores), then the 11 vector operations of each 16 rows x 32
//          columns x token: 12.0 cycles on Zen 4 of 11.2 measured for those operations alone
// Source   llama.cpp's repacked matrices (Q4_0_8_8): interleaved rows; FBGEMM (Khudia et al. 2021): unsigned offset
// Oracle   pagedserve/backends/reference/linear.py
#include "../kernels.h"
#include "linear_tile.h"
#include "quantize_row.h"

namespace pagedserve::cpu {
namespace {

constexpr int64_t kChunkTokens = 128;   // 92 KB of quantised x at 576 in_features: stays in L2
constexpr int64_t kStaticTokens = 16;   // up to here panels are shared out by rank
constexpr int64_t kOwnQuantTokens = 2;  // up to here every worker quantises x for itself, and no barrier is needed
constexpr int64_t kTakesPerWorker = 16;

struct Matrix {
  const uint8_t* panels;
  int64_t panel_bytes, num_panels;
  bool half_scales;
};

Matrix matrix_of(const LinearParams& p) {
  const auto* header = static_cast<const PackedHeader*>(p.weight);
  const bool half_scales = header->half_scales != 0;
  return {reinterpret_cast<const uint8_t*>(header + 1), panel_layout(p.format, p.in_features, half_scales).panel_bytes,
          ceil_div(p.out_features, kPanelRows), half_scales};
}

// Rows first_row .. first_row + kLanes of one token.
void write(const LinearParams& p, int64_t first_row, int64_t token, Vec sum) {
  float* out = p.out + token * p.out_stride + first_row;
  const int rows = static_cast<int>(smaller<int64_t>(p.out_features - first_row, kLanes));
  if (rows <= 0) return;
  if (p.bias != nullptr) sum += load(p.bias + first_row, rows);
  if (p.accumulate) sum += load(out, rows);
  store(out, sum, rows);
}

// A panel of a run that ends with panel `last`: the contiguous bytes that this worker reads.
Panel panel_of(const LinearParams& p, const Matrix& matrix, int64_t panel, int64_t last) {
  const uint8_t* data = matrix.panels + panel * matrix.panel_bytes;
  const bool within = data + kAheadBytes < matrix.panels + (last + 1) * matrix.panel_bytes;
  return {data, within ? data + kAheadBytes : data, p.in_features / kBlock};
}

template <WeightFormat format, bool half_scales>
struct LowBit {
  const LinearParams& p;
  const Matrix& matrix;
  const QuantizedBlock* x;

  template <int tokens>
  void multiply(int64_t panel, int64_t last, int64_t token) const {
    const Panel at = panel_of(p, matrix, panel, last);
    const QuantizedBlock* tile = x + token / kTileTokens * at.blocks;
    for (int row = 0; row < kPanelRows; row += kLanes) {
      const auto sums =
          multiply_low_bit<format, half_scales, tokens>(at, row, tile, static_cast<int>(token % kTileTokens));
      for (int t = 0; t < tokens; ++t) write(p, panel * kPanelRows + row, token + t, sums.of[t]);
    }
  }
};

template <WeightFormat format>
struct Dense {
  const LinearParams& p;
  const Matrix& matrix;

  template <int tokens>
  void multiply(int64_t panel, int64_t last, int64_t token) const {
    const Panel at = panel_of(p, matrix, panel, last);
    for (int row = 0; row < kPanelRows; row += kLanes) {
      const auto sums = multiply_dense<format, tokens>(at, row, p.x + token * p.x_stride, p.x_stride, p.in_features);
      for (int t = 0; t < tokens; ++t) write(p, panel * kPanelRows + row, token + t, sums.of[t]);
    }
  }
};

// One panel and tokens [begin, end), the largest power of two at a time. begin is a multiple of kTileTokens, so no
// group straddles two tiles.
template <class Product>
void multiply_tokens(const Product& product, int64_t panel, int64_t last, int64_t begin, int64_t end) {
  constexpr int kTwo = smaller(2, kMaxTokens), kFour = smaller(4, kMaxTokens), kEight = smaller(8, kMaxTokens);
  for (int64_t token = begin; token < end;) {
    const int64_t left = end - token;
    if (left >= kEight) {
      product.template multiply<kEight>(panel, last, token);
      token += kEight;
    } else if (left >= kFour) {
      product.template multiply<kFour>(panel, last, token);
      token += kFour;
    } else if (left >= kTwo) {
      product.template multiply<kTwo>(panel, last, token);
      token += kTwo;
    } else {
      product.template multiply<1>(panel, last, token);
      token += 1;
    }
  }
}

template <class Product>
void multiply_all(const Product& product, const LinearParams& p, int64_t num_panels, Worker& worker) {
  if (p.num_tokens <= kStaticTokens) {
    const Range own = worker.share(num_panels);
    for (int64_t panel = own.begin; panel < own.end; ++panel) {
      multiply_tokens(product, panel, own.end - 1, 0, p.num_tokens);
    }
    return;
  }
  const int64_t group = ceil_div(num_panels, kTakesPerWorker * worker.size());
  const int64_t groups = ceil_div(num_panels, group), chunks = ceil_div(p.num_tokens, kChunkTokens);
  for (int64_t task = worker.take(); task < chunks * groups; task = worker.take()) {
    const int64_t first_token = task / groups * kChunkTokens, first = task % groups * group;
    const int64_t end = smaller(first + group, num_panels);
    for (int64_t panel = first; panel < end; ++panel) {
      multiply_tokens(product, panel, end - 1, first_token, smaller(first_token + kChunkTokens, p.num_tokens));
    }
  }
}

const QuantizedBlock* quantized(const LinearParams& p, Worker& worker) {
  if (p.quantized != nullptr) return static_cast<const QuantizedBlock*>(p.quantized);
  const size_t bytes = static_cast<size_t>(quantized_bytes(p.num_tokens, p.in_features));
  const bool own = p.num_tokens <= kOwnQuantTokens || worker.size() == 1;
  void* tiles = own ? worker.scratch(bytes) : worker.shared_scratch(bytes);
  const QuantizeRowsParams rows{p.x, tiles, p.num_tokens, p.x_stride, p.in_features};
  quantize_rows_of(rows, own ? Range{0, p.num_tokens} : worker.share(p.num_tokens));
  if (!own) worker.barrier();
  return static_cast<const QuantizedBlock*>(tiles);
}

template <WeightFormat format>
void low_bit(const LinearParams& p, Worker& worker) {
  const Matrix matrix = matrix_of(p);
  const QuantizedBlock* x = quantized(p, worker);
  if (matrix.half_scales) {
    multiply_all(LowBit<format, true>{p, matrix, x}, p, matrix.num_panels, worker);
  } else {
    multiply_all(LowBit<format, false>{p, matrix, x}, p, matrix.num_panels, worker);
  }
}

template <WeightFormat format>
void dense(const LinearParams& p, Worker& worker) {
  const Matrix matrix = matrix_of(p);
  multiply_all(Dense<format>{p, matrix}, p, matrix.num_panels, worker);
}

}  // namespace

template <>
void Kernels<kIsa>::linear(const LinearParams& p, Worker& worker) {
  switch (p.format) {
    case WeightFormat::kF32:
      return dense<WeightFormat::kF32>(p, worker);
    case WeightFormat::kBF16:
      return dense<WeightFormat::kBF16>(p, worker);
    case WeightFormat::kQ8:
      return low_bit<WeightFormat::kQ8>(p, worker);
    case WeightFormat::kQ4:
      return low_bit<WeightFormat::kQ4>(p, worker);
  }
}

}  // namespace pagedserve::cpu
