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
def load_values(
    pages,
    rows,
    read,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    KIND: tl.constexpr,
    CONVERTS_FP8: tl.constexpr,
    DOT: tl.constexpr,
):
    """Rows of pages as [rows, BLOCK_D] of DOT, without their scales; zero where not read.

    rows: where each starts, [rows] i64; read: [rows].
    """
    if KIND == "int4":
        byte = tl.arange(0, BLOCK_D // 2)
        mask = read[:, None] & (byte < HEAD_DIM // 2)[None, :]
        pair = tl.load(pages + rows[:, None] + byte[None, :], mask=mask, other=0x88).to(tl.int32)
        return tl.interleave((pair & 15) - 8, (pair >> 4) - 8).to(tl.float32).to(DOT)
    column = tl.arange(0, BLOCK_D)
    mask = read[:, None] & (column < HEAD_DIM)[None, :]
    place = pages + rows[:, None] + column[None, :]
    if KIND == "fp8":
        return fp8_values(tl.load(place, mask=mask, other=0), CONVERTS_FP8).to(DOT)
    if KIND == "int8":
        return tl.load(place, mask=mask, other=0).to(tl.float32).to(DOT)
    return tl.load(place, mask=mask, other=0.0).to(DOT)
