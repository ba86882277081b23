// SPDX-License-Identifier: Apache-2.0
// decode_stream.cuh: brings the tiles of a block's tasks into shared memory, ahead of their use and across tasks.
//
// Each warp brings, and later reads, its own kWarpTokens of a tile: between copying and using no other warp is waited
// for. Page ids are read one tile before the copies that need them.
#pragma once

#include "../../parts/shared_rows.cuh"
#include "decode_config.cuh"

namespace pagedserve::kernels {

// The tiles of a task that hold a key some row sees.
struct TileSpan {
  int32_t begin_token, end_token;  // tokens that some row sees, or of which its tree mask chooses
  int32_t tile, end_tile;

  template <class C>
  static PAGEDSERVE_DEVICE TileSpan of(const DecodeCall& call, const DecodeTask& task) {
    const parts::MaskRule rule = call.mask_rule(task);
    int first_query = call.query_of(task, 0);
    if (rule.new_begin() + first_query < 0) first_query = -rule.new_begin();
    const int first = rule.new_begin() + first_query;  // its position
    const int last = rule.new_begin() + call.query_of(task, task.num_rows - 1);
    TileSpan span;
    span.begin_token = rule.window > 0 && first >= rule.window ? first - rule.window + 1 : 0;
    span.end_token = last < 0 ? 0 : rule.tree != nullptr ? rule.kv_len : last + 1;
    const int begin_tile = span.begin_token / C::kTileTokens;
    const int end_tile = (span.end_token + C::kTileTokens - 1) / C::kTileTokens;
    span.tile = task.first_split * C::kTilesPerSplit;
    span.end_tile = span.tile + task.num_splits * C::kTilesPerSplit;
    if (span.tile < begin_tile) span.tile = begin_tile;
    if (span.end_tile > end_tile) span.end_tile = end_tile;
    return span;
  }
};

// Which of the sequence's new tokens some row of the task sees; all of them without a tree mask. A key that nobody
// sees must add nothing, whatever its value holds, so it is not read.
PAGEDSERVE_DEVICE uint32_t seen_new_tokens(const DecodeCall& call, const DecodeTask& task) {
  const parts::MaskRule rule = call.mask_rule(task);
  if (rule.tree == nullptr) return 0xffffffffu;
  uint32_t seen = 0;
  for (int query = call.query_of(task, 0); query <= call.query_of(task, task.num_rows - 1); ++query) {
    const parts::View view = rule.view(query);
    for (int j = 0; j < rule.q_len; ++j) {
      seen |= static_cast<uint32_t>(parts::sees(view, rule.new_begin(), rule.new_begin() + j)) << j;
    }
  }
  return seen;
}

template <class C>
class TileStream {
  static constexpr int kLaneTokens = at_least(C::kWarpTokens / target::kWarpSize, 1);
  static constexpr int kChunks = C::kRowBytes / parts::kChunkBytes;

 public:
  PAGEDSERVE_DEVICE TileStream(const DecodeCall& call, DecodeShared<C>& shared) : call_(call), shared_(shared) {
    if (target::lane_index() == 0) {
      const PagedAttentionParams& p = call.p;
      const int64_t places = reinterpret_cast<int64_t>(p.k.data) | reinterpret_cast<int64_t>(p.v.data) |
                             stride_bytes(p.k.page_stride | p.k.token_stride | p.k.head_stride) |
                             stride_bytes(p.v.page_stride | p.v.token_stride | p.v.head_stride);
      stream().granule = places % 16 == 0 ? 16 : places % 4 == 0 ? 4 : 1;
      stream().step = parts::page_step(C::kTileTokens, p.page_size);
    }
    target::sync_warp();
  }

  // Of the block in shared memory. Returns with loads under way.
  PAGEDSERVE_DEVICE void begin() {
    task_ = 0;
    enter_task();
  }

  // Starts copying the next tile, if there is one, into a stage, and commits what it started as one group.
  PAGEDSERVE_DEVICE void bring(int stage) {
    target::sync_warp();  // the last tile's addresses, and what the stage held, have been used
    if (task_ < shared_.block.num_tasks) {
      list_rows(stage);
      const bool goes_on = tile_ + 1 < stream().end_tile;  // read before another lane enters the next task
      target::sync_warp();
      unsigned char* keys = shared_.tiles[stage][target::warp_index()];
      stream().granule == 16 ? copy_rows(keys) : copy_rows_by_parts(keys);
      ++tile_;
      if (goes_on) {
        PAGEDSERVE_UNROLL
        for (int i = 0; i < kLaneTokens; ++i) walk_[i].advance(stream().step);
        read_page_ids();
      } else {
        ++task_;
        enter_task();
      }
    }
    target::copy_async_commit();
  }

