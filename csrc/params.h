// SPDX-License-Identifier: Apache-2.0
// params.h: one plain struct per op, shared by the CPU kernels, the CUDA kernels and the emulator.
//
// Strides count elements. Only the innermost axis (head_dim, hidden, vocab) is contiguous.
#pragma once

#include <cstdint>

namespace pagedserve {

enum class DType : int32_t { kF32 = 0, kF16 = 1, kBF16 = 2, kI8 = 3, kF8E4M3 = 4, kI4 = 5 };

// Keys or values of one layer. i4: two elements a byte, [..., head_dim / 2] with strides in bytes; a byte holds
// code + 8 of the even element in its low four bits and of the odd one in its high four.
struct KvPages {
  void* data;     // [num_pages, page_size, num_kv_heads, head_dim] dtype
  float* scales;  // [num_pages, page_size, num_kv_heads]           f32; null unless dtype is i8, f8 or i4
  int64_t page_stride, token_stride, head_stride;
  int64_t scale_page_stride, scale_token_stride, scale_head_stride;
  DType dtype;
};

// paged_decode and paged_prefill. Query i of a sequence stands at position kv_len - q_len + i and
// sees the keys at or before it; a query with no visible key gives o = 0, lse = -inf.
struct PagedAttentionParams {
  const void* q;  // [num_tokens, num_q_heads, head_dim]    q_dtype
  void* out;      // like q                                 q_dtype
  float* lse;     // [num_tokens, num_q_heads]              f32, natural log; may be null
  KvPages k, v;
  const int32_t* page_table;  // [num_seqs, max_pages]                  never read past kv_len
  const int32_t* kv_lens;     // [num_seqs]                             tokens, the queries' own included; <= 0: empty
  const int32_t* q_starts;    // [num_seqs + 1]                         null: q_len queries for every sequence
  const uint8_t* tree_mask;   // [num_seqs, q_len, q_len]               1: query i sees new key j; null: causal
  const float* sinks;         // [num_q_heads]                          logit of a key with no value; may be null
  const float* alibi_slopes;  // [num_q_heads]                          adds slope * (key - query) to logits; or null
  int64_t q_token_stride, q_head_stride, out_token_stride, out_head_stride, page_table_stride;
  int32_t num_seqs, q_len, num_q_heads, num_kv_heads, head_dim, page_size;
  int32_t window;  // keys a query sees, itself included; <= 0: all
  float scale;     // multiplies q . k
  float soft_cap;  // logit = cap * tanh(logit / cap); <= 0: off
  DType q_dtype;
  bool bf16_products;  // where k and v are bf16, q and the softmax's weights may be rounded to it
  void* workspace;     // [workspace_bytes]                        holds a plan_decode of this call; CUDA decode only
  int64_t workspace_bytes;  // see csrc/plan
  int32_t max_pages;        // of page_table
  int32_t num_blocks;       // to launch; as many as were planned for, or any other number
};

// The split plan of paged_decode, written into its workspace: csrc/plan says how.
struct PlanDecodeParams {
  const int32_t* kv_lens;  // [num_seqs]
  void* workspace;         // [workspace_bytes], aligned to 16 bytes
  int64_t workspace_bytes;
  int32_t num_seqs, num_q_heads, num_kv_heads, head_dim, q_len, window;  // as in PagedAttentionParams
  int32_t num_blocks;  // CUDA blocks that share the work, at most 1024
};

constexpr int32_t kSplitTokens = 256;  // of a split of a CUDA decode: part of a row's arithmetic
constexpr int32_t kGroupSplits = 16;   // of a group of them, counted from split 0: part of it too
constexpr int32_t kMaxBlocks = 1024;   // that share a decode

// A group of whose splits more than one block has some.
struct CutGroup {
  int32_t counter;     // of its pieces that have ended; -1: there is no such group
  int32_t cut;         // the first split that is not in the block in which the group begins
  int32_t num_pieces;  // blocks that have some of it
};

// What one block does to one strand.
struct alignas(16) DecodeTask {
  int32_t seq, kv_head;
  int32_t first_row, num_rows;      // of the q_len * group_size rows
  int32_t kv_len;                   // as planned; at least 0
  int32_t first_split, num_splits;  // of the sequence; 0 splits: writes o = 0, lse = -inf
  int32_t strand_split;             // the strand's first
  int32_t partial;  // of the strand's first split, those of the others follow; of a whole strand: for its groups so far
  int32_t counter;  // of the strand's groups that are complete; -1: the strand is whole, and its output is final
  CutGroup head;    // the group that has begun before this piece
  CutGroup tail;    // the group that begins in this piece and goes on behind it
};

// Where a block begins, in one place, so that one trip to memory brings it.
struct PlannedBlock {
  int32_t num_blocks;            // planned
  int32_t num_tasks, next_task;  // of this block; behind the first its records lie from tasks[next_task] on
  int32_t spare;
  DecodeTask first;
};

// What a plan was made for, and how much there is of it.
struct PlanHeader {
  int32_t num_seqs, num_q_heads, num_kv_heads, head_dim, q_len, window;
  int32_t num_blocks, num_tasks;
  int64_t wanted_partials, max_partials;  // where more are wanted than possible, strands were left whole
  int64_t work, payload;                  // tokens on the line and in a window
};

// o = sum_i exp(lse_i - lse) o_i, lse = log sum_i exp(lse_i), over the leading axis, in its order.
struct MergeStatesParams {
  const void* states;      // [num_states, num_tokens, num_heads, head_dim]  dtype
  const float* state_lse;  // [num_states, num_tokens, num_heads]            f32
  void* out;               // [num_tokens, num_heads, head_dim]              dtype
  float* lse;              // [num_tokens, num_heads]                        f32; may be null
  int64_t num_tokens;
  int32_t num_states, num_heads, head_dim;
  DType dtype;
};

// Token t goes to page slot_mapping[t] / page_size, row slot_mapping[t] % page_size; negative: skipped.
struct AppendKvParams {
  const void* k;  // [num_tokens, num_kv_heads, head_dim]   src_dtype
  const void* v;  // [num_tokens, num_kv_heads, head_dim]   src_dtype
  KvPages k_pages, v_pages;
  const int64_t* slot_mapping;  // [num_tokens]
  int64_t num_tokens, k_token_stride, k_head_stride, v_token_stride, v_head_stride;
  int32_t num_kv_heads, head_dim, page_size;
  DType src_dtype;
};

// dst page dst_pages[i] = src page src_pages[i], page by page in order.
struct CopyPagesParams {
  const void* src;           // [num_src_pages, page_bytes]
  void* dst;                 // [num_dst_pages, page_bytes]
  const int64_t* src_pages;  // [num_copies]
  const int64_t* dst_pages;  // [num_copies]
  int64_t num_copies, page_bytes, src_page_stride_bytes, dst_page_stride_bytes;
};

// out = x / sqrt(mean(x^2) + eps) * weight; with a residual: residual += x first, and x is the sum;
// with accumulate: out += that instead.
struct RmsNormParams {
  const void* x;        // [num_tokens, num_heads, hidden]        dtype
  void* residual;       // like x                                 dtype; may be null
  void* out;            // like x                                 dtype
  const float* weight;  // [hidden]                               f32
  int64_t num_tokens, x_token_stride, x_head_stride, residual_token_stride, out_token_stride, out_head_stride;
  int32_t num_heads, hidden;  // num_heads 1 but for QK-norm
  int32_t accumulate;
  float eps;
  DType dtype;
  void* quantized;  // out as quantize_rows would write it; may be null; f32 and num_heads 1 only
};

// Rotates the first rotary_dim elements of each head, in place.
struct RopeParams {
  void* x;                   // [num_tokens, num_heads, head_dim]      dtype
  const int32_t* positions;  // [num_tokens]
  const float* cos_sin;      // [max_position, rotary_dim]             f32: cosines, then sines
  int64_t num_tokens, token_stride, head_stride, max_position;
  int32_t num_heads, head_dim, rotary_dim;
  int32_t interleaved;  // 0: pairs (i, i + rotary_dim / 2);  1: pairs (2 i, 2 i + 1)
  DType dtype;
};

enum class Activation : int32_t { kSilu = 0, kGeluTanh = 1 };

// silu_mul and gelu_mul: out = act(gate) * up, gate the first half of each row.
struct ActMulParams {
  const void* gate_up;  // [num_tokens, 2 * intermediate]         dtype
  void* out;            // [num_tokens, intermediate]             dtype
  int64_t num_tokens, gate_up_stride, out_stride;
  int32_t intermediate;
  Activation activation;
  DType dtype;
  void* quantized;  // out as quantize_rows would write it; may be null; f32 only
};

// Weight layouts of linear, as pack_weight (csrc/cpu) writes them.
enum class WeightFormat : int32_t { kF32 = 0, kBF16 = 1, kQ8 = 2, kQ4 = 3 };

// x as q8 and q4 linear layers read it: int8 with a scale per 32 elements.
struct QuantizeRowsParams {
  const float* x;   // [num_tokens, width]                    f32, width a multiple of 32
  void* quantized;  // see csrc/cpu
  int64_t num_tokens, x_stride;
  int32_t width;
};

// out = x W^T (+ bias) (+ out). q8 and q4 quantise x to int8 with a scale per 32 elements.
struct LinearParams {
  const float* x;      // [num_tokens, in_features]              f32
  const void* weight;  // packed, see csrc/cpu
  const float* bias;   // [out_features]                         may be null
  float* out;          // [num_tokens, out_features]             f32
  int64_t num_tokens, x_stride, out_stride;
  int32_t in_features, out_features;
  int32_t accumulate;  // 1: add to what out holds
  WeightFormat format;
  const void* quantized;  // x as quantize_rows wrote it, for q8 and q4; null: linear does so itself
};

// out = scale * row token_ids[t] of the embedding.
struct EmbedParams {
  const int32_t* token_ids;  // [num_tokens]
  const void* weight;        // packed, as for linear
  float* out;                // [num_tokens, hidden]
  int64_t num_tokens, out_stride;
  int32_t vocab_size, hidden;
  float scale;
  WeightFormat format;
};

// out[r] = x[rows[r]].
struct TakeRowsParams {
  const float* x;       // [num_tokens, hidden]
  const int32_t* rows;  // [num_rows]
  float* out;           // [num_rows, hidden]
  int64_t num_rows, x_stride, out_stride;
  int32_t hidden;
};

// x = cap * tanh(x / cap), in place.
struct SoftCapParams {
  float* x;  // [num_tokens, hidden]
  int64_t num_tokens, x_stride;
  int32_t hidden;
  float cap;
};

// One token per row: penalties, temperature, top-k, top-p, min-p in that order, then the Gumbel-max rule
// with Philox noise keyed by (seed, offset, token), so a row's choice depends on that row alone.
struct SampleParams {
  const float* logits;            // [num_rows, vocab_size]
  const float* temperature;       // [num_rows]   0: greedy, the lowest id among equals
  const int32_t* top_k;           // [num_rows]   <= 0: off
  const float* top_p;             // [num_rows]   1: off
  const float* min_p;             // [num_rows]   0: off
  const float* repetition;        // [num_rows]   1: off; over prompt and output
  const float* presence;          // [num_rows]   0: off; over output
  const float* frequency;         // [num_rows]   0: off; over output
  const uint64_t* seeds;          // [num_rows]
  const uint64_t* offsets;        // [num_rows]   the position of the token to be chosen
  const int32_t* history;         // [history_starts[num_rows]]  tokens of each row, prompt then output; may be null
  const int32_t* history_starts;  // [num_rows + 1]
  const int32_t* output_starts;   // [num_rows]   where in history the row's output begins
  int32_t* tokens;                // [num_rows]   the choice; -1 where every logit is NaN or -inf
  float* logprobs;                // [num_rows]   log softmax of the raw logits at the choice
  int32_t* top_tokens;            // [num_rows, num_top]  most likely tokens, ties by lower id; may be null
  float* top_logprobs;            // [num_rows, num_top]
  int64_t logits_stride;
  int32_t num_rows, vocab_size, num_top;
};

}  // namespace pagedserve
