# SPDX-License-Identifier: Apache-2.0
# Rows of quantised pages: value = code * scale, a scale for each token's head
#
#   kind   a row holds                     code                                     scale
#   int8   head_dim bytes                  -127 .. 127                              amax / 127
#   fp8    head_dim bytes                  float8_e4m3fn                            amax / 448
#   int4   head_dim / 2 bytes              -7 .. 7, biased by 8; even elements low  amax / 7
#
# Codes are exact in bfloat16 and float16, so a matrix product takes them as they are, and scales multiply its columns.
# Source   OCP 8-bit floating point specification, 2023 (e4m3)
# Oracle   pagedserve/backends/reference/cache.py::quantise

import triton
import triton.language as tl

from pagedserve.backends.triton.kernels.operands import load_rows


@triton.jit
def fp8_values(codes, CONVERTS_FP8: tl.constexpr):
    """float32 of e4m3 codes, uint8."""
    if CONVERTS_FP8:
        return codes.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    wide = codes.to(tl.int32)
    # The same bits as a float16 are 2^-8 of the value: exponents are biased by 7 and by 15.
    bits = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    value = bits.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    return tl.where((wide & 0x7F) == 0x7F, float("nan"), value)


@triton.jit
def fp8_codes(x):
    """e4m3 codes, uint8, of float32 of magnitude up to 448, rounded to nearest even."""
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    rounded = magnitude + 0x7FFFF + ((magnitude >> 20) & 1)
    normal = (rounded >> 20) - (120 << 3)  # exponents are biased by 127 and by 7
    small = nearest(tl.abs(x) * 512.0).to(tl.int32)  # below 2^-6 codes count 2^-9
    code = tl.where(magnitude < 0x3C800000, small, normal)
    code = tl.where(magnitude > 0x7F800000, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def nearest(x):
    """x rounded to the nearest whole number, to even between two, for |x| below 2^22."""
    return (x + 12582912.0) - 12582912.0  # 1.5 * 2^23: its neighbours are 1 apart


@triton.jit
def load_values(base, starts, read, SHAPE: tl.constexpr, DOT: tl.constexpr):
    """Rows of pages as [rows, block_d] of DOT, without their scales; zero where not read.

    starts: where each row starts, [rows] i64; read: [rows]; SHAPE: an AttentionShape.
    """
    if SHAPE.kind == "int4":
        byte = tl.arange(0, SHAPE.block_d // 2)
        mask = read[:, None] & (byte < SHAPE.head_dim // 2)[None, :]
        pair = tl.load(base + starts[:, None] + byte[None, :], mask=mask, other=0x88).to(tl.int32)
        return tl.interleave((pair & 15) - 8, (pair >> 4) - 8).to(tl.float32).to(DOT)
    values = load_rows(base, starts, read, SHAPE.head_dim, SHAPE.block_d)
    if SHAPE.kind == "fp8":
        return fp8_values(values, SHAPE.converts_fp8).to(DOT)
    if SHAPE.kind == "int8":
        return values.to(tl.float32).to(DOT)
    return values.to(DOT)
