# SPDX-License-Identifier: Apache-2.0
"""`pagedserve doctor`: what is installed, what can run here, and why the rest cannot."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pagedserve
from pagedserve import settings
from pagedserve.cli import machine
from pagedserve.cli.console import Console, size
from pagedserve.cli.main import DEFAULT_MODEL
from pagedserve.errors import ModelError, PagedServeError

# package, what it is for, how it is got
PACKAGES = (
    ("torch", "tensors", "pip install torch"),
    ("numpy", "arrays", "pip install numpy"),
    ("tokenizers", "tokenizers of models", "pip install 'pagedserve[models]'"),
    ("safetensors", "weights from safetensors", "pip install 'pagedserve[models]'"),
    ("gguf", "the rarer kinds of GGUF weights", "pip install 'pagedserve[models]'"),
    ("jinja2", "chat templates", "pip install 'pagedserve[models]'"),
    ("rich", "live views and tables", "pip install 'pagedserve[cli]'"),
    ("matplotlib", "the demo's plot", "pip install 'pagedserve[plot]'"),
    ("triton", "the Triton backend", "pip install 'pagedserve[triton]'"),
    ("transformers", "not needed: the tests compare with it", ""),
)
NEEDED = ("torch", "numpy", "tokenizers", "jinja2")  # by the demo


def run(args: argparse.Namespace) -> int:
    """Print the findings; 0 where the demo can run here, 1 where it cannot."""
    console = Console()
    problems: list[str] = []
    console.print(f"pagedserve {pagedserve.__version__} in {Path(pagedserve.__file__).parent}")
    for title, part in (
        ("Packages", _packages),
        ("Processor", _processor),
        ("CPU kernels", _kernels),
        ("GPU", _gpu),
        ("Backends", _backends),
        ("Demo model", _model),
    ):
        console.heading(title)
        for line in _lines(part, problems):
            console.print(f"  {line}")
    console.heading("Verdict")
    for problem in problems:
        console.print(f"  missing: {problem}")
    console.print("  pagedserve demo cannot run here" if problems else "  pagedserve demo can run here")
    return 1 if problems else 0


def _lines(part: Callable[[list[str]], Iterator[str]], problems: list[str]) -> Iterator[str]:
    """A part's lines; a setting that is refused is a finding, not the end of the report."""
    try:
        yield from part(problems)
    except PagedServeError as error:
        problems.append(str(error))
        yield f"refused: {error}"


def _packages(problems: list[str]) -> Iterator[str]:
    yield f"{'python':14} {platform.python_version():14} {platform.python_implementation()} on {platform.platform()}"
    for package, purpose, advice in PACKAGES:
        version = machine.version_of(package)
        if version is None and package in NEEDED:
            problems.append(f"{package}: {advice}")
        yield f"{package:14} {version or '-':14} {purpose}{f': {advice}' if version is None and advice else ''}"


def _processor(problems: list[str]) -> Iterator[str]:
    cpu = machine.processor()
    cache = f", last-level cache {cpu.last_level_cache}" if cpu.last_level_cache else ""
    yield f"{cpu.name}, {cpu.num_available} available{cache}"
    yield f"has {' '.join(cpu.flags) or 'none of the instruction sets that pagedserve looks for'}"
    memory = machine.memory_bytes()
    if memory is not None:
        yield f"memory {size(memory[0])}, {size(memory[1])} available"


def _kernels(problems: list[str]) -> Iterator[str]:
    module, place = machine.extension()
    if module is None:
        problems.append(f"the compiled kernels: reinstall pagedserve, or run make ({place})")
        yield f"not there ({place})"
        return
    yield place
    chosen, supported = machine.instruction_set(), [isa.name for isa in module.supported_isas()]
    for isa in settings.ISAS:
        state = "can run here" if isa in supported else "cannot: the processor or this build lacks it"
        yield f"{isa:12} {state}{', and is used' if isa == chosen else ''}"
    if chosen not in supported:
        problems.append(f"PAGEDSERVE_CPU_ISA asks for {chosen}: unset it, or give one of {', '.join(supported)}")
    held = " (PAGEDSERVE_THREADS)" if "PAGEDSERVE_THREADS" in os.environ else ""
    yield f"{settings.num_threads()} threads{held}"


def _gpu(problems: list[str]) -> Iterator[str]:
    found = machine.gpus()
    for gpu in found:
        yield f"{gpu.name}, {gpu.memory}, compute capability {gpu.capability}, driver {gpu.driver}"
    if not found:
        yield "no NVIDIA GPU that nvidia-smi lists"
    if machine.version_of("torch") is not None:
        torch = importlib.import_module("torch")
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        yield f"torch {built}; it {'sees' if torch.cuda.is_available() else 'does not see'} a GPU"
    yield f"nvcc {machine.nvcc() or 'not on the path'}"
    cuda, place = machine.extension("_cuda")
    if cuda is None:
        yield f"CUDA kernels are not built: PAGEDSERVE_CUDA=1 and nvcc build them ({place})"
    else:
        yield f"CUDA kernels for {cuda.architectures}, of toolkit {cuda.toolkit}: {place}"
    yield "models run on the CPU in this version"


def _backends(problems: list[str]) -> Iterator[str]:
    if machine.version_of("torch") is None:
        yield "none without torch"
        return
    registry = importlib.import_module("pagedserve.ops.registry")
    by_backend: dict[str, list[Any]] = {}
    for row in registry.TABLE:
        by_backend.setdefault(row.backend, []).append(row)
    num_ops = len({row.op for row in registry.TABLE})
    sees_gpu = importlib.import_module("torch").cuda.is_available()
    able = 0
    for backend, rows in by_backend.items():
        reasons = {reason for row in rows for reason in _import_refusals(row)}
        if not sees_gpu and all(row.requirement.devices == ("cuda",) for row in rows):
            reasons.add(f"its {len(rows)} of {num_ops} ops run on a GPU, and torch sees none")
        able += not reasons
        yield f"{backend:18} {f'runs {len(rows)} of {num_ops} ops' if not reasons else f'cannot: {min(reasons)}'}"
    if not able:
        problems.append("a backend that can run")


def _import_refusals(row: Any) -> list[str]:
    try:
        getattr(importlib.import_module(row.module), row.op)
    except (ImportError, AttributeError, PagedServeError) as error:
        return [str(error)]
    return []


def _model(problems: list[str]) -> Iterator[str]:
    if machine.version_of("torch") is None:
        yield "not looked for without torch"
        return
    try:
        path = importlib.import_module("pagedserve.models.load").find_model(DEFAULT_MODEL)
    except ModelError as error:
        problems.append(str(error))
        yield str(error)
    else:
        yield f"{DEFAULT_MODEL}: {path} ({size(path.stat().st_size)})"
