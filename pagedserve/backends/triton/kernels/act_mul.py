# SPDX-License-Identifier: Apache-2.0
# out = act(gate) * up; silu(g) = g / (1 + exp(-g)), gelu(g) = g / 2 * (1 + tanh(sqrt(2 / pi) * (g + 0.044715 g^3)))
#
#   gate_up   [num_tokens, 2 * intermediate]   T    gate in the first half
#   out       [num_tokens, intermediate]       T
#
# Work     program = BLOCK columns of one token
# Traffic  gate_up once, out once
# Bound    memory
# Source   Shazeer 2020 (GLU variants); Hendrycks and Gimpel 2016 (GELU)
# Oracle   pagedserve/backends/reference/fused.py::silu_mul, gelu_mul

import triton
import triton.language as tl


@triton.jit
def act_mul_kernel(
    gate_up,
    out,
    gate_up_stride,
    out_stride,
    INTERMEDIATE: tl.constexpr,
    GELU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < INTERMEDIATE
    gate_up += token * gate_up_stride
    gate = tl.load(gate_up + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + INTERMEDIATE + columns, mask=mask, other=0.0).to(tl.float32)
    # gelu by (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)); 1.5957691 = 2 * sqrt(2 / pi)
    slope = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate) if GELU else gate
    made = gate / (1.0 + tl.exp(-slope)) * up
    tl.store(out + token * out_stride + columns, made.to(out.dtype.element_ty), mask=mask)
