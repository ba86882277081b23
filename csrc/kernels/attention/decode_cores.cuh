// SPDX-License-Identifier: Apache-2.0
// decode_cores.cuh: what paged_decode does with a tile where a KV head has one query head: CUDA cores, no matrices.
//
// Chosen where group_size is 1 and pages are bf16 or f16, whatever q_len is: a row's bits must not depend on it. A
// matrix instruction would have 1 of its 8 columns used, and wants keys and values through ldmatrix and weights in a
// layout of lanes that one row does not need. Floor: of a tile of 64 tokens with head_dim 128 a warp has 16; a row
// takes 2 * 16 * 128 products, 128 instructions of 32 lanes, as many to unpack halves, 16 loads of 16 bytes a lane and
// some 50 for the softmax: about 320, issued by 4 warps side by side. At 16.5 bytes a clock, an SM's share of 4.3
// TB/s, the tile's 32 KiB take 2000 clocks; so up to 4 rows stay below what memory takes. Codes stay with the matrix
// instruction: to unpack them to f32 would cost more than to multiply.
//
// Work     8 lanes share a token, chunk by chunk of 8 numbers; 4 tokens side by side; up to kRows rows from registers
// Sums     f32, weights included. A dot product: a lane's chunks in order, then its 8 lanes as a tree
#pragma once

#include "decode_config.cuh"

namespace pagedserve::kernels {

// A strand's rows are few (plan::max_tile_rows), so that their queries and sums stay in registers.
template <class Kv, int kHeadDim_>
struct CoresConfig : DecodeConfig<Kv, kHeadDim_, 8> {
  static constexpr bool kOnCores = true;
  static constexpr bool kKeepQueries = false;  // as operands of a matrix instruction
  static constexpr int kRows = kHeadDim_ > 128 ? 2 : 4;
  static constexpr int kMinBlocks = kHeadDim_ > 128 ? 1 : kHeadDim_ > 64 ? 2 : 3;  // queries and sums take registers
};

template <class C>
class CoresMath {
  using Number = typename C::Number;
  static constexpr int kLanes = 8;  // that share a token
  static constexpr int kSideBySide = target::kWarpSize / kLanes;
  static constexpr int kChunks = C::kHeadDim / 8 / kLanes;  // of a lane
  static constexpr int kPasses = C::kWarpTokens / 16;       // over a warp's tokens of a tile
  static constexpr int kTokens = 16 / kSideBySide;          // of a lane in a pass

 public:
  struct Softmax {
    float o[C::kRows][kChunks][8];  // of the lane's chunks, over the tokens that it has seen
    float maximum[C::kRows], sum[C::kRows];

    PAGEDSERVE_DEVICE void clear() {
      PAGEDSERVE_UNROLL
      for (int i = 0; i < C::kRows * kChunks * 8; ++i) o[i / 8 / kChunks][i / 8 % kChunks][i % 8] = 0.f;
      PAGEDSERVE_UNROLL
      for (int r = 0; r < C::kRows; ++r) maximum[r] = -parts::infinity(), sum[r] = 0.f;
    }
  };

  PAGEDSERVE_DEVICE CoresMath(const DecodeCall& call, DecodeShared<C>& shared) : call_(call), shared_(shared) {}

  // Takes the queries of a task from where QueryLoader wrote them.
  PAGEDSERVE_DEVICE void begin() {
    PAGEDSERVE_UNROLL
    for (int i = 0; i < C::kRows * kChunks * 4; ++i) {
      const int row = i / 4 / kChunks, chunk = i / 4 % kChunks, pair = i % 4, place = chunk_of_lane(chunk);
      const target::FloatPair x = target::unpack<Number>(shared_.queries[place / 2][0][row * 4 + pair][place % 2]);
      queries_[row][chunk][2 * pair] = x.low, queries_[row][chunk][2 * pair + 1] = x.high;
    }
  }

