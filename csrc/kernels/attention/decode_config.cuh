// SPDX-License-Identifier: Apache-2.0
// decode_config.cuh: the sizes of one instantiation of paged_decode, and what its parts share.
#pragma once

#include <type_traits>

#include "../../params.h"
#include "../../parts/kv_format.cuh"
#include "../../parts/mask.cuh"
#include "../../parts/online_softmax.cuh"
#include "../../parts/page_walk.cuh"

namespace pagedserve::kernels {

// A call, and where its plan and its partials lie.
struct DecodeCall {
  PagedAttentionParams p;
  const PlannedBlock* blocks;  // [kMaxBlocks]
  const DecodeTask* tasks;
  uint32_t* counters;  // 0 between launches
  float* partials;     // [num_partials, tile_rows * (head_dim + 2)]
  int32_t tile_rows;   // rows of a strand at most: what a partial has room for

  PAGEDSERVE_DEVICE int group_size() const { return p.num_q_heads / p.num_kv_heads; }
  PAGEDSERVE_DEVICE float* partial(int index) const {
    return partials + static_cast<int64_t>(index) * tile_rows * (p.head_dim + 2);
  }
  PAGEDSERVE_DEVICE parts::State* partial_states(int index) const {
    return reinterpret_cast<parts::State*>(partial(index) + static_cast<int64_t>(tile_rows) * p.head_dim);
  }
  PAGEDSERVE_DEVICE parts::MaskRule mask_rule(const DecodeTask& task) const {
    const uint8_t* tree = p.tree_mask;
    if (tree != nullptr) tree += static_cast<int64_t>(task.seq) * p.q_len * p.q_len;
    return {task.kv_len, p.q_len, p.window, tree};
  }
  // Planned for another length: no page is read, and what is written is NaN.
  PAGEDSERVE_DEVICE bool is_stale(const DecodeTask& task) const {
    return (p.kv_lens[task.seq] > 0 ? p.kv_lens[task.seq] : 0) != task.kv_len;
  }
  PAGEDSERVE_DEVICE int query_of(const DecodeTask& task, int row) const {
    return (task.first_row + row) / group_size();
  }
  PAGEDSERVE_DEVICE int q_head_of(const DecodeTask& task, int row) const {
    return task.kv_head * group_size() + (task.first_row + row) % group_size();
  }
  PAGEDSERVE_DEVICE int64_t token_of(const DecodeTask& task, int row) const {
    return static_cast<int64_t>(task.seq) * p.q_len + query_of(task, row);
  }
};

constexpr int power_of_two_below(int n) { return n < 2 ? 1 : 2 * power_of_two_below(n / 2); }
PAGEDSERVE_HOST_DEVICE constexpr int at_most(int n, int limit) { return n < limit ? n : limit; }
PAGEDSERVE_HOST_DEVICE constexpr int at_least(int n, int limit) { return n > limit ? n : limit; }

// Kv is the type of keys and values: BF16, F16, F8E4M3, int8_t or I4x2. kHeadDim is a bucket: a smaller head_dim is
// padded with zeros in shared memory. kColumns is a bucket for the rows of a strand.
template <class Kv, int kHeadDim_, int kColumns_>
struct DecodeConfig {
  using Format = parts::KvFormat<Kv>;
  using Number = typename Format::Number;  // what the matrix instruction multiplies
  static constexpr bool kOnCores = false;  // see decode_cores.cuh
  static constexpr int kHeadDim = kHeadDim_, kColumns = kColumns_;
  static constexpr int kColumnTiles = kColumns / 8;
  static constexpr int kWarps = 4, kThreads = kWarps * target::kWarpSize;
  static constexpr int kRowBytes = kHeadDim * Format::kBits / 8;

