# SPDX-License-Identifier: Apache-2.0
"""Where the keys and values of a page lie.

A page of all layers is one run of bytes, so that copying or swapping it is one move:

    page    layer 0 | layer 1 | ...
    layer   keys | values | key scales | value scales            each begins at a multiple of 64 bytes
    keys    [num_kv_heads, page_size, head_dim]   dtype           a head's rows follow one another
    scales  [num_kv_heads, page_size]             float32         int8, float8_e4m3fn and int4 only

Keys and values in int4 are uint8 [num_kv_heads, page_size, head_dim / 2], two codes a byte.
"""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from pagedserve.errors import InvalidInput
from pagedserve.ops import KVLayer

ALIGNMENT = 64
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn, torch.uint8)
QUANTISED = (torch.int8, torch.float8_e4m3fn, torch.uint8)


@dataclass(frozen=True)
class PageLayout:
    """The shape of a page.

    Attributes:
        num_layers, num_kv_heads: 1 or above.
        head_dim: a multiple of 8 up to 256.
        page_size: tokens of a page, 1 or above.
        dtype: of keys and values: float32, bfloat16, float16, int8, float8_e4m3fn, or uint8, which holds int4.

    Raises:
        InvalidInput: a size or the dtype is outside what is supported.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_kv_heads", "head_dim", "page_size"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 1:
                raise InvalidInput(f"PageLayout: {name} is {size!r}; give a whole number, 1 or above")
        if self.head_dim % 8 or self.head_dim > 256:
            raise InvalidInput(f"PageLayout: head_dim is {self.head_dim}; supported: multiples of 8 up to 256")
        if self.dtype not in DTYPES:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise InvalidInput(f"PageLayout: keys and values in {self.dtype}; supported: {names} (which holds int4)")

    @property
    def is_quantised(self) -> bool:
        return self.dtype in QUANTISED

    @property
    def layer_bytes(self) -> int:
        """Bytes of one layer's part of a page."""
        return 2 * (_aligned(self._row_bytes) + _aligned(self._scale_bytes))

    @property
    def page_bytes(self) -> int:
        """Bytes of a page of all layers."""
        return self.num_layers * self.layer_bytes

    @property
    def token_bytes(self) -> float:
        """Bytes that a token takes, in all layers."""
        return self.page_bytes / self.page_size

    @property
    def _row_bytes(self) -> int:
        return self.num_kv_heads * self.page_size * self._row_items * self.dtype.itemsize

    @property
    def _row_items(self) -> int:
        return self.head_dim // 2 if self.dtype == torch.uint8 else self.head_dim

    @property
    def _scale_bytes(self) -> int:
        return self.num_kv_heads * self.page_size * 4 if self.is_quantised else 0

    def pages_for_bytes(self, num_bytes: int) -> int:
        """How many whole pages fit into num_bytes."""
        return max(num_bytes, 0) // self.page_bytes

    def layer(self, storage: Tensor, index: int) -> KVLayer:
        """One layer's keys, values and scales.

        Args:
            storage: [num_pages, page_bytes] uint8.
            index: of the layer, from 0.

        Returns:
            views into storage: k and v [num_pages, page_size, num_kv_heads, head_dim (int4: / 2)], k_scales and
            v_scales [num_pages, page_size, num_kv_heads] float32, or None.
        """
        if not 0 <= index < self.num_layers:
            raise InvalidInput(f"PageLayout: layer {index} of {self.num_layers}; give 0 to {self.num_layers - 1}")
        rows, row_shape = _aligned(self._row_bytes), (self.num_kv_heads, self.page_size, self._row_items)
        scales = _aligned(self._scale_bytes)
        begin = index * self.layer_bytes
        k = _part(storage, begin, self.dtype, row_shape)
        v = _part(storage, begin + rows, self.dtype, row_shape)
        if not self.is_quantised:
            return KVLayer(k, v)
        k_scales = _part(storage, begin + 2 * rows, torch.float32, row_shape[:2])
        v_scales = _part(storage, begin + 2 * rows + scales, torch.float32, row_shape[:2])
        return KVLayer(k, v, k_scales, v_scales)


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def _part(storage: Tensor, begin: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """[num_pages, num_kv_heads, page_size, ...] from byte `begin` of each page, seen token by token."""
    part = storage[:, begin : begin + prod(shape) * dtype.itemsize].view(dtype)
    return part.unflatten(1, shape).transpose(1, 2)
