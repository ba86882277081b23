// SPDX-License-Identifier: Apache-2.0
#include "step_inputs.h"

#include <stdexcept>
#include <string>

namespace pagedserve::cpu {

namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument("run: " + message); }

std::string at(const char* array, int64_t i, int64_t value) {
  return std::string(array) + "[" + std::to_string(i) + "] is " + std::to_string(value);
}

void check_count(const char* name, int64_t given, int64_t limit) {
  if (given >= 0 && given <= limit) return;
  refuse(std::string(name) + " is " + std::to_string(given) + "; the step was recorded for at most " +
         std::to_string(limit));
}

template <class T>
void check_below(const char* array, const T* values, int64_t count, int64_t lowest, int64_t bound, const char* of) {
  for (int64_t i = 0; i < count; ++i) {
    if (values[i] >= lowest && values[i] < bound) continue;
    refuse(at(array, i, values[i]) + "; it must be below " + of + " " + std::to_string(bound) +
           (lowest == 0 ? " and not negative" : ""));
  }
}

void check_sequences(const StepInputs& in, const StepCounts& counts) {
  for (int64_t seq = 0; seq < counts.seqs; ++seq) {
    const int64_t begin = in.q_starts[seq], end = in.q_starts[seq + 1], len = in.kv_lens[seq];
    if (begin < 0 || end < begin || end > counts.tokens) {
      refuse("q_starts goes from " + std::to_string(begin) + " to " + std::to_string(end) + " at row " +
             std::to_string(seq) + "; it must rise from 0 or above to at most num_tokens " +
             std::to_string(counts.tokens) + " and never fall");
    }
    if (begin == end || len <= 0) continue;
    if (len > in.max_pages * in.page_size) {
      refuse(at("kv_lens", seq, len) + "; a row of page_table holds " + std::to_string(in.max_pages) + " pages of " +
             std::to_string(in.page_size) + " tokens");
    }
    const int64_t pages = (len + in.page_size - 1) / in.page_size;
    const std::string row = "page_table[" + std::to_string(seq) + "]";
    check_below(row.c_str(), in.page_table + seq * in.max_pages, pages, 0, in.num_pages, "num_pages");
  }
}

}  // namespace

void check(const StepInputs& in, const StepCounts& counts) {
  check_count("num_tokens", counts.tokens, in.max_tokens);
  check_count("num_seqs", counts.seqs, in.max_seqs);
  check_count("num_rows", counts.rows, in.max_rows);
  if (in.vocab_size > 0) check_below("token_ids", in.token_ids, counts.tokens, 0, in.vocab_size, "vocab_size");
  if (in.max_position > 0) check_below("positions", in.positions, counts.tokens, 0, in.max_position, "max_position");
  if (in.page_size > 0) {
    check_below("slot_mapping", in.slot_mapping, counts.tokens, INT64_MIN, in.num_pages * in.page_size, "all slots,");
    check_sequences(in, counts);
  }
  check_below("logit_rows", in.logit_rows, counts.rows, 0, counts.tokens, "num_tokens");
}

}  // namespace pagedserve::cpu