  // Tokens of a warp in a tile: 4 KiB of keys and as much of values where 16 to 64 tokens are that many.
  static constexpr int kWarpTokens = at_most(at_least(power_of_two_below(4096 / kRowBytes), 16), 64);
  static constexpr int kTileTokens = kWarps * kWarpTokens;
  static constexpr int kTilesPerSplit = kSplitTokens / kTileTokens;
  // Tokens between two looks at the maximum. Like kWarpTokens part of a row's arithmetic: the same for all kColumns.
  static constexpr int kChunkTokens = at_most(kWarpTokens, 32);
  static constexpr int kChunkTiles = kChunkTokens / 16;

  static constexpr int kWarpTileBytes = 2 * kWarpTokens * kRowBytes;  // keys, then values
  static constexpr int kStages = 2;
  // Sums of a warp pass through its own tile, as many columns at a time as fit there.
  static constexpr int kExchangeColumns = at_most(kColumns, kWarpTileBytes / (4 * kHeadDim) / 8 * 8);

  // f16 has not bf16's range: each query is divided by a power of two first.
  static constexpr bool kDividesQueries = std::is_same<Number, target::F16>::value;
  static constexpr int kQueryRegisters = kHeadDim * kColumns / 64;  // of a lane, were it to keep all of its queries
  static constexpr bool kKeepQueries = kQueryRegisters <= 16;
  // Blocks on an SM: what shared memory has room for.
  static constexpr bool kIsSmall = kColumns == 8 && (kHeadDim == 64 ? Format::kBits != 8 : Format::kBits >= 8);
  static constexpr int kMinBlocks = kHeadDim > 128 ? 1 : kIsSmall ? 3 : 2;

  static_assert(kTilesPerSplit * kTileTokens == kSplitTokens && kExchangeColumns > 0, "sizes fit each other");
};

// What a column needs beside its query.
struct Column {
  parts::View view;
  float factor;  // of its dot products: the softmax's scale times log2(e), and what its query was divided by
  float slope;   // of ALiBi
  float spare[2];

  // A logit in units of log2, capped and moved as the call asks.
  PAGEDSERVE_DEVICE float changed(float logit, int32_t key, float soft_cap) const {
    logit *= parts::kLn2;
    if (soft_cap > 0.f) logit = parts::soft_capped(logit, soft_cap);
    return (logit + slope * static_cast<float>(key - view.position)) * parts::kLog2E;
  }
};

// What the lanes of a warp know of the task whose tiles they bring. Kept here, for registers are scarce.
struct Stream {
  const int32_t* table;  // the sequence's row of page_table
  int32_t kv_head;
  int32_t new_begin;  // the position of the first query
  uint32_t seen;      // bit j: some row sees token new_begin + j
  int32_t begin_token, end_token, end_tile;
  int32_t granule;  // bytes that a copy moves: 16, 4 or 1
  parts::PageStep step;
};

// Tokens that every row of a task sees, and where its new tokens begin.
struct Open {
  int32_t begin, end, new_begin;
  bool is_stale;
};

constexpr int group_end(int split) { return (split / kGroupSplits + 1) * kGroupSplits; }

template <class C>
struct DecodeShared {
  unsigned char tiles[C::kStages][C::kWarps][C::kWarpTileBytes];
  uint32_t queries[C::kHeadDim / 16][C::kColumnTiles][target::kWarpSize][2];  // in the order lanes read them
  float total_o[C::kColumns][C::kHeadDim];
  uint64_t addresses[C::kWarps][2][C::kWarpTokens];  // of rows of keys and of values; 0: nothing to read
  float scales[C::Format::kScaled ? C::kStages : 1][C::kWarps][2][C::Format::kScaled ? C::kWarpTokens : 4];
  parts::State totals[C::kColumns];   // of the splits of a group
  parts::State strands[C::kColumns];  // of the groups of a whole strand; their sums lie in its partial
  parts::State warp_states[C::kWarps][C::kColumns];
  Column columns[C::kColumns];
  Stream streams[C::kWarps];
  Open open;
  PlannedBlock block;          // `first`: the task in hand
  int32_t ends_head, is_last;  // whether this block was the last to count in
};

}  // namespace pagedserve::kernels