 private:
  PAGEDSERVE_DEVICE int row_bytes() const { return call_.p.head_dim * C::Format::kBits / 8; }
  static PAGEDSERVE_DEVICE int64_t stride_bytes(int64_t stride) {
    return C::Format::kBits == 16 ? 2 * stride : stride;  // of 4-bit codes strides count bytes
  }
  PAGEDSERVE_DEVICE int lane_token(int i) const {
    return target::lane_index() % C::kWarpTokens + i * target::kWarpSize;
  }
  PAGEDSERVE_DEVICE int token(int i) const {
    return tile_ * C::kTileTokens + target::warp_index() * C::kWarpTokens + lane_token(i);
  }

  PAGEDSERVE_DEVICE const DecodeTask& task() const {
    return task_ == 0 ? shared_.block.first : call_.tasks[shared_.block.next_task + task_ - 1];
  }

  // Goes to the first tile of the next task that has one.
  PAGEDSERVE_DEVICE void enter_task() {
    for (; task_ < shared_.block.num_tasks; ++task_) {
      const DecodeTask& entered = task();
      const TileSpan span = TileSpan::of<C>(call_, entered);
      if (span.tile >= span.end_tile) continue;
      tile_ = span.tile;
      if (target::lane_index() == 0) {
        Stream& about = stream();
        about.table = call_.p.page_table + entered.seq * call_.p.page_table_stride;
        about.kv_head = entered.kv_head;
        about.new_begin = entered.kv_len - call_.p.q_len;
        about.seen = seen_new_tokens(call_, entered);
        about.begin_token = span.begin_token;
        about.end_token = within_table(span.end_token);
        about.end_tile = span.end_tile;
      }
      target::sync_warp();
      PAGEDSERVE_UNROLL
      for (int i = 0; i < kLaneTokens; ++i) walk_[i].start(token(i), call_.p.page_size);
      read_page_ids();
      forget_if_stale(entered);
      return;
    }
  }

  // A length that is not the call's may lie behind its page table.
  PAGEDSERVE_DEVICE int within_table(int token) const {
    const int64_t end = static_cast<int64_t>(call_.p.max_pages) * call_.p.page_size;
    return token < end ? token : static_cast<int>(end);
  }

  // The call's length comes with the page ids, in the same trip to memory. No tile of a stale task reads a page.
  PAGEDSERVE_DEVICE void forget_if_stale(const DecodeTask& entered) {
    const bool stale = call_.is_stale(entered);
    PAGEDSERVE_UNROLL
    for (int i = 0; i < kLaneTokens; ++i) page_ids_[i] |= stale ? -1 : 0;
    if (!stale) return;
    target::sync_warp();  // all lanes have read it
    if (target::lane_index() == 0) stream().end_token = 0;
  }

  PAGEDSERVE_DEVICE Stream& stream() const { return shared_.streams[target::warp_index()]; }

  PAGEDSERVE_DEVICE void read_page_ids() {
    const Stream& about = stream();
    PAGEDSERVE_UNROLL
    for (int i = 0; i < kLaneTokens; ++i) {
      const int t = token(i);
      const bool wanted = t >= about.begin_token && t < about.end_token &&
                          (t < about.new_begin || (about.seen >> (t - about.new_begin) & 1) != 0);
      page_ids_[i] = wanted ? about.table[walk_[i].page] : -1;
    }
  }

  static PAGEDSERVE_DEVICE uint64_t row_address(const KvPages& kv, int64_t page, int64_t row, int64_t head) {
    return reinterpret_cast<uint64_t>(kv.data) +
           static_cast<uint64_t>(stride_bytes(page * kv.page_stride + row * kv.token_stride + head * kv.head_stride));
  }

