# SPDX-License-Identifier: Apache-2.0
"""A linear layer's matrix in one of four formats."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from pagedserve.errors import InvalidInput

GROUP = 32  # elements along in_features that share a scale
FORMATS = ("f32", "bf16", "q8", "q4")
Packed = TypeVar("Packed")


class _Pack(NamedTuple):
    made: Any
    scales: Tensor | None
    minimums: Tensor | None


# By the tensor of values and dying with it, so that every Weight around one matrix, as torch.compile makes them anew at
# each call, finds what was packed before. A copy of a tensor has packs of its own.
_PACKS: MutableMapping[Tensor, dict[str, _Pack]] = WeakTensorKeyDictionary()


class Weight:
    """The [out_features, in_features] matrix of a linear layer or an embedding. Nothing changes it once made.

    ======  =========================================  ====================================  ==================
    format  values                                     scales                                minimums
    ======  =========================================  ====================================  ==================
    f32     [out_features, in_features] float32
    bf16    [out_features, in_features] bfloat16
    q8      [out_features, in_features] int8           [out_features, in_features / 32] f32
    q4      [out_features, in_features / 2] uint8      [out_features, in_features / 32] f32  like scales
    ======  =========================================  ====================================  ==================

    A q8 value is scale * code, codes -127..127. A q4 value is scale * code + minimum, codes 0..15, two a byte, the even
    in_feature in the low four bits. in_features of both is a multiple of 32.

    Raises:
        InvalidInput: a tensor's shape or dtype is not its format's; the message names both.
    """

    def __init__(
        self, format: str, values: Tensor, scales: Tensor | None = None, minimums: Tensor | None = None
    ) -> None:
        _check(format, values, scales, minimums)
        self.format = format
        self.values, self.scales, self.minimums = values, scales, minimums
        self.out_features = values.shape[0]
        self.in_features = values.shape[1] * (2 if format == "q4" else 1)

    def __repr__(self) -> str:
        return f"Weight({self.format}, [{self.out_features}, {self.in_features}])"

    @staticmethod
    def from_dense(tensor: Tensor, format: str = "f32") -> Weight:
        """Rounds a floating-point [out_features, in_features] tensor to a format.

        q8: scale = amax / 127 of each 32 elements. q4: scale = (max - min) / 15 and minimum = min of each 32.
        """
        if tensor.dim() != 2 or not tensor.dtype.is_floating_point:
            raise InvalidInput(
                f"Weight.from_dense takes a floating-point [out_features, in_features] tensor; "
                f"got {tensor.dtype} {list(tensor.shape)}"
            )
        tensor = tensor.detach()
        if format in ("f32", "bf16"):
            dtype = torch.float32 if format == "f32" else torch.bfloat16
            return Weight(format, tensor.to(dtype).contiguous())
        _check_format(format)
        _check_groups(tensor.shape[1])
        groups = tensor.to(torch.float32).reshape(tensor.shape[0], tensor.shape[1] // GROUP, GROUP)
        if format == "q8":
            scales = groups.abs().amax(dim=2) / 127
            codes = torch.round(groups / torch.where(scales == 0, 1.0, scales)[..., None])
            return Weight("q8", codes.to(torch.int8).reshape(tensor.shape), scales)
        minimums = groups.amin(dim=2)
        scales = (groups.amax(dim=2) - minimums) / 15
        codes = torch.round((groups - minimums[..., None]) / torch.where(scales == 0, 1.0, scales)[..., None])
        codes = codes.clamp(0, 15).to(torch.uint8).reshape(tensor.shape)
        return Weight("q4", codes[:, 0::2] | (codes[:, 1::2] << 4), scales, minimums)

    @staticmethod
    def cat(weights: Sequence[Weight]) -> Weight:
        """One matrix of all rows, in order: q, k and v projections as one. Formats and in_features must agree."""
        if not weights:
            raise InvalidInput("Weight.cat got no weights")
        first = weights[0]
        for weight in weights[1:]:
            if (weight.format, weight.in_features) != (first.format, first.in_features):
                raise InvalidInput(f"Weight.cat got {first!r} and {weight!r}; formats and in_features must agree")
        parts = [_stacked(tensors) for tensors in zip(*(weight.tensors() for weight in weights), strict=True)]
        return Weight(first.format, *parts)

    def tensors(self) -> tuple[Tensor, ...]:
        """values, then scales and minimums where the format has them."""
        return tuple(tensor for tensor in (self.values, self.scales, self.minimums) if tensor is not None)

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix as kept here; a backend's own layout comes on top once it ran."""
        return sum(tensor.nbytes for tensor in self.tensors())

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def requires_grad(self) -> bool:
        return any(tensor.requires_grad for tensor in self.tensors())

    def dense(self) -> Tensor:
        """[out_features, in_features] float32."""
        return self._multiply_out(self.values, self.scales, self.minimums)

    def rows(self, ids: Tensor) -> Tensor:
        """Chosen rows, [len(ids), in_features] float32."""
        ids = ids.long()
        scales = None if self.scales is None else self.scales[ids]
        minimums = None if self.minimums is None else self.minimums[ids]
        return self._multiply_out(self.values[ids], scales, minimums)

    def packed(self, backend: str, pack: Callable[[Weight], Packed]) -> Packed:
        """What a backend made of this matrix for itself: made by pack at the first call, kept as long as values lives.

        What pack returns must not hold values.
        """
        packs = _PACKS.get(self.values)
        if packs is None:
            packs = _PACKS[self.values] = {}
        kept = packs.get(backend)
        if kept is None or kept.scales is not self.scales or kept.minimums is not self.minimums:
            kept = packs[backend] = _Pack(pack(self), self.scales, self.minimums)
        made: Packed = kept.made
        return made

    def _multiply_out(self, values: Tensor, scales: Tensor | None, minimums: Tensor | None) -> Tensor:
        if scales is None:
            return values.to(torch.float32)
        if minimums is not None:
            values = torch.stack((values & 15, values >> 4), dim=2).flatten(1)
        groups = values.to(torch.float32).reshape(*scales.shape, GROUP) * scales[..., None]
        if minimums is not None:
            groups = groups + minimums[..., None]
        return groups.flatten(1)


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """torch.cat; on the CPU in this thread alone.

    torch wakes all of its threads for each of some hundred matrices: beside another busy process that took sixty times
    as long as the copies.
    """
    if tensors[0].device.type != "cpu":
        return torch.cat(list(tensors))
    raw = np.concatenate([tensor.detach().view(torch.uint8).numpy() for tensor in tensors])
    return torch.from_numpy(raw).view(tensors[0].dtype)


