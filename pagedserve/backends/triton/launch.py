# SPDX-License-Identifier: Apache-2.0
"""A launch as data: a kernel, its grid, and its arguments. Run on a device, interpreted, or compiled ahead of time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from triton import JITFunction

from pagedserve.backends.operands import OPERANDS
from pagedserve.backends.triton.target import Config, Target


@dataclass(frozen=True)
class Launch:
    """One launch of one kernel.

    Attributes:
        grid: programs along each axis; a launch with a 0 among them does nothing. Only the first may be beyond 65,535,
            CUDA's limit of the others, so tokens go along it.
        arguments: by the kernel's names: tensors, numbers, None for a tensor that the call has not, and named tuples
            of these, which kernels/operands.py defines.
        constants: what the kernel is compiled for, by the kernel's names.
        num_warps, num_stages: of the compiled kernel.
        measured: the run that chose the configuration; None: not yet measured.
    """

    kernel: JITFunction[Any]
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    measured: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__)

    @property
    def tensors(self) -> list[Tensor]:
        """Those among the arguments."""
        return [value for _, value in leaves(self.arguments) if isinstance(value, Tensor)]

    @property
    def num_programs(self) -> int:
        total = 1
        for count in self.grid:
            total *= count
        return total

    @classmethod
    def configured(
        cls,
        kernel: JITFunction[Any],
        grid: tuple[int, ...],
        arguments: Mapping[str, Any],
        constants: Mapping[str, Any],
        config: Config,
    ) -> Launch:
        """A launch with a table's warps and stages."""
        own = {name: config.use[name] for name in ("num_warps", "num_stages") if name in config.use}
        return cls(kernel, grid, arguments, constants, **own, measured=config.measured)

    def run(self) -> None:
        """On the device of its tensors. Compiles at the first call of its kind, unless Triton's cache has it."""
        if self.num_programs:
            self.kernel[self.grid](**self._everything())

    def compile(self) -> Any:
        """The compiled kernel for the active driver's target, from Triton's cache where it is there already."""
        return self.kernel.warmup(grid=self.grid, **self._everything())

    def describe(self) -> str:
        """The launch in a line."""
        grid = " x ".join(map(str, self.grid))
        sizes = ", ".join(f"{name} {value}" for name, value in leaves(self.constants))
        chosen = "not yet measured" if self.measured is None else ", ".join(map(str, self.measured.values()))
        return (
            f"{self.name}: {grid} = {self.num_programs} programs of {self.num_warps} warps, {self.num_stages} stages "
            f"({chosen}); {sizes}"
        )

    def _everything(self) -> dict[str, Any]:
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return {**self.arguments, **self.constants, **options}


def leaves(named: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values, with the fields of a named tuple in its place."""
    for name, value in named.items():
        yield from value._asdict().items() if isinstance(value, tuple) else ((name, value),)


def as_op(
    build: Callable[..., list[Launch]], target: Callable[..., Target], run: Callable[[list[Launch]], None]
) -> Callable[..., None]:
    """An op of the table of backends, with the name of what builds its launches.

    Its attribute build(target, *operands) gives its launches, describe(*operands) their lines; neither runs anything.

    Args:
        build: takes the target, then the op's operands, or the one value of `OPERANDS` that holds them.
        target: of a call's operands.
        run: runs launches.
    """

    name = build.__name__
    kind = OPERANDS.get(name)

    def launches(target: Target, *operands: Any) -> list[Launch]:
        return build(target, *operands) if kind is None else build(target, kind.of(name, *operands))

    def op(*operands: Any) -> None:
        run(launches(target(*operands), *operands))

    def describe(*operands: Any) -> list[str]:
        return [launch.describe() for launch in launches(target(*operands), *operands)]

    op.__name__ = name
    if kind is None:
        op.__annotations__ = {name: kind for name, kind in build.__annotations__.items() if name != "target"}
    op.__annotations__["return"] = None
    op.describe, op.build = describe, launches  # type: ignore[attr-defined]
    return op
