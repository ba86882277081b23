// SPDX-License-Identifier: Apache-2.0
// decode_queries.cuh: a strand's queries on their way to the matrix instruction, and its outputs on their way back.
#pragma once

#include "decode_config.cuh"

namespace pagedserve::kernels {

PAGEDSERVE_DEVICE float read_number(const void* data, int64_t place, DType dtype) {
  if (dtype == DType::kBF16) return target::to_float(static_cast<const target::BF16*>(data)[place]);
  return target::to_float(static_cast<const target::F16*>(data)[place]);
}

PAGEDSERVE_DEVICE void write_number(void* data, int64_t place, DType dtype, float value) {
  if (dtype == DType::kBF16) {
    static_cast<target::BF16*>(data)[place] = target::from_float<target::BF16>(value);
  } else {
    static_cast<target::F16*>(data)[place] = target::from_float<target::F16>(value);
  }
}

// 2^e with 2^e <= x < 2^(e + 1), and its reciprocal, both of them normal numbers.
struct PowerOfTwo {
  float value, reciprocal;

  static PAGEDSERVE_DEVICE PowerOfTwo below(float x) {
    const uint32_t exponent = target::float_bits(x) >> 23;
    const uint32_t kept = exponent < 1 ? 1 : exponent > 253 ? 253 : exponent;
    return {target::bits_float(kept << 23), target::bits_float((254 - kept) << 23)};
  }
};

// Writes the queries of a task into shared memory in the order in which lanes read them, one warp a column.
template <class C>
class QueryLoader {
  static constexpr int kWords = C::kHeadDim / 2;  // of a column, two numbers each
  static constexpr int kLaneWords = (kWords + target::kWarpSize - 1) / target::kWarpSize;

 public:
  PAGEDSERVE_DEVICE QueryLoader(const DecodeCall& call, DecodeShared<C>& shared) : call_(call), shared_(shared) {}

  PAGEDSERVE_DEVICE void load(const DecodeTask& task) const {
    for (int column = target::warp_index(); column < C::kColumns; column += C::kWarps) {
      float x[kLaneWords][2];
      read(task, column, x);
      float divisor = 1.f;
      if constexpr (C::kDividesQueries) divisor = normalise(x);
      write(column, x);
      if (target::lane_index() == 0) describe(task, column, divisor);
    }
  }

 private:
  static PAGEDSERVE_DEVICE int dim(int word, int half) {
    return C::Format::query_dim(word / 8, word / 2 % 4, word % 2, half);
  }

  PAGEDSERVE_DEVICE void read(const DecodeTask& task, int column, float (&x)[kLaneWords][2]) const {
    const PagedAttentionParams& p = call_.p;
    const bool wanted = column < task.num_rows;
    const int64_t row =
        wanted ? call_.token_of(task, column) * p.q_token_stride + call_.q_head_of(task, column) * p.q_head_stride : 0;
    PAGEDSERVE_UNROLL
    for (int i = 0; i < kLaneWords; ++i) {
      const int word = i * target::kWarpSize + target::lane_index();
      PAGEDSERVE_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int d = dim(word, half);
        x[i][half] = wanted && word < kWords && d < p.head_dim ? read_number(p.q, row + d, p.q_dtype) : 0.f;
      }
    }
  }

  // bf16 reaches further than f16: divided by a power of two, the largest lies in [1, 2).
  PAGEDSERVE_DEVICE float normalise(float (&x)[kLaneWords][2]) const {
    if (call_.p.q_dtype != DType::kBF16) return 1.f;
    float largest = 0.f;
    PAGEDSERVE_UNROLL
    for (int i = 0; i < kLaneWords; ++i) {
      largest = parts::larger(largest, parts::larger(::fabsf(x[i][0]), ::fabsf(x[i][1])));
    }
    PAGEDSERVE_UNROLL
    for (int mask = 16; mask > 0; mask /= 2) largest = parts::larger(largest, target::shuffle_xor(largest, mask));
    const PowerOfTwo power = PowerOfTwo::below(largest);
    PAGEDSERVE_UNROLL
    for (int i = 0; i < kLaneWords; ++i) x[i][0] *= power.reciprocal, x[i][1] *= power.reciprocal;
    return power.value;
  }

  PAGEDSERVE_DEVICE void write(int column, const float (&x)[kLaneWords][2]) const {
    PAGEDSERVE_UNROLL
    for (int i = 0; i < kLaneWords; ++i) {
      const int word = i * target::kWarpSize + target::lane_index();
      if (word >= kWords) continue;
      const int lane = column % 8 * 4 + word / 2 % 4;
      shared_.queries[word / 8][column / 8][lane][word % 2] = target::pack<typename C::Number>(x[i][0], x[i][1]);
    }
  }

  PAGEDSERVE_DEVICE void describe(const DecodeTask& task, int column, float divisor) const {
    Column about{};
    if (column < task.num_rows) {
      about.view = call_.mask_rule(task).view(call_.query_of(task, column));
      about.factor = call_.p.scale * parts::kLog2E * divisor;
      about.slope = call_.p.alibi_slopes == nullptr ? 0.f : call_.p.alibi_slopes[call_.q_head_of(task, column)];
    }
    shared_.columns[column] = about;
  }

  const DecodeCall& call_;
  DecodeShared<C>& shared_;
};

// Divides four sums of a row and writes them; whoever has the row's first four writes its lse.
PAGEDSERVE_DEVICE void write_row(const DecodeCall& call, const DecodeTask& task, int row, int dim,
                                 const parts::State& state, const parts::Sums& sums) {
  const PagedAttentionParams& p = call.p;
  const int q_head = call.q_head_of(task, row);
  const int64_t token = call.token_of(task, row);
  const parts::Finish finish = parts::finish(state, p.sinks == nullptr ? nullptr : p.sinks + q_head);
  const int64_t place = token * p.out_token_stride + q_head * p.out_head_stride + dim;
  PAGEDSERVE_UNROLL
  for (int i = 0; i < 4; ++i) {
    write_number(p.out, place + i, p.q_dtype, parts::is_empty(state) ? 0.f : sums.v[i] * finish.factor);
  }
  if (dim == 0 && p.lse != nullptr) p.lse[token * p.num_q_heads + q_head] = finish.lse;
}

}  // namespace pagedserve::kernels