def _check_format(format: str) -> None:
    if format not in FORMATS:
        raise InvalidInput(f"weight format {format!r} is not supported; choose from {', '.join(FORMATS)}")


def _check_groups(in_features: int) -> None:
    if in_features % GROUP:
        raise InvalidInput(
            f"in_features is {in_features}; q8 and q4 weights need a multiple of {GROUP}: keep this one in f32 or bf16"
        )


def _check(format: str, values: Tensor, scales: Tensor | None, minimums: Tensor | None) -> None:
    _check_format(format)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "q8": torch.int8, "q4": torch.uint8}[format]
    if values.dim() != 2 or values.dtype != dtype or not values.is_contiguous():
        raise InvalidInput(
            f"{format} weight: values is {values.dtype} {list(values.shape)} with strides {list(values.stride())}; "
            f"give a contiguous two-dimensional {dtype} tensor"
        )
    needed = {"f32": 0, "bf16": 0, "q8": 1, "q4": 2}[format]
    for index, (name, tensor) in enumerate((("scales", scales), ("minimums", minimums))):
        if index >= needed:
            if tensor is not None:
                raise InvalidInput(f"{format} weight: {name} is given, but the format has none")
            continue
        in_features = values.shape[1] * (2 if format == "q4" else 1)
        _check_groups(in_features)
        shape = [values.shape[0], in_features // GROUP]
        if tensor is None or tensor.dtype != torch.float32 or list(tensor.shape) != shape or not tensor.is_contiguous():
            got = None if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
            raise InvalidInput(f"{format} weight: {name} is {got}; give a contiguous float32 tensor of shape {shape}")
        if tensor.device != values.device:
            raise InvalidInput(f"{format} weight: {name} is on {tensor.device}, values on {values.device}")
