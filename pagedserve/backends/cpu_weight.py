# SPDX-License-Identifier: Apache-2.0
"""A weight as the CPU kernels read it: panels of 16 rows, one contiguous buffer."""

from __future__ import annotations

from typing import Any

from pagedserve import _C
from pagedserve.memory import Arena

ARENA = Arena()  # of all packed weights: layers packed one after the other lie one after the other


class PackedWeight:
    """A packed copy of an `ops.Weight`.

    Attributes:
        format: `_C.WeightFormat`.
        address: of the packed bytes, for the params structs; valid as long as this object lives.
    """

    def __init__(self, weight: Any, team: _C.Team) -> None:
        self.format = getattr(_C.WeightFormat, weight.format)
        scales, minimums = weight.scales, weight.minimums
        half = scales is not None and all(
            _C.fits_half(tensor.data_ptr(), tensor.numel()) for tensor in (scales, minimums) if tensor is not None
        )
        size = _C.packed_bytes(self.format, weight.out_features, weight.in_features, half)
        self._memory = ARENA.take(size)
        self.address = self._memory.data_ptr()
        params = _C.PackWeightParams(
            data=weight.values.data_ptr(),
            scales=0 if scales is None else scales.data_ptr(),
            minimums=0 if minimums is None else minimums.data_ptr(),
            packed=self.address,
            out_features=weight.out_features,
            in_features=weight.in_features,
            half_scales=half,
            format=self.format,
        )
        _C.pack_weight(params, team)