  // `keys` and `values` are the warp's own rows of a tile; `position` is that of the first.
  PAGEDSERVE_DEVICE void attend_tile(const unsigned char* keys, const unsigned char* values, int position,
                                     Softmax& softmax) const {
    PAGEDSERVE_ROLLED
    for (int pass = 0; pass < kPasses; ++pass) {
      float logits[C::kRows][kTokens];
      multiply_keys(keys, 16 * pass, logits);
      make_logits(position + 16 * pass, logits);
      weigh(logits, softmax);
      add_values(values, 16 * pass, logits, softmax);
    }
  }

  PAGEDSERVE_DEVICE void put_states(const Softmax& softmax) {
    PAGEDSERVE_UNROLL
    for (int r = 0; r < C::kRows; ++r) {
      const float sum = over_tokens(softmax.sum[r]);
      // Without a maximum there is either no key, or a NaN, which must show.
      const float maximum = sum == 0.f ? -parts::infinity() : parts::shift_of(softmax.maximum[r]);
      if (target::lane_index() == 0) shared_.warp_states[target::warp_index()][r] = {maximum, sum};
    }
  }

  // `place(row, dim)` says where a warp's sums of 8 neighbours go.
  template <class Place>
  PAGEDSERVE_DEVICE void put_values(const Softmax& softmax, const Place& place) const {
    PAGEDSERVE_UNROLL
    for (int i = 0; i < C::kRows * kChunks; ++i) {
      const int row = i / kChunks, chunk = i % kChunks;
      if (row >= shared_.block.first.num_rows) continue;
      float sums[8];
      PAGEDSERVE_UNROLL
      for (int j = 0; j < 8; ++j) sums[j] = over_tokens(softmax.o[row][chunk][j]);
      if (target::lane_index() >= kLanes) continue;
      auto* to = reinterpret_cast<parts::Sums*>(place(row, 8 * chunk_of_lane(chunk)));
      to[0] = {sums[0], sums[1], sums[2], sums[3]};
      to[1] = {sums[4], sums[5], sums[6], sums[7]};
    }
  }

 private:
  static PAGEDSERVE_DEVICE int chunk_of_lane(int i) { return target::lane_index() % kLanes + kLanes * i; }
  static PAGEDSERVE_DEVICE int token_of_lane(int i) { return target::lane_index() / kLanes + kSideBySide * i; }
  static PAGEDSERVE_DEVICE float over_tokens(float x) {
    PAGEDSERVE_UNROLL
    for (int mask = kLanes; mask < target::kWarpSize; mask *= 2) x += target::shuffle_xor(x, mask);
    return x;
  }

  static PAGEDSERVE_DEVICE void read_chunk(const unsigned char* rows, int row, int chunk, float (&x)[8]) {
    const auto words = *reinterpret_cast<const target::U32x4*>(
        rows + parts::SharedRows<C::kRowBytes>::offset(row, chunk_of_lane(chunk)));
    const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
    PAGEDSERVE_UNROLL
    for (int i = 0; i < 4; ++i) {
      const target::FloatPair pair = target::unpack<Number>(pairs[i]);
      x[2 * i] = pair.low, x[2 * i + 1] = pair.high;
    }
  }

  PAGEDSERVE_DEVICE void multiply_keys(const unsigned char* keys, int token, float (&logits)[C::kRows][kTokens]) const {
    PAGEDSERVE_UNROLL
    for (int i = 0; i < kTokens; ++i) {
      PAGEDSERVE_UNROLL
      for (int r = 0; r < C::kRows; ++r) logits[r][i] = 0.f;
      PAGEDSERVE_UNROLL
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        float x[8];
        read_chunk(keys, token + token_of_lane(i), chunk, x);
        PAGEDSERVE_UNROLL
        for (int r = 0; r < C::kRows; ++r) {
          if (r >= shared_.block.first.num_rows) continue;
          PAGEDSERVE_UNROLL
          for (int j = 0; j < 8; ++j) logits[r][i] += queries_[r][chunk][j] * x[j];
        }
      }
      PAGEDSERVE_UNROLL
      for (int r = 0; r < C::kRows; ++r) {
        if (r >= shared_.block.first.num_rows) continue;
        PAGEDSERVE_UNROLL
        for (int mask = 1; mask < kLanes; mask *= 2) logits[r][i] += target::shuffle_xor(logits[r][i], mask);
      }
    }
  }

