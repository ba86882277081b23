// SPDX-License-Identifier: Apache-2.0
// paged_decode.cuh: o[s, h] = softmax(scale * q[s, h] . K[s]) V[s], q_len query tokens a sequence
//
//   q, out       [num_seqs * q_len, num_q_heads, head_dim]         bf16, f16
//   k, v         [num_pages, page_size, num_kv_heads, head_dim]    like q; or f8 e4m3, i8, i4 with scales
//   scales       [num_pages, page_size, num_kv_heads]              f32    one per token and head
//   page_table   [num_seqs, max_pages]                             i32    read only where a query sees a key
//   lse          [num_seqs * q_len, num_q_heads]                   f32    natural log; -inf where no key is seen
//   tasks        the plan (csrc/plan); partials and counters are the plan's workspace
//
// Work     DESIGN.md, "CUDA decode": a block does the tasks of one planned block, one after the other. Per tile of
//          tokens each of 4 warps multiplies its own keys (rows) with the strand's queries (columns), and its own
//          values with the weights; warps meet at the end of each split
// Sums     f32. Per warp an online softmax over its tokens of a split; the four warps' in order; then splits in order
//          into their group, and groups in order. Weights are rounded to the values' number format before they multiply
// Traffic  2 * sum(kv_lens) * num_kv_heads * head_dim * sizeof(KV) bytes, once for every strand of a KV head
// Bound    memory: 2 * rows / sizeof(KV) flop per byte, 16 for a group of 8 in bf16
// Source   Milakov & Gimelshein 2018 (online softmax); Dao, Haziza, Massa, Sizov 2023 (Flash-Decoding: splitting along
//          KV); TensorRT-LLM's XQA (keys as the rows of the matrix instruction)
// Oracle   pagedserve/backends/reference/attention.py::paged_decode
#pragma once

#include "decode_cores.cuh"
#include "decode_merge.cuh"
#include "decode_queries.cuh"
#include "decode_stream.cuh"

namespace pagedserve::kernels {

template <class C>
class Decode {
  using Number = typename C::Number;
  using Format = typename C::Format;
  using Logits = float[C::kChunkTiles][C::kColumnTiles][4];      // [16 tokens, 8 columns] each, as mma leaves them
  using Weights = uint32_t[C::kChunkTiles][C::kColumnTiles][2];  // [16 tokens, 8 columns] each, as mma takes b
  static constexpr int kSteps = C::kHeadDim / 16;
  static constexpr int kLaneColumns = 2 * C::kColumnTiles;  // lane % 4 * 2 and the next of each tile

  static constexpr int kFactors = C::kDividesQueries && C::kKeepQueries ? kLaneColumns : 1;

  // A warp's softmax over its tokens of a split. The sums are this lane's: lanes with the same columns add up.
  struct Matrix {
    struct Softmax {
      float o[kSteps][C::kColumnTiles][4];
      float maximum[kLaneColumns], sum[kLaneColumns];

      PAGEDSERVE_DEVICE void clear() {
        PAGEDSERVE_UNROLL
        for (int i = 0; i < kSteps * C::kColumnTiles * 4; ++i)
          o[i / 4 / C::kColumnTiles][i / 4 % C::kColumnTiles][i % 4] = 0.f;
        PAGEDSERVE_UNROLL
        for (int i = 0; i < kLaneColumns; ++i) maximum[i] = -parts::infinity(), sum[i] = 0.f;
      }
    };
  };
  using Cores = typename DecodeCores<C>::Type;
  using Softmax = typename std::conditional<C::kOnCores, Cores, Matrix>::type::Softmax;

 public:
  PAGEDSERVE_DEVICE Decode(const DecodeCall& call, DecodeShared<C>& shared)
      : call_(call), shared_(shared), stream_(call, shared), cores_(call, shared) {}

  PAGEDSERVE_DEVICE void run() {
    int block = static_cast<int>(target::block_index().x);
    if (block >= kMaxBlocks) return;
    take(shared_.block, call_.blocks[block]);
    while (block < shared_.block.num_blocks) {
      run_block();
      block += static_cast<int>(target::num_blocks().x);
      if (block < shared_.block.num_blocks) take(shared_.block, call_.blocks[block]);
    }
  }

