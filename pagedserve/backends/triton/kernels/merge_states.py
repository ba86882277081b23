# SPDX-License-Identifier: Apache-2.0
# out = sum_i exp(lse_i - lse) o_i, out_lse = log sum_i exp(lse_i); states with lse -inf add nothing, whatever they hold
#
#   o         [num_states, num_tokens, num_heads, head_dim]   T
#   lse       [num_states, num_tokens, num_heads]             f32   natural log
#   out       [num_tokens, num_heads, head_dim]               T
#   out_lse   [num_tokens, num_heads]                         f32
#
# Work     program = one head of one token
# Sums     f32, state by state in their order
# Traffic  o once
# Bound    memory
# Source   Dao, Haziza, Massa, Sizov 2023 (Flash-Decoding)
# Oracle   pagedserve/backends/reference/attention.py::merge_states

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_states", "num_rows"])
def merge_states_kernel(
    o,
    lse,
    out,
    out_lse,
    num_states,
    num_rows,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < HEAD_DIM
    largest = tl.load(lse + row)
    for state in range(1, num_states):
        largest = tl.maximum(largest, tl.load(lse + state * num_rows.to(tl.int64) + row))
    # -inf - -inf is NaN: a row that no state saw keeps its sum at zero.
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    total = 0.0
    made = tl.full([BLOCK], 0.0, tl.float32)
    for state in range(0, num_states):
        place = state * num_rows.to(tl.int64) + row
        state_lse = tl.load(lse + place)
        weight = tl.exp(state_lse - shift)
        total += weight
        held = mask & (state_lse != float("-inf"))
        made += weight * tl.load(o + place * HEAD_DIM + column, mask=held, other=0.0).to(tl.float32)
    made = made / tl.where(total == 0.0, 1.0, total)
    tl.store(out + row * HEAD_DIM + column, made.to(out.dtype.element_ty), mask=mask)
    tl.store(out_lse + row, shift + tl.log(total))
