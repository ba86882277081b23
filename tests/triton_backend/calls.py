# SPDX-License-Identifier: Apache-2.0
"""Calls of ops by launches of the test's own making: for any target, in any order of programs, with other kernels."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from pagedserve import ops
from pagedserve.backends.triton import interpreted
from pagedserve.backends.triton.interpreter import interpret
from pagedserve.backends.triton.launch import Launch
from pagedserve.backends.triton.target import INTERPRETED, Target
from pagedserve.ops.agreement import Results, results


def through(op: str, arguments: dict[str, Any], runs: Callable[..., None]) -> tuple[Tensor, ...]:
    """An op's results, by a function that takes its operands in a backend's place."""
    with mock.patch("pagedserve.ops.call.choose", return_value=runs):
        returned = getattr(ops, op)(**arguments)
    return returned if isinstance(returned, tuple) else (returned,)


def all_results(op: str, arguments: dict[str, Any], runs: Callable[..., None]) -> Results:
    """What a call returns and what it writes, by a function in a backend's place."""
    with mock.patch("pagedserve.ops.call.choose", return_value=runs):
        return results(op, arguments, "auto")


def run(
    op: str,
    arguments: dict[str, Any],
    *,
    target: Target = INTERPRETED,
    order: int | None = 0,
    change: Callable[[Launch], Launch] = lambda launch: launch,
) -> tuple[Tensor, ...]:
    """What an op returns, interpreted."""
    return through(op, arguments, interpreting(op, target=target, order=order, change=change))


def interpreting(
    op: str,
    *,
    target: Target = INTERPRETED,
    order: int | None = 0,
    change: Callable[[Launch], Launch] = lambda launch: launch,
) -> Callable[..., None]:
    """What stands in a backend's place and interprets. change: what is run instead of each launch."""
    build = getattr(interpreted, op).build
    return lambda *operands: interpret([change(launch) for launch in build(target, *operands)], order=order)


def collect(op: str, arguments: dict[str, Any], target: Target) -> list[Launch]:
    """An op's launches, not run."""
    found: list[Launch] = []
    through(op, arguments, lambda *operands: found.extend(getattr(interpreted, op).build(target, *operands)))
    return found


def same_bits(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> bool:
    """NaN is equal to itself here, and 0 is not -0."""
    return all(torch.equal(_bits(a), _bits(b)) for a, b in zip(ours, theirs, strict=True))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)