 private:
  // ---- tasks ----

  // Brings a record into shared memory, in one trip.
  template <class Record>
  PAGEDSERVE_DEVICE void take(Record& to, const Record& from) {
    target::sync_threads();  // nobody needs the last one, nor its queries
    const int word = target::thread_index();
    if (word < static_cast<int>(sizeof(Record) / 4)) {
      reinterpret_cast<int32_t*>(&to)[word] = reinterpret_cast<const int32_t*>(&from)[word];
    }
    target::sync_threads();
  }

  // The first tile is on its way before queries are read; only then is a second one brought, which waits for page ids.
  PAGEDSERVE_DEVICE void run_block() {
    if (shared_.block.num_tasks == 0) return;
    stream_.begin();
    stage_ = 0;
    PAGEDSERVE_ROLLED
    for (int step = 1 - C::kStages; step < shared_.block.num_tasks; ++step) {
      if (step <= 0) bring_next();
      if (step > 0) take(shared_.block.first, call_.tasks[shared_.block.next_task + step - 1]);
      if (step > 0 || step == 1 - C::kStages) begin_task(shared_.block.first);
      if (step >= 0) run_task(shared_.block.first);
    }
  }

  PAGEDSERVE_DEVICE void run_task(const DecodeTask& task) {
    keep_queries();
    TileSpan span = TileSpan::of<C>(call_, task);
    clear_totals();
    if (task.num_splits == 0) add_group(task, true, true);
    for (int split = task.first_split; split < end_of(task); ++split) {
      const int end_tile = at_most(span.end_tile, (split + 1) * C::kTilesPerSplit);
      if (span.tile < end_tile) attend_split(task, span, end_tile);
      end_split(task, split);
    }
    if (task.counter >= 0) end_piece(call_, shared_, task);
  }

  static PAGEDSERVE_DEVICE int end_of(const DecodeTask& task) { return task.first_split + task.num_splits; }

  // Takes away the total of a group that ends, or of a split that stays alone, for it lies behind a cut.
  PAGEDSERVE_DEVICE void end_split(const DecodeTask& task, int split) {
    const int end = end_of(task);
    const int head_end = task.head.counter < 0 ? task.first_split : at_most(group_end(task.first_split), end);
    if (split >= head_end && split + 1 != end && split + 1 != group_end(split)) return;
    if (task.counter >= 0) {
      keep_totals(task, split - task.strand_split);
    } else {
      add_group(task, split < group_end(task.strand_split), split + 1 == end);
    }
    clear_totals();
    if (split + 1 == head_end) ends_last(call_, shared_.ends_head, task.head.counter, 1, task.head.num_pieces);
  }

  PAGEDSERVE_DEVICE void begin_task(const DecodeTask& task) {
    QueryLoader<C>(call_, shared_).load(task);
    if (target::thread_index() == 0) {
      const parts::MaskRule rule = call_.mask_rule(task);
      const int first = call_.query_of(task, 0), last = call_.query_of(task, task.num_rows - 1);
      const int begin = rule.new_begin();
      shared_.open.is_stale = call_.is_stale(task);
      shared_.open.new_begin = begin;
      shared_.open.begin = rule.window > 0 ? begin + last - rule.window + 1 : 0;
      shared_.open.end = rule.tree == nullptr ? begin + first + 1 : begin + first < 0 ? 0 : begin;
    }
    target::sync_threads();
  }

  // Registers that a task keeps are taken here, so that they are free again where partials are merged.
  PAGEDSERVE_DEVICE void keep_queries() {
    if constexpr (C::kOnCores) cores_.begin();
    if constexpr (C::kKeepQueries) {
      PAGEDSERVE_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        PAGEDSERVE_UNROLL
        for (int tile = 0; tile < C::kColumnTiles; ++tile) read_query(step, tile, queries_[step][tile]);
      }
    }
    PAGEDSERVE_UNROLL
    for (int i = 0; i < kFactors; ++i) factors_[i] = column(i / 2, i % 2).factor;
  }

  PAGEDSERVE_DEVICE void read_query(int step, int tile, uint32_t (&b)[2]) const {
    const uint32_t (&words)[2] = shared_.queries[step][tile][target::lane_index()];
    const auto pair = *reinterpret_cast<const target::U32x2*>(words);
    b[0] = pair.x, b[1] = pair.y;
  }

