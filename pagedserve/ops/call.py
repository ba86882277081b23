# SPDX-License-Identifier: Apache-2.0
"""The way of every call: check it once, choose a backend, run it; or hand it to torch's dispatcher while tracing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pagedserve.errors import InvalidInput
from pagedserve.ops import rules
from pagedserve.ops.check import MAKE, Made, Operand, check_scalars, element_type, prepare
from pagedserve.ops.registry import Call, choose, describe, refusals, rows_of
from pagedserve.ops.weight import Weight
from pagedserve.specs import SPECS, OpSpec, TensorSpec

Scalar = int | float | bool
PLAIN = Tensor.__torch_dispatch__  # a subclass with its own computes where it says, not at an address


def run(
    spec: OpSpec, operands: Sequence[Operand], scalars: Mapping[str, Scalar], backend: str, **sizes: int
) -> tuple[Any, ...]:
    """Checks and runs a call.

    Args:
        operands: one for each of spec.tensors, in order.
        scalars: of spec.scalars, in order.
        sizes: sizes of axes that no tensor of the call need give.

    Returns:
        The operands, with the outputs that were made.
    """
    made, bound = _checked(spec, operands, scalars, sizes)
    if torch.compiler.is_compiling() or _without_memory(spec, made) is not None:
        getattr(torch.ops.pagedserve, spec.name)(*flatten(made), *scalars.values(), backend)
        return made
    return _chosen(spec, made, bound, scalars, backend)()


def prepared(
    spec: OpSpec, operands: Sequence[Operand], scalars: Mapping[str, Scalar], backend: str, **sizes: int
) -> Callable[[], tuple[Any, ...]]:
    """As run, but only checks, chooses and makes outputs: the call is made, on what the tensors then hold, by what
    comes back, as often as it is called."""
    made, bound = _checked(spec, operands, scalars, sizes)
    name = _without_memory(spec, made)
    if name is not None:
        raise InvalidInput(
            f"{spec.name}: {name} has no memory to compute on: its storage was resized to 0, or it stands for a tensor "
            f"inside a torch transform that torch.ops.pagedserve.{spec.name} has no rule for; give a tensor of numbers"
        )
    return _chosen(spec, made, bound, scalars, backend)


def _without_memory(spec: OpSpec, made: Sequence[Made]) -> str | None:
    """A tensor with elements and no address: one of FakeTensorMode, of a functional transform, of a freed storage."""
    for entry, operand in zip(spec.tensors, made, strict=True):
        if isinstance(operand, Tensor):
            try:
                absent = type(operand).__torch_dispatch__ is not PLAIN or (
                    operand.data_ptr() == 0 and operand.numel() > 0
                )
            except RuntimeError:  # torch's way of saying so for some of them
                absent = True
            if absent:
                return entry.name
    return None


def _chosen(
    spec: OpSpec, made: tuple[Made, ...], bound: dict[str, int], scalars: Mapping[str, Scalar], backend: str
) -> Callable[[], tuple[Any, ...]]:
    if not isinstance(backend, str):
        raise InvalidInput(f'{spec.name}: backend is {backend!r}; give "auto" or the name of a backend')
    named = _named(spec, made)
    call = facts(spec, named, scalars)
    rules.check_values(spec.name, named, bound, call.device)
    function = choose(call, backend)

    def again() -> tuple[Any, ...]:
        function(*made, *scalars.values())
        return made

    return again


def _checked(
    spec: OpSpec, operands: Sequence[Operand], scalars: Mapping[str, Scalar], sizes: dict[str, int]
) -> tuple[tuple[Made, ...], dict[str, int]]:
    """Everything about a call but the values that its tensors hold. Returns operands with outputs made, and sizes."""
    check_scalars(spec, scalars)
    made, bound = prepare(spec, operands, sizes)
    rules.check_sizes(spec.name, _named(spec, made), bound, scalars)
    return made, bound


def _named(spec: OpSpec, operands: Sequence[Made]) -> dict[str, Made]:
    return {entry.name: operand for entry, operand in zip(spec.tensors, operands, strict=True)}


def flatten(operands: Sequence[Made]) -> list[Any]:
    """Operands as the torch op takes them: a weight is its format and its tensors."""
    flat: list[Any] = []
    for operand in operands:
        if isinstance(operand, Weight):
            flat += [operand.format, operand.values, operand.scales, operand.minimums]
        else:
            flat.append(operand)
    return flat


def facts(spec: OpSpec, named: Mapping[str, Made], scalars: Mapping[str, Scalar]) -> Call:
    """What a backend may refuse of a call."""
    tensors = {name: operand for name in spec.dispatch if isinstance(operand := named[name], Tensor)}
    used = [name for name in spec.features if named.get(name) is not None or scalars.get(name)]
    dtypes = tuple(element_type(spec, name, tensor) for name, tensor in tensors.items())
    return Call(spec.name, next(iter(tensors.values())).device.type, dtypes, tuple(used))


@dataclass(frozen=True)
class Explanation:
    """Who would run a call, why each other would not, and what the call costs."""

    op: str
    backend: str | None
    refused: Mapping[str, Sequence[str]]
    able: Sequence[str]
    flops: int
    bytes: int
    launches: Mapping[str, Sequence[str]]  # of the able backends that tell

    def __str__(self) -> str:
        lines = [f"{self.op}: {self.backend or 'no backend can run it'}"]
        for name in self.able:
            lines.append(f"  {name}: can run it" + (", first in the table" if name == self.backend else ""))
            lines += [f"    {line}" for line in self.launches.get(name, ())]
        for name, reasons in self.refused.items():
            lines.append(f"  {name}: {'; '.join(reasons)}")
        per_byte = self.flops / max(self.bytes, 1)
        lines.append(f"  {self.flops:,} flops, {self.bytes:,} bytes, {per_byte:.2f} flops a byte")
        return "\n".join(lines)


def explain(op: str, inputs: Mapping[str, object]) -> Explanation:
    """Which backend "auto" takes for a call, why the others were refused, and the call's flops and bytes.

    Args:
        op: an op's name.
        inputs: its arguments by name, as the op's function takes them. Nothing is computed.

    Raises:
        InvalidInput: there is no such op or argument, or the arguments do not fit each other.
    """
    rows = rows_of(op)
    spec = SPECS[op]
    known = {entry.name for entry in (*spec.tensors, *spec.scalars)}
    settings = {"return_lse", "num_top", "lse_base"}
    for name in inputs:
        if name not in known | settings:
            raise InvalidInput(f"{op} has no argument {name!r}; it has {', '.join(sorted(known))}")
    operands: list[Any] = []
    for entry in spec.tensors:
        given = inputs.get(entry.name)
        wanted = isinstance(entry, TensorSpec) and entry.made and (not entry.optional or inputs.get("return_lse"))
        operands.append(MAKE if given is None and wanted else given)
    scalars: dict[str, Any] = {}
    for scalar in spec.scalars:
        given = inputs.get(scalar.name)
        scalars[scalar.name] = scalar.default if given is None else given
    check_scalars(spec, scalars)
    num_top = inputs.get("num_top", 0)
    if not isinstance(num_top, int) or num_top < 0:
        raise InvalidInput(f"{op}: num_top is {num_top!r}; give a whole number, 0 or above")
    sizes = {"q_len": scalars.get("q_len", 1), "num_top": num_top}
    made, bound = prepare(spec, operands, sizes)
    named = _named(spec, made)
    rules.check_sizes(op, named, bound, scalars)
    call = facts(spec, named, scalars)
    rules.check_values(op, named, bound, call.device)
    against = {row.backend: refusals(row, call) for row in rows}
    able = [name for name, found in against.items() if not found]
    counts = {**bound, **rules.count(spec, named, bound)}
    told = {row.backend: describe(row, *made, *scalars.values()) for row in rows if row.backend in able}
    return Explanation(
        op=op,
        backend=next((row.backend for row in rows if row.automatic and row.backend in able), None),
        refused={name: found for name, found in against.items() if found},
        able=able,
        flops=int(spec.flops(counts)),
        bytes=int(spec.bytes(counts)),
        launches={name: lines for name, lines in told.items() if lines},
    )
