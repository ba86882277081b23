// SPDX-License-Identifier: Apache-2.0
// step_inputs.h: the index arrays of a step, and the check that no op will read or write outside its tensors.
#pragma once

#include <cstdint>

namespace pagedserve::cpu {

struct StepCounts {
  int64_t tokens, seqs, rows;
};

// Written by the engine before each run. A bound of 0: no op of the program uses that array.
struct StepInputs {
  const int32_t* token_ids;     // [max_tokens]            0 .. vocab_size - 1
  const int32_t* positions;     // [max_tokens]            0 .. max_position - 1
  const int64_t* slot_mapping;  // [max_tokens]            below num_pages * page_size; negative: skipped
  const int32_t* q_starts;      // [max_seqs + 1]          rises from 0 or above to at most the run's tokens
  const int32_t* kv_lens;       // [max_seqs]              at most max_pages * page_size
  const int32_t* page_table;    // [max_seqs, max_pages]   0 .. num_pages - 1 below a taking part sequence's length
  const int32_t* logit_rows;    // [max_rows]              0 .. the run's tokens - 1
  int64_t max_tokens, max_seqs, max_pages, max_rows;
  int64_t vocab_size, max_position, num_pages, page_size;
};

// Throws std::invalid_argument with the array, the index and the bound. Reads what the run will read, nothing more.
void check(const StepInputs& inputs, const StepCounts& counts);

}  // namespace pagedserve::cpu
