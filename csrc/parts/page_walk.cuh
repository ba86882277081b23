// SPDX-License-Identifier: Apache-2.0
// page_walk.cuh: from a sequence's tokens to the pages that hold them, without a division per token.
#pragma once

#include "../target/target.cuh"

namespace pagedserve::parts {

// How far a walk gets in one step of a fixed number of tokens.
struct PageStep {
  int32_t pages, rows, page_size;
};

PAGEDSERVE_DEVICE PageStep page_step(int32_t tokens, int32_t page_size) {
  return {tokens / page_size, tokens % page_size, page_size};
}

// A token's place: column `page` of its sequence's page table, row `row` of that page.
struct PageWalk {
  int32_t page, row;

  PAGEDSERVE_DEVICE void start(int32_t token, int32_t page_size) {
    page = token / page_size;
    row = token % page_size;
  }
  PAGEDSERVE_DEVICE void advance(const PageStep& step) {
    page += step.pages;
    row += step.rows;
    if (row >= step.page_size) row -= step.page_size, ++page;
  }
};

}  // namespace pagedserve::parts