  // From dot products to logits in units of log2; position is that of the pass's first token.
  PAGEDSERVE_DEVICE void make_logits(int position, float (&logits)[C::kRows][kTokens]) const {
    const bool changes = call_.p.soft_cap > 0.f || call_.p.alibi_slopes != nullptr;
    const bool is_open = position >= shared_.open.begin && position + 16 <= shared_.open.end;
    PAGEDSERVE_UNROLL
    for (int r = 0; r < C::kRows; ++r) {
      if (r >= shared_.block.first.num_rows) continue;
      const Column& about = shared_.columns[r];
      PAGEDSERVE_UNROLL
      for (int i = 0; i < kTokens; ++i) {
        const int key = position + token_of_lane(i);
        logits[r][i] *= about.factor;
        if (changes) logits[r][i] = about.changed(logits[r][i], key, call_.p.soft_cap);
        if (!is_open && !parts::sees(about.view, shared_.open.new_begin, key)) logits[r][i] = -parts::infinity();
      }
    }
  }

  // Turns logits into weights 2^(logit - maximum), and scales what was summed before to a maximum that has grown.
  PAGEDSERVE_DEVICE void weigh(float (&logits)[C::kRows][kTokens], Softmax& softmax) const {
    PAGEDSERVE_UNROLL
    for (int r = 0; r < C::kRows; ++r) {
      if (r >= shared_.block.first.num_rows) continue;
      float largest = -parts::infinity();
      PAGEDSERVE_UNROLL
      for (int i = 0; i < kTokens; ++i) largest = parts::larger(largest, logits[r][i]);
      PAGEDSERVE_UNROLL
      for (int mask = kLanes; mask < target::kWarpSize; mask *= 2) {
        largest = parts::larger(largest, target::shuffle_xor(largest, mask));
      }
      const float maximum = parts::larger(softmax.maximum[r], largest), shift = parts::shift_of(maximum);
      const float shrink = target::exp2_approx(softmax.maximum[r] - shift);
      softmax.maximum[r] = maximum;
      softmax.sum[r] *= shrink;
      if (shrink != 1.f) {  // alike in all lanes
        PAGEDSERVE_UNROLL
        for (int i = 0; i < kChunks * 8; ++i) softmax.o[r][i / 8][i % 8] *= shrink;
      }
      PAGEDSERVE_UNROLL
      for (int i = 0; i < kTokens; ++i) {
        logits[r][i] = target::exp2_approx(logits[r][i] - shift);
        softmax.sum[r] += logits[r][i];
      }
    }
  }

  PAGEDSERVE_DEVICE void add_values(const unsigned char* values, int token, const float (&weights)[C::kRows][kTokens],
                                    Softmax& softmax) const {
    PAGEDSERVE_UNROLL
    for (int i = 0; i < kTokens * kChunks; ++i) {
      const int chunk = i % kChunks;
      float x[8];
      read_chunk(values, token + token_of_lane(i / kChunks), chunk, x);
      PAGEDSERVE_UNROLL
      for (int r = 0; r < C::kRows; ++r) {
        if (r >= shared_.block.first.num_rows) continue;
        PAGEDSERVE_UNROLL
        for (int j = 0; j < 8; ++j) softmax.o[r][chunk][j] += weights[r][i / kChunks] * x[j];
      }
    }
  }

  const DecodeCall& call_;
  DecodeShared<C>& shared_;
  float queries_[C::kRows][kChunks][8];
};

// What a decode has for its CUDA cores: nothing where it multiplies matrices.
template <class C>
struct NoCores {
  PAGEDSERVE_DEVICE NoCores(const DecodeCall&, const DecodeShared<C>&) {}
};
template <class C, bool = C::kOnCores>
struct DecodeCores {
  using Type = NoCores<C>;
};
template <class C>
struct DecodeCores<C, true> {
  using Type = CoresMath<C>;
};

}  // namespace pagedserve::kernels