  // ---- totals: of a group's splits so far; a column is one warp's ----

  PAGEDSERVE_DEVICE void clear_totals() {
    const parts::State start = shared_.open.is_stale ? parts::State{0.f, parts::not_a_number()} : parts::empty_state();
    if (target::lane_index() == 0) {
      for (int c = target::warp_index(); c < C::kColumns; c += C::kWarps) shared_.totals[c] = start;
    }
    target::sync_warp();
  }

  template <class Body>
  PAGEDSERVE_DEVICE void for_each_total(const DecodeTask& task, const Body& body) {
    for (int c = target::warp_index(); c < task.num_rows; c += C::kWarps) {
      for (int dim = 4 * target::lane_index(); dim < call_.p.head_dim; dim += 4 * target::kWarpSize) {
        body(c, dim, shared_.totals[c], *reinterpret_cast<const parts::Sums*>(&shared_.total_o[c][dim]));
      }
    }
    target::sync_warp();
  }

  PAGEDSERVE_DEVICE parts::Sums& partial_sums(int partial, int c, int dim) const {
    return *reinterpret_cast<parts::Sums*>(call_.partial(partial) + static_cast<int64_t>(c) * call_.p.head_dim + dim);
  }

  // `place`: counted from the strand's first partial.
  PAGEDSERVE_DEVICE void keep_totals(const DecodeTask& task, int place) {
    for_each_total(task, [&](int c, int dim, const parts::State& state, const parts::Sums& sums) {
      partial_sums(task.partial + place, c, dim) = sums;
      if (dim == 0) call_.partial_states(task.partial + place)[c] = state;
    });
  }

  // Folds a group into its strand, which is whole; behind the last one writes the output.
  PAGEDSERVE_DEVICE void add_group(const DecodeTask& task, bool is_first, bool is_last) {
    for_each_total(task, [&](int c, int dim, const parts::State& state, parts::Sums sums) {
      parts::State strand = is_first ? state : shared_.strands[c];
      parts::Sums& kept = partial_sums(task.partial, c, dim);
      if (!is_first) {
        const parts::Parts parts = parts::fold(strand, state);
        sums = parts::fold(kept, sums, parts);
      }
      if (is_last) return write_row(call_, task, c, dim, strand, sums);
      kept = sums;
    });
    if (is_last) return;
    for (int c = target::warp_index() + C::kWarps * target::lane_index(); c < task.num_rows; c += C::kThreads) {
      if (is_first) shared_.strands[c] = shared_.totals[c];
      if (!is_first) parts::fold(shared_.strands[c], shared_.totals[c]);
    }
    target::sync_warp();
  }

  // ---- a split ----

  PAGEDSERVE_DEVICE void attend_split(const DecodeTask& task, TileSpan& span, int end_tile) {
    Softmax softmax;
    softmax.clear();
    PAGEDSERVE_ROLLED
    for (;;) {
      target::copy_async_wait<C::kStages - 1>();
      target::sync_warp();
      attend_tile(span.tile, softmax);
      if (++span.tile == end_tile) break;
      bring_next();
    }
    add_warps(task, softmax);  // through the last tile, before the next takes its place
    bring_next();
  }

  PAGEDSERVE_DEVICE void bring_next() {
    stream_.bring(stage_);
    stage_ = stage_ + 1 == C::kStages ? 0 : stage_ + 1;
  }

  PAGEDSERVE_DEVICE void attend_tile(int tile, Softmax& softmax) {
    const unsigned char* keys = shared_.tiles[stage_][target::warp_index()];
    const unsigned char* values = keys + C::kWarpTokens * C::kRowBytes;
    if constexpr (C::kOnCores) {
      const int position = tile * C::kTileTokens + target::warp_index() * C::kWarpTokens;
      return cores_.attend_tile(keys, values, position, softmax);
    } else {
      attend_chunks(tile, keys, values, softmax);
    }
  }

