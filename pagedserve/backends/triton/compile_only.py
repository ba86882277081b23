# SPDX-License-Identifier: Apache-2.0
"""Compiles launches for a GPU that is not there, by the path that a launch on it takes, into Triton's own cache.

A launch that runs later with the same kernel, kinds of arguments and configuration finds its compiled kernel in the
cache, and compiles nothing: the cache's key is made of what a launch passes, and both pass the same.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from pagedserve.backends.triton.catalogue import OPS, ModelShape
from pagedserve.backends.triton.target import Target

LARGEST_SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # of one program; CUDA programming guide, table of limits


class CompileOnlyDriver(DriverBase):
    """Tells Triton of a device with an architecture; there is nothing to run on."""

    def __init__(self, capability: int) -> None:
        super().__init__()
        self._capability = capability
        shared = LARGEST_SHARED_BYTES.get(capability, 99 * 1024)
        self.utils = SimpleNamespace(get_device_properties=lambda device: {"max_shared_mem": shared})

    @classmethod
    def is_active(cls) -> bool:
        return False  # Triton never chooses it by itself

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return self._capability  # compiled kernels are kept by device: each architecture is one

    def get_current_stream(self, device: int) -> int:
        return 0

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise RuntimeError(f"nothing is launched here, so {ty} needs no C++ type")

    def get_active_torch_device(self) -> Any:
        raise RuntimeError("there is no device here")

    def get_benchmarker(self) -> Any:
        raise RuntimeError("there is no device here to time on")


@dataclass(frozen=True)
class Job:
    """An op's kernels for a model, to compile for an architecture, as 90, into a folder; None: Triton's own."""

    capability: int
    shape: ModelShape
    op: str
    cache: str | None = None


@dataclass(frozen=True)
class Compiled:
    """A kernel's resources, and what its machine code holds.

    Attributes:
        spilled_bytes: stack and local memory of a thread.
        instructions: how often each of INSTRUCTIONS stands in the code.
    """

    job: Job
    kernel: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    instructions: dict[str, int]
    ptx: str


# Copies to shared memory in the background, loads of matrix fragments, matrix instructions of sm_80 and sm_90, spills.
INSTRUCTIONS = ("LDGSTS", "LDSM", "HMMA", "HGMMA", "LDL", "STL")


def compile_jobs(jobs: list[Job], num_workers: int) -> list[Compiled]:
    """Compiles in processes of their own."""
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        return [each for found in pool.map(_compile_job, jobs) for each in found]


def _compile_job(job: Job) -> list[Compiled]:
    """In a process that launches nothing: the driver stays set."""
    if job.cache is not None:
        triton.knobs.cache.dir = job.cache
    triton.runtime.driver.set_active(CompileOnlyDriver(job.capability))
    launches = OPS[job.op](Target(job.capability), job.shape)
    return [_describe(job, launch.name, launch.compile()) for launch in launches]


def _describe(job: Job, kernel: str, compiled: Any) -> Compiled:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _output(triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(cubin))
        code = _output(triton.knobs.nvidia.nvdisasm.path, "-c", str(cubin))
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump does not tell {kernel}'s resources: {usage[:200]}")
    registers, stack, local = map(int, found.groups())
    return Compiled(
        job=job,
        kernel=kernel,
        registers=registers,
        spilled_bytes=stack + local,
        shared_bytes=compiled.metadata.shared,
        instructions={name: len(re.findall(rf"\b{name}", code)) for name in INSTRUCTIONS},
        ptx=compiled.asm["ptx"],
    )


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr
