# SPDX-License-Identifier: Apache-2.0
"""GGUF tensors as ops.Weight: the formats with a scale per 32 elements exactly, the others by way of float32.

    F32, F16          f32     the same numbers
    BF16              bf16    the same numbers
    Q8_0, Q5_0        q8      the same numbers: code * scale
    Q4_0, Q4_1, Q4_K  q4      the same numbers: code * scale + minimum (Q4_0: minimum = -8 * scale)
    Q5_1, Q5_K        q8      rounded once more: they have a minimum, q8 has none
    Q2_K, Q3_K, Q6_K  q8      rounded once more: a scale per 16 elements

Any of them can be had as f32, which holds the same numbers, or rounded to another format.

Source: ggml's block layouts; the gguf package's dequantisers for the last two rows.
Oracle: gguf.quants.dequantize, tests/models/test_quant.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pagedserve.models.extras import optional
from pagedserve.models.gguf_file import GgufFile
from pagedserve.ops import Weight

_ROWS_AT_ONCE = 4096  # of a tensor that goes by way of float32, to bound what that takes


def read_weight(file: GgufFile, name: str, format: str | None = None, rows: np.ndarray | None = None) -> Weight:
    """A two-dimensional tensor of the file as a Weight.

    Args:
        format: of the Weight, rounded once from the file's own numbers; None: as the table above says.
        rows: its rows in another order.
    """
    kind, data = file.tensors[name].type.name, file.data(name)
    if rows is not None:
        data = data[rows]
    if kind in _EXACT:
        return in_format(_EXACT[kind](data), format)
    chunks = [data[begin : begin + _ROWS_AT_ONCE] for begin in range(0, len(data), _ROWS_AT_ONCE)]
    return Weight.cat([Weight.from_dense(_dequantised(chunk, kind), format or "q8") for chunk in chunks])


def read_vector(file: GgufFile, name: str) -> Tensor:
    """A one-dimensional tensor of the file, [size] float32. Norms and biases are never quantised."""
    return _EXACT[file.tensors[name].type.name](file.data(name)).dense()[0]


def in_format(weight: Weight, format: str | None) -> Weight:
    """The weight rounded to a format; itself where it has that format, or none is asked for.

    A few rows at a time, so that it never stands whole in float32 beside itself.
    """
    if format in (None, weight.format):
        return weight
    starts = range(0, weight.out_features, _ROWS_AT_ONCE)
    chunks = [torch.arange(begin, min(begin + _ROWS_AT_ONCE, weight.out_features)) for begin in starts]
    return Weight.cat([Weight.from_dense(weight.rows(rows), format) for rows in chunks])


def _dequantised(data: np.ndarray, kind: str) -> Tensor:
    """[rows, row_bytes] uint8 -> [rows, in_features] float32."""
    quants = optional("gguf.quants", f"a {kind} tensor")
    return torch.from_numpy(quants.dequantize(data, quants.GGMLQuantizationType[kind]))


def _blocks(data: np.ndarray, *fields: tuple[str, str] | tuple[str, str, int | tuple[int, int]]) -> np.ndarray:
    """[rows, blocks] records with those fields."""
    return data.view(np.dtype(list(fields)))


def _tensor(values: np.ndarray, rows: int) -> Tensor:
    """[rows, ...] flattened to two dimensions; a copy of what is the file's own memory, which cannot be written."""
    return torch.from_numpy(np.require(values, requirements=("C", "W")).reshape(rows, -1))


def _f32(data: np.ndarray) -> Weight:
    return Weight("f32", _tensor(data.view("<f4"), len(data)))


def _f16(data: np.ndarray) -> Weight:
    return Weight("f32", _tensor(data.view("<f2").astype(np.float32), len(data)))


def _bf16(data: np.ndarray) -> Weight:
    return Weight("bf16", _tensor(data.view("<i2"), len(data)).view(torch.bfloat16))