  PAGEDSERVE_DEVICE void attend_chunks(int tile, const unsigned char* keys, const unsigned char* values,
                                       Softmax& softmax) {
    PAGEDSERVE_UNROLL
    for (int token = 0; token < C::kWarpTokens; token += C::kChunkTokens) {
      Logits logits;
      multiply_keys(keys, token, logits);
      make_logits(token, tile * C::kTileTokens + target::warp_index() * C::kWarpTokens + token, logits);
      Weights weights;
      weigh(token, logits, softmax, weights);
      add_values(values, token, weights, softmax);
    }
  }

  PAGEDSERVE_DEVICE void multiply_keys(const unsigned char* keys, int token, Logits& logits) const {
    PAGEDSERVE_UNROLL
    for (int i = 0; i < C::kChunkTiles * C::kColumnTiles * 4; ++i)
      logits[i / 4 / C::kColumnTiles][i / 4 % C::kColumnTiles][i % 4] = 0.f;
    constexpr int kGroups = kSteps / Format::kKeySteps;
    if constexpr (C::kKeepQueries) {
      PAGEDSERVE_UNROLL
      for (int group = 0; group < kGroups; ++group) multiply_group(keys, token, group, logits);
    } else {  // a loop keeps the compiler from reading too much ahead
      constexpr int kUnrolled = C::kColumns == 32 && Format::kScaled ? 1 : at_most(kGroups, 4);
      PAGEDSERVE_ROLLED
      for (int first = 0; first < kGroups; first += kUnrolled) {
        PAGEDSERVE_UNROLL
        for (int i = 0; i < kUnrolled; ++i) multiply_group(keys, token, first + i, logits);
      }
    }
  }

  PAGEDSERVE_DEVICE void multiply_group(const unsigned char* keys, int token, int group, Logits& logits) const {
    uint32_t a[C::kChunkTiles][Format::kKeySteps][4];
    Format::template load_keys<C::kRowBytes>(keys, token, group, a);
    PAGEDSERVE_UNROLL
    for (int step = 0; step < Format::kKeySteps; ++step) {
      PAGEDSERVE_UNROLL
      for (int column = 0; column < C::kColumnTiles; ++column) {
        uint32_t b[2];
        query(group * Format::kKeySteps + step, column, b);
        PAGEDSERVE_UNROLL
        for (int i = 0; i < C::kChunkTiles; ++i) target::mma_m16n8k16<Number>(logits[i][column], a[i][step], b);
      }
    }
  }

  PAGEDSERVE_DEVICE void query(int step, int column, uint32_t (&b)[2]) const {
    if constexpr (C::kKeepQueries) {
      b[0] = queries_[step][column][0], b[1] = queries_[step][column][1];
    } else {
      read_query(step, column, b);
    }
  }

  // ---- logits; element i of a tile: token lane / 4 + i / 2 * 8, column lane % 4 * 2 + i % 2 ----

  PAGEDSERVE_DEVICE const Column& column(int tile, int i) const {
    return shared_.columns[8 * tile + target::lane_index() % 4 * 2 + i % 2];
  }
  PAGEDSERVE_DEVICE float factor(int tile, int i) const {
    if constexpr (!C::kDividesQueries) return factors_[0];
    return C::kKeepQueries ? factors_[2 * tile + i] : column(tile, i).factor;
  }
  // A scale of this lane's rows.
  PAGEDSERVE_DEVICE float scale(int which, int token, int tile, int half) const {
    const int row = token + 16 * tile + 8 * half + target::lane_index() / 4;
    return shared_.scales[stage_][target::warp_index()][which][row];
  }

  // From dot products to logits in units of log2; position is that of the chunk's first token.
  PAGEDSERVE_DEVICE void make_logits(int token, int position, Logits& logits) const {
    PAGEDSERVE_UNROLL
    for (int tile = 0; tile < C::kChunkTiles; ++tile) {
      float scales[2];
      if constexpr (Format::kScaled) scales[0] = scale(0, token, tile, 0), scales[1] = scale(0, token, tile, 1);
      PAGEDSERVE_UNROLL
      for (int i = 0; i < C::kColumnTiles * 4; ++i) {
        float& logit = logits[tile][i / 4][i % 4];
        logit *= factor(i / 4, i % 2);
        if constexpr (Format::kScaled) logit *= scales[i % 4 / 2];
      }
    }
    if (call_.p.soft_cap > 0.f || call_.p.alibi_slopes != nullptr) change_logits(position, logits);
    if (position < shared_.open.begin || position + C::kChunkTokens > shared_.open.end) mask_logits(position, logits);
  }