  PAGEDSERVE_DEVICE void list_rows(int stage) {
    PAGEDSERVE_UNROLL
    for (int i = 0; i < kLaneTokens; ++i) {
      const bool wanted = page_ids_[i] >= 0;
      if constexpr (C::kWarpTokens == 16) {  // half of the lanes have the keys, half the values
        const bool value = target::lane_index() >= 16;
        const KvPages& kv = value ? call_.p.v : call_.p.k;
        list_row(kv, value, i, wanted, stage);
      } else {
        list_row(call_.p.k, 0, i, wanted, stage);
        list_row(call_.p.v, 1, i, wanted, stage);
      }
    }
  }

  PAGEDSERVE_DEVICE void list_row(const KvPages& kv, int which, int i, bool wanted, int stage) {
    const int warp = target::warp_index();
    const int64_t page = page_ids_[i], row = walk_[i].row, head = stream().kv_head;
    shared_.addresses[warp][which][lane_token(i)] = wanted ? row_address(kv, page, row, head) : 0;
    if constexpr (C::Format::kScaled) {
      const int64_t place = page * kv.scale_page_stride + row * kv.scale_token_stride + head * kv.scale_head_stride;
      target::copy_async<4>(&shared_.scales[stage][warp][which][lane_token(i)], wanted ? kv.scales + place : nullptr,
                            wanted ? 4 : 0);
    }
  }

  // Of chunk number `place` of a warp's rows: where it comes from, how many of its bytes there are, where it goes.
  struct Chunk {
    const unsigned char* from;
    int valid, to;
  };
  PAGEDSERVE_DEVICE Chunk chunk_of(const uint64_t* addresses, int place) const {
    const int row = place / kChunks, chunk = place % kChunks;
    const uint64_t address = addresses[row];
    int valid = row_bytes() - chunk * parts::kChunkBytes;
    valid = address == 0 || valid < 0 ? 0 : valid < parts::kChunkBytes ? valid : parts::kChunkBytes;
    return {reinterpret_cast<const unsigned char*>(address) + (valid == 0 ? 0 : chunk * parts::kChunkBytes), valid,
            parts::SharedRows<C::kRowBytes>::offset(row, chunk)};
  }

  PAGEDSERVE_DEVICE void copy_rows(unsigned char* tile) const {
    constexpr int kCopies = C::kWarpTokens * kChunks / target::kWarpSize;  // of a lane
    PAGEDSERVE_UNROLL
    for (int i = 0; i < 2 * kCopies; ++i) {
      const uint64_t* addresses = shared_.addresses[target::warp_index()][i / kCopies];
      const Chunk chunk = chunk_of(addresses, i % kCopies * target::kWarpSize + target::lane_index());
      target::copy_async<16>(tile + i / kCopies * C::kWarpTokens * C::kRowBytes + chunk.to, chunk.from, chunk.valid);
    }
  }

  // Rows that no copy of 16 bytes can begin at.
  PAGEDSERVE_DEVICE void copy_rows_by_parts(unsigned char* tile) const {
    constexpr int kCopies = C::kWarpTokens * kChunks;
    PAGEDSERVE_ROLLED
    for (int place = target::lane_index(); place < 2 * kCopies; place += target::kWarpSize) {
      const Chunk chunk = chunk_of(shared_.addresses[target::warp_index()][place / kCopies], place % kCopies);
      unsigned char* to = tile + place / kCopies * C::kWarpTokens * C::kRowBytes + chunk.to;
      PAGEDSERVE_ROLLED
      for (int byte = 0; byte < parts::kChunkBytes; byte += 4) {
        const int left = chunk.valid - byte, valid = left < 0 ? 0 : left < 4 ? left : 4;
        const unsigned char* from = valid == 0 ? nullptr : chunk.from + byte;
        if (stream().granule == 4) {
          target::copy_async<4>(to + byte, from, valid);
        } else {  // rows that begin anywhere
          uint32_t word = 0;
          for (int i = 0; i < valid; ++i) word |= static_cast<uint32_t>(from[i]) << 8 * i;
          *reinterpret_cast<uint32_t*>(to + byte) = word;
        }
      }
    }
  }

  const DecodeCall& call_;
  DecodeShared<C>& shared_;
  int task_ = 0;
  int tile_ = 0;
  parts::PageWalk walk_[kLaneTokens];
  int32_t page_ids_[kLaneTokens];
};

}  // namespace pagedserve::kernels
