# SPDX-License-Identifier: Apache-2.0
"""Runs launches on CPU tensors, program by program, and watches what they do.

What it sees: an unmasked access outside the launch's tensors; use of a masked-off element (poison); an element that two
programs touch without order, one of them writing; results that depend on the order of programs (run it in several);
arithmetic in bfloat16. What it does not: threads within a program, layouts, shared memory and its pipelines; those are
the compiler's, and are seen by running what it emitted.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np

from pagedserve.backends.triton.interpreter.builder import Builder, Unsupported
from pagedserve.backends.triton.interpreter.language import Language
from pagedserve.backends.triton.interpreter.memory import Memory, OutOfBounds, Race
from pagedserve.backends.triton.launch import Launch


def interpret(launches: Iterable[Launch], *, order: int | None = 0) -> None:
    """Runs launches one after another.

    Args:
        order: seed of the order in which programs of a launch run; None: as they are numbered.

    Raises:
        OutOfBounds, Race, Unsupported: what a program did.
    """
    for launch in launches:
        _interpret(launch, order)


def _interpret(launch: Launch, order: int | None) -> None:
    memory = Memory(launch.tensors, launch.num_programs)
    builder = Builder(memory)
    language = Language(builder)
    function = language.function(launch.kernel.fn)
    arguments = {name: language.argument(value) for name, value in launch.arguments.items()} | dict(launch.constants)
    grid = (*launch.grid, 1, 1)[:3]
    builder.set_grid_dim(*grid)
    programs = list(range(launch.num_programs))
    if order is not None:
        random.Random(order).shuffle(programs)
    for program in programs:
        memory.program = program
        builder.set_grid_idx(program % grid[0], program // grid[0] % grid[1], program // (grid[0] * grid[1]))
        with np.errstate(all="ignore"):  # hardware does not warn of log(0) either
            function(**arguments)


__all__ = ["OutOfBounds", "Race", "Unsupported", "interpret"]
