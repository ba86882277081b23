# SPDX-License-Identifier: Apache-2.0
"""One timed call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pagedserve.ops import Weight

GRIDS = ("default", "quick")
Inputs = dict[str, Any]


@dataclass(frozen=True)
class BenchCase:
    """A call of an op.

    Attributes:
        op: the function of pagedserve.ops.
        name: unique within the op.
        make: fresh arguments of the op, by name.
        torch: the same work by torch's own functions, on what `prepare` made of the arguments.
        torch_way: that way in a few words.
        prepare: what a user of torch would keep ready, as a weight in its dtype; not timed.
        rate: the roof's rate that bounds its arithmetic: "float32", "bfloat16" or "int8".
    """

    op: str
    name: str
    make: Callable[[], Inputs]
    torch: Callable[[Inputs], object]
    torch_way: str
    rate: str = "float32"
    prepare: Callable[[Inputs], Inputs] = lambda inputs: inputs


def nbytes(inputs: Mapping[str, Any]) -> int:
    """Memory that a call's arguments take."""
    return sum(value.nbytes for value in inputs.values() if isinstance(value, Tensor | Weight))
