# SPDX-License-Identifier: Apache-2.0
"""Compiles launches for a GPU that is not there, by the path that a launch on it takes, into Triton's own cache.

A launch that runs later with the same kernel, kinds of arguments and configuration finds its compiled kernel in the
cache, and compiles nothing: the cache's key is made of what a launch passes, and both pass the same.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from pagedserve.backends.triton.launch import Launch


class CompileOnlyDriver(DriverBase):
    """Tells Triton of a device with an architecture; there is nothing to run on."""

    def __init__(self, capability: int) -> None:
        super().__init__()
        self._capability = capability
        self.utils = SimpleNamespace(get_device_properties=lambda device: {"max_shared_mem": 227 * 1024})

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
        raise NotImplementedError(f"nothing is launched here, so {ty} needs no C++ type")

    def get_active_torch_device(self) -> Any:
        raise NotImplementedError("there is no device")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("there is no device to time on")


def compile_launches(launches: list[Launch], capability: int) -> list[Any]:
    """Compiled kernels of launches for an architecture. For a process that launches nothing: its driver stays set."""
    triton.runtime.driver.set_active(CompileOnlyDriver(capability))
    return [launch.compile() for launch in launches]
