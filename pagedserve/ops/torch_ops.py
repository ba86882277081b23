# SPDX-License-Identifier: Apache-2.0
"""Every op as torch.ops.pagedserve.NAME, with its mutation in the schema and a fake kernel, for torch.compile.

A torch op takes the op's tensors, outputs included, then its scalars, then the backend's name, and returns nothing. A
weight is four arguments: its format, values, scales and minimums. The functions of pagedserve.ops go this way only
while being traced; otherwise they call the backend themselves.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import torch

from pagedserve.ops.call import prepared
from pagedserve.ops.weight import Weight
from pagedserve.specs import SPECS, OpSpec, WeightSpec


def schema(spec: OpSpec) -> str:
    """An op's signature in torch's language: "(Tensor q, ..., Tensor(a!) out, float scale, str backend) -> ()"."""
    arguments = []
    letters = iter(string.ascii_lowercase)
    for entry in spec.tensors:
        if isinstance(entry, WeightSpec):
            name = entry.name
            arguments += [
                f"str {name}_format",
                f"Tensor {name}_values",
                f"Tensor? {name}_scales",
                f"Tensor? {name}_minimums",
            ]
        else:
            alias = f"({next(letters)}!)" if entry.mutated else ""
            arguments.append(f"Tensor{alias}{'?' if entry.optional else ''} {entry.name}")
    arguments += [f"{entry.type} {entry.name}" for entry in spec.scalars]
    return f"({', '.join([*arguments, 'str backend'])}) -> ()"


def implementation(spec: OpSpec) -> Callable[..., None]:
    """The torch op's kernel, for any device: rebuilds weights, and goes the way of every call."""
    names = [entry.name for entry in spec.scalars]

    def kernel(*arguments: Any) -> None:
        flat = iter(arguments)
        operands = []
        for entry in spec.tensors:
            if isinstance(entry, WeightSpec):
                operands.append(Weight(next(flat), next(flat), next(flat), next(flat)))
            else:
                operands.append(next(flat))
        scalars = {name: next(flat) for name in names}
        sizes = {"q_len": int(scalars["q_len"])} if "q_len" in scalars else {}
        prepared(spec, operands, scalars, next(flat), **sizes)()

    return kernel


def fake(*_: Any) -> None:
    """Outputs are made by the caller: there is nothing to infer."""


def register() -> Any:
    """Defines all ops; they live as long as the library that is returned."""
    library: Any = torch.library.Library("pagedserve", "DEF")  # type: ignore[no-untyped-call]
    for spec in SPECS.values():
        library.define(spec.name + schema(spec))
        library.impl(spec.name, implementation(spec), "CompositeExplicitAutograd")
        torch.library.register_fake(f"pagedserve::{spec.name}", fake, lib=library)
    return library


LIBRARY = register()