  PAGEDSERVE_DEVICE void change_logits(int position, Logits& logits) const {
    PAGEDSERVE_UNROLL
    for (int i = 0; i < C::kColumnTiles * 4; ++i) {
      const Column& about = column(i / 4, i % 4);
      PAGEDSERVE_UNROLL
      for (int tile = 0; tile < C::kChunkTiles; ++tile) {
        const int key = position + 16 * tile + 8 * (i % 4 / 2) + target::lane_index() / 4;
        float& logit = logits[tile][i / 4][i % 4];
        logit = about.changed(logit, key, call_.p.soft_cap);
      }
    }
  }

  PAGEDSERVE_DEVICE void mask_logits(int position, Logits& logits) const {
    PAGEDSERVE_UNROLL
    for (int i = 0; i < C::kColumnTiles * 4; ++i) {
      const parts::View view = column(i / 4, i % 4).view;
      PAGEDSERVE_UNROLL
      for (int tile = 0; tile < C::kChunkTiles; ++tile) {
        const int key = position + 16 * tile + 8 * (i % 4 / 2) + target::lane_index() / 4;
        if (!parts::sees(view, shared_.open.new_begin, key)) logits[tile][i / 4][i % 4] = -parts::infinity();
      }
    }
  }

  // ---- weights and values ----

  // Turns logits into weights 2^(logit - maximum), and scales what was summed before to a maximum that has grown. A
  // value's own scale joins its logit: so weights stay in f16's range whatever the scales are; sums leave it out again.
  PAGEDSERVE_DEVICE void weigh(int token, Logits& logits, Softmax& softmax, Weights& weights) const {
    float value_scales[C::kChunkTiles][2];
    if constexpr (Format::kScaled) add_value_scales(token, logits, value_scales);
    float shrink[kLaneColumns];
    bool shrinks = false;
    PAGEDSERVE_UNROLL
    for (int c = 0; c < kLaneColumns; ++c) {
      float largest = -parts::infinity();
      PAGEDSERVE_UNROLL
      for (int i = 0; i < 2 * C::kChunkTiles; ++i) {
        largest = parts::larger(largest, logits[i / 2][c / 2][i % 2 * 2 + c % 2]);
      }
      PAGEDSERVE_UNROLL
      for (int mask = 4; mask < 32; mask *= 2) largest = parts::larger(largest, target::shuffle_xor(largest, mask));
      const float maximum = parts::larger(softmax.maximum[c], largest), shift = parts::shift_of(maximum);
      shrink[c] = target::exp2_approx(softmax.maximum[c] - shift);
      shrinks = shrinks || shrink[c] != 1.f;
      softmax.maximum[c] = maximum;
      float sum = 0.f;
      PAGEDSERVE_UNROLL
      for (int i = 0; i < 2 * C::kChunkTiles; ++i) {
        float& logit = logits[i / 2][c / 2][i % 2 * 2 + c % 2];
        logit = target::exp2_approx(logit - shift);
        if constexpr (Format::kScaled) {
          sum += logit * value_scales[i / 2][i % 2];
        } else {
          sum += logit;
        }
      }
      softmax.sum[c] = softmax.sum[c] * shrink[c] + sum;
    }
    if (target::any_lane(shrinks)) shrink_values(shrink, softmax);
    PAGEDSERVE_UNROLL
    for (int i = 0; i < C::kChunkTiles * C::kColumnTiles * 2; ++i) {
      const float* pair = &logits[i / 2 / C::kColumnTiles][i / 2 % C::kColumnTiles][i % 2 * 2];
      weights[i / 2 / C::kColumnTiles][i / 2 % C::kColumnTiles][i % 2] =
          target::transpose_matrix(target::pack<Number>(pair[0], pair[1]));
    }
  }

