# SPDX-License-Identifier: Apache-2.0
"""What launches are made for: an architecture and its table of configurations."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import torch

from pagedserve.errors import BackendUnavailable

TABLES = (80, 90)  # those of configs/


@dataclass(frozen=True)
class Config:
    """What to compile and launch with, and the run that chose it; None: not yet measured."""

    use: Mapping[str, int]
    measured: Mapping[str, Any] | None

    def __getitem__(self, name: str) -> int:
        return self.use[name]


@dataclass(frozen=True)
class Target:
    """An NVIDIA architecture.

    Attributes:
        capability: major * 10 + minor, as 90 of an H200.
        num_processors: streaming multiprocessors, which work is spread over.
        instead: values that stand for an op's row of the table, as a search for better ones tries them.
    """

    capability: int
    num_processors: int = 132
    instead: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def table(self) -> int:
        """The architecture whose table is used: the newest that is not newer."""
        return max((arch for arch in TABLES if arch <= self.capability), default=TABLES[0])

    @property
    def converts_fp8(self) -> bool:
        """Whether hardware converts float8_e4m3fn; elsewhere kernels do it with integers."""
        return self.capability >= 89

    def config(self, op: str, **shape: int) -> Config:
        """The first row of an op's table that a shape falls into."""
        if op in self.instead:
            return Config(self.instead[op], None)
        found = row(read_table(self.table), op, shape)
        return Config(found["use"], found["measured"])


@functools.cache
def read_table(arch: int) -> dict[str, list[dict[str, Any]]]:
    """configs/sm_ARCH.json: rows of each op, the first that fits counts.

    A row holds `when` (inclusive bounds of sizes), `use` (what to compile and launch with) and `measured` (the run that
    chose it, or null: not yet measured).
    """
    text = resources.files(__package__).joinpath(f"configs/sm_{arch}.json").read_text(encoding="utf-8")
    table: dict[str, list[dict[str, Any]]] = json.loads(text)
    return table


def row(table: Mapping[str, list[dict[str, Any]]], op: str, shape: Mapping[str, int]) -> dict[str, Any]:
    """The first row of an op that a shape falls into; the last one of each op has no bounds."""
    for entry in table[op]:
        if all(low <= shape[name] <= high for name, (low, high) in entry["when"].items()):
            return entry
    raise LookupError(f"the table has no row of {op} for {dict(shape)}")


@functools.cache
def of_device(index: int) -> Target:
    """The target of a CUDA device."""
    properties = torch.cuda.get_device_properties(index)
    if properties.major < 8:
        raise BackendUnavailable(
            f"{properties.name} has compute capability {properties.major}.{properties.minor}; the Triton kernels need "
            f"8.0 or above: use backend='reference'"
        )
    return Target(properties.major * 10 + properties.minor, properties.multi_processor_count)


# What the interpreter pretends to be.
INTERPRETED = Target(90)