def _q8_0(data: np.ndarray) -> Weight:
    block = _blocks(data, ("scale", "<f2"), ("codes", "i1", 32))
    scales = _tensor(block["scale"].astype(np.float32), len(data))
    codes = _tensor(block["codes"], len(data))
    if len(codes) and int(codes.min()) < -127:  # no quantiser writes it, and a q8 code cannot be it
        dense = codes.to(torch.float32).view(len(data), -1, 32) * scales[..., None]
        return Weight.from_dense(dense.flatten(1), "q8")
    return Weight("q8", codes, scales)


def _q5_0(data: np.ndarray) -> Weight:
    block = _blocks(data, ("scale", "<f2"), ("high", "<u4"), ("low", "u1", 16))
    bits = (block["high"][..., None] >> np.arange(32, dtype=np.uint32)).astype(np.uint8) & 1
    low = np.concatenate((block["low"] & 15, block["low"] >> 4), axis=-1)
    codes = (low | bits << 4).astype(np.int8) - np.int8(16)
    return Weight("q8", _tensor(codes, len(data)), _tensor(block["scale"].astype(np.float32), len(data)))


def _pack(codes: np.ndarray) -> np.ndarray:
    """Pairs of neighbouring codes, [..., n] with one in the low four bits of each byte -> [..., n / 2]."""
    pairs = codes.view("<u2")
    return ((pairs & 0x0F) | (pairs >> 4 & 0xF0)).astype(np.uint8)


def _q4(codes: np.ndarray, scales: np.ndarray, minimums: np.ndarray) -> Weight:
    rows = len(codes)
    return Weight("q4", _tensor(codes, rows), _tensor(scales, rows), _tensor(minimums, rows))


def _halves(codes: np.ndarray) -> np.ndarray:
    """ggml's order, elements 0..15 in the low four bits and 16..31 in the high ones, to neighbours in a byte."""
    return np.concatenate((_pack(codes), _pack(codes >> 4)), axis=-1)


def _q4_0(data: np.ndarray) -> Weight:
    block = _blocks(data, ("scale", "<f2"), ("codes", "u1", 16))
    scales = block["scale"].astype(np.float32)
    return _q4(_halves(block["codes"]), scales, -8 * scales)


def _q4_1(data: np.ndarray) -> Weight:
    block = _blocks(data, ("scale", "<f2"), ("minimum", "<f2"), ("codes", "u1", 16))
    return _q4(_halves(block["codes"]), block["scale"].astype(np.float32), block["minimum"].astype(np.float32))


def _q4_k(data: np.ndarray) -> Weight:
    """256 elements: eight groups of 32, each with a scale and a minimum of 6 bits under two common factors."""
    block = _blocks(data, ("scale", "<f2"), ("minimum", "<f2"), ("factors", "u1", (3, 4)), ("codes", "u1", (4, 32)))
    low, middle, high = np.moveaxis(block["factors"], -2, 0)  # [rows, blocks, 4]
    scale_codes = np.concatenate((low & 63, (high & 15) | (low >> 6) << 4), axis=-1)
    minimum_codes = np.concatenate((middle & 63, (high >> 4) | (middle >> 6) << 4), axis=-1)
    scales = block["scale"].astype(np.float32)[..., None] * scale_codes.astype(np.float32)
    minimums = -(block["minimum"].astype(np.float32)[..., None] * minimum_codes.astype(np.float32))
    # 32 bytes hold group 2 i in their low four bits and group 2 i + 1 in the high ones.
    codes = np.stack((_pack(block["codes"]), _pack(block["codes"] >> 4)), axis=-2)
    return _q4(codes, scales, minimums)


_EXACT: dict[str, Callable[[np.ndarray], Weight]] = {
    "F32": _f32,
    "F16": _f16,
    "BF16": _bf16,
    "Q8_0": _q8_0,
    "Q5_0": _q5_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q4_K": _q4_k,
}
