# SPDX-License-Identifier: Apache-2.0
"""What this machine is, read from the operating system and from installed packages. Nothing here imports torch."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from pagedserve import __version__, settings

# The flags that an instruction set of ours asks for, and those worth knowing beside them.
CPU_FLAGS = (
    *("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx_vnni"),
    *("amx_bf16", "amx_int8", "asimd", "bf16", "i8mm", "sve"),
)


@dataclass(frozen=True, slots=True)
class Processor:
    """The processor as Linux describes it; flags are those of CPU_FLAGS that it has."""

    name: str
    num_available: int
    flags: tuple[str, ...]
    last_level_cache: str


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as its driver describes it."""

    name: str
    memory: str
    driver: str
    capability: str


def processor() -> Processor:
    """The processor this process may run on."""
    text = _read("/proc/cpuinfo")
    name = re.search(r"^(?:model name|Model|CPU part)\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    known = set(flags[1].split()) if flags else set()
    caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    return Processor(
        name[1].strip() if name else platform.machine(),
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        tuple(flag for flag in CPU_FLAGS if flag in known),
        _read(str(caches[-1])).strip() if caches else "",
    )


def memory_bytes() -> tuple[int, int] | None:
    """Total and available memory, or None where /proc does not say."""
    found = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB$", _read("/proc/meminfo"), re.MULTILINE))
    return (int(found["MemTotal"]) * 1024, int(found["MemAvailable"]) * 1024) if len(found) == 2 else None


def gpus() -> list[Gpu]:
    """NVIDIA GPUs, as nvidia-smi lists them; none where it is missing or fails."""
    fields = "name,memory.total,driver_version,compute_cap"
    text = _output(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"])
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    return [Gpu(*row) for row in rows if len(row) == 4]


def nvcc() -> str | None:
    """nvcc's release and path, or None."""
    path = shutil.which("nvcc")
    if path is None:
        return None
    release = re.search(r"release ([\d.]+)", _output([path, "--version"]))
    return f"{release[1] if release else 'unknown release'} ({path})"


def version_of(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def extension(name: str = "_C") -> tuple[ModuleType | None, str]:
    """Compiled kernels, and where they are or why they are not."""
    try:
        module = importlib.import_module(f"pagedserve.{name}")
    except ImportError as error:
        return None, str(error)
    return module, str(module.__file__)


def instruction_set() -> str | None:
    """The instruction set the CPU kernels use here: the one asked for, or the best there is."""
    module, _ = extension()
    return None if module is None else settings.cpu_isa() or module.detect_isa().name


def signature() -> dict[str, str | int | None]:
    """What a measurement depends on, to stand beside its numbers."""
    cpu = processor()
    return {
        "pagedserve": __version__,
        "python": platform.python_version(),
        "torch": version_of("torch"),
        "processor": cpu.name,
        "processors_available": cpu.num_available,
        "threads": settings.num_threads(),
        "instruction_set": instruction_set(),
        "gpus": ", ".join(f"{gpu.name}, driver {gpu.driver}" for gpu in gpus()) or None,
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
