# SPDX-License-Identifier: Apache-2.0
"""Compiled Triton kernels on the CUDA emulator: the PTX that a GPU would get, on the tensors of a case."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import triton

from pagedserve.backends.triton.compile_only import CompileOnlyDriver
from pagedserve.backends.triton.launch import Launch, leaves
from pagedserve.backends.triton.target import Target
from pagedserve.emulate import ptx
from pagedserve.ops.cases import make_inputs
from pagedserve.specs import Case
from tests.triton_backend.calls import collect


@dataclass(frozen=True)
class Emitted:
    """What Triton made of a launch: PTX, its dynamic shared memory, threads, and which arguments are left."""

    text: str
    shared_bytes: int
    threads: int
    arguments: tuple[int, ...]


def flat(named: dict[str, Any]) -> list[Any]:
    """Values, and the fields of named tuples in their place, as Triton numbers a kernel's parameters."""
    return [value for _, value in leaves(named)]


def emit(op: str, case: Case, arch: int, cache: str) -> list[Emitted]:
    """Compiles a case's launches, in a process of its own: its driver tells of a GPU that is not there."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_emit, op, case, arch, cache).result()


def _emit(op: str, case: Case, arch: int, cache: str) -> list[Emitted]:
    triton.knobs.cache.dir = cache
    triton.runtime.driver.set_active(CompileOnlyDriver(arch))
    emitted = []
    options = {"return_lse": True} if case.lens else {}
    for launch in collect(op, make_inputs(op, case) | options, Target(arch)):
        compiled = launch.compile()
        left = tuple(place for place, kind in enumerate(flat(compiled.src.signature)) if kind != "constexpr")
        emitted.append(Emitted(compiled.asm["ptx"], compiled.metadata.shared, 32 * launch.num_warps, left))
    return emitted


def emulate(launch: Launch, emitted: Emitted) -> None:
    """Runs a launch as it was emitted, under the current emulator session."""
    program = ptx.load(emitted.text, name=launch.name)
    (entry,) = program.entries.values()
    names = launch.kernel.arg_names
    given = flat({name: {**launch.arguments, **launch.constants}[name] for name in names})
    values: list[Any] = [given[place] for place in emitted.arguments]
    values += [0] * (len(entry.params) - len(values))  # scratch that these kernels have no use for
    program.launch(
        launch.name,
        grid=(*launch.grid, 1, 1)[:3],
        threads=emitted.threads,
        arguments=values,
        shared_bytes=emitted.shared_bytes,
    )