  // Adds log2 of the values' scales to the logits; leaves the scales' reciprocals.
  PAGEDSERVE_DEVICE void add_value_scales(int token, Logits& logits, float (&scales)[C::kChunkTiles][2]) const {
    PAGEDSERVE_UNROLL
    for (int i = 0; i < 2 * C::kChunkTiles; ++i) {
      const float given = scale(1, token, i / 2, i % 2);
      const float kept = given < 1e-37f ? 1e-37f : given;  // 0 has no logarithm; a NaN stays
      const float log2_scale = target::log2_approx(kept);
      scales[i / 2][i % 2] = target::reciprocal_approx(kept);
      PAGEDSERVE_UNROLL
      for (int c = 0; c < kLaneColumns; ++c) logits[i / 2][c / 2][i % 2 * 2 + c % 2] += log2_scale;
    }
  }

  PAGEDSERVE_DEVICE void shrink_values(const float (&shrink)[kLaneColumns], Softmax& softmax) const {
    PAGEDSERVE_UNROLL
    for (int i = 0; i < kSteps * C::kColumnTiles * 4; ++i) {
      const int tile = i / 4 % C::kColumnTiles;
      softmax.o[i / 4 / C::kColumnTiles][tile][i % 4] *= shrink[2 * tile + i % 2];
    }
  }

  PAGEDSERVE_DEVICE void add_values(const unsigned char* values, int token, const Weights& weights,
                                    Softmax& softmax) const {
    PAGEDSERVE_UNROLL
    for (int group = 0; group < kSteps / Format::kValueTiles; ++group) {
      uint32_t a[C::kChunkTiles][Format::kValueTiles][4];
      Format::template load_values<C::kRowBytes>(values, token, group, a);
      PAGEDSERVE_UNROLL
      for (int i = 0; i < Format::kValueTiles * C::kColumnTiles * C::kChunkTiles; ++i) {
        const int chunk = i % C::kChunkTiles, column = i / C::kChunkTiles % C::kColumnTiles;
        const int tile = i / C::kChunkTiles / C::kColumnTiles;
        target::mma_m16n8k16<Number>(softmax.o[group * Format::kValueTiles + tile][column], a[chunk][tile],
                                     weights[chunk][column]);
      }
    }
  }

  // ---- the four warps' softmaxes of a split become one, and join the total ----

  PAGEDSERVE_DEVICE float* exchange(int warp, int column, int dim) const {
    float* area = reinterpret_cast<float*>(shared_.tiles[stage_][warp]);
    return area + column * C::kHeadDim + (dim ^ column / 2 % 4 * 8);  // a warp's stores spread over the banks
  }

  PAGEDSERVE_DEVICE void add_warps(const DecodeTask& task, Softmax& softmax) {
    put_states(softmax);
    PAGEDSERVE_UNROLL
    for (int first = 0; first < C::kColumns; first += C::kExchangeColumns) {
      target::sync_warp();  // the warp's tile has been used
      put_values(first, softmax);
      target::sync_threads();
      for (int c = target::warp_index(); c < C::kExchangeColumns; c += C::kWarps) {
        if (first + c < task.num_rows) fold_column(first + c, c);
      }
      target::sync_threads();
    }
  }

  PAGEDSERVE_DEVICE void put_states(Softmax& softmax) {
    if constexpr (C::kOnCores) {
      cores_.put_states(softmax);
    } else {
      put_matrix_states(softmax);
    }
  }

  PAGEDSERVE_DEVICE void put_matrix_states(const Softmax& softmax) {
    PAGEDSERVE_UNROLL
    for (int c = 0; c < kLaneColumns; ++c) {
      float sum = softmax.sum[c];
      PAGEDSERVE_UNROLL
      for (int mask = 4; mask < 32; mask *= 2) sum += target::shuffle_xor(sum, mask);
      // Without a maximum there is either no key, or a NaN, which must show.
      const float maximum = sum == 0.f ? -parts::infinity() : parts::shift_of(softmax.maximum[c]);
      if (target::lane_index() < 4) {
        shared_.warp_states[target::warp_index()][c / 2 * 8 + target::lane_index() * 2 + c % 2] = {maximum, sum};
      }
    }
  }

  PAGEDSERVE_DEVICE void put_values(int first_column, const Softmax& softmax) {
    if constexpr (C::kOnCores) {
      cores_.put_values(softmax, [&](int row, int dim) { return exchange(target::warp_index(), row, dim); });
    } else {
      put_matrix_values(first_column, softmax);
    }
  }

  PAGEDSERVE_DEVICE void put_matrix_values(int first_column, const Softmax& softmax) {
    const int lane = target::lane_index(), warp = target::warp_index();
    constexpr int kTiles = Format::kRunDims == 4 ? 2 : 1;  // that hold a run of neighbours
    PAGEDSERVE_UNROLL
    for (int tile = 0; tile < C::kExchangeColumns / 8; ++tile) {
      PAGEDSERVE_UNROLL
      for (int j = 0; j < 2; ++j) {
        const int column = 8 * tile + lane % 4 * 2 + j;
        PAGEDSERVE_UNROLL
        for (int step = 0; step < kSteps; step += kTiles) {
          float run[2 * kTiles];
          PAGEDSERVE_UNROLL
          for (int i = 0; i < 2 * kTiles; ++i) run[i] = softmax.o[step + i / 2][first_column / 8 + tile][i % 2 * 2 + j];
          put_run(warp, column, step, run);
        }
      }
    }
  }

  template <int kCount>
  PAGEDSERVE_DEVICE void put_run(int warp, int column, int step, const float (&run)[kCount]) {
    const int g = target::lane_index() / 4;
    if constexpr (Format::kRunDims == 1) {
      *exchange(warp, column, Format::value_dim(step, 0, g)) = run[0];
      *exchange(warp, column, Format::value_dim(step, 1, g)) = run[1];
    } else if constexpr (Format::kRunDims == 2) {
      struct alignas(8) Pair {
        float v[2];
      };
      *reinterpret_cast<Pair*>(exchange(warp, column, Format::value_dim(step, 0, g))) = {run[0], run[1]};
    } else {
      *reinterpret_cast<parts::Sums*>(exchange(warp, column, Format::value_dim(step, 0, g))) = {run[0], run[1], run[2],
                                                                                                run[3]};
    }
  }

  // `place` is the column's in the exchange.
  PAGEDSERVE_DEVICE void fold_column(int column, int place) {
    parts::State split = parts::empty_state();
    float part[C::kWarps];
    PAGEDSERVE_UNROLL
    for (int w = 0; w < C::kWarps; ++w)
      split.maximum = parts::larger(split.maximum, shared_.warp_states[w][column].maximum);
    PAGEDSERVE_UNROLL
    for (int w = 0; w < C::kWarps; ++w) {
      const parts::State state = shared_.warp_states[w][column];
      part[w] = target::exp2_approx(state.maximum - parts::shift_of(split.maximum));
      split.sum += state.sum * part[w];
    }
    parts::State total = shared_.totals[column];
    const parts::Parts folds = parts::fold(total, split);
    for (int dim = 4 * target::lane_index(); dim < C::kHeadDim; dim += 4 * target::kWarpSize) {
      parts::Sums sums{};
      PAGEDSERVE_UNROLL
      for (int w = 0; w < C::kWarps; ++w) {
        const parts::Sums one = *reinterpret_cast<const parts::Sums*>(exchange(w, place, dim));
        PAGEDSERVE_UNROLL
        for (int i = 0; i < 4; ++i) sums.v[i] += one.v[i] * part[w];
      }
      auto& total_o = *reinterpret_cast<parts::Sums*>(&shared_.total_o[column][dim]);
      total_o = parts::fold(total_o, sums, folds);
    }
    target::sync_warp();
    if (target::lane_index() == 0) shared_.totals[column] = total;
    target::sync_warp();
  }

  const DecodeCall& call_;
  DecodeShared<C>& shared_;
  TileStream<C> stream_;
  Cores cores_;
  int stage_ = 0;
  float factors_[kFactors];  // of this lane's columns
  uint32_t queries_[C::kKeepQueries ? kSteps : 1][C::kColumnTiles][2];
};

template <class C>
PAGEDSERVE_KERNEL(C::kThreads, C::kMinBlocks)
paged_decode(PAGEDSERVE_GRID_CONSTANT DecodeCall call) {
  PAGEDSERVE_DYNAMIC_SHARED(memory);
  Decode<C>(call, *reinterpret_cast<DecodeShared<C>*>(memory)).run();
}

}  // namespace pagedserve::kernels
