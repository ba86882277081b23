# SPDX-License-Identifier: Apache-2.0
"""The PTX route: runs what nvcc or Triton really emitted on the emulator, with the emulator's checks.

program = load(compile_ptx(Path("sum.cu"), "sm_90a"))
program.launch("sum", grid=(4, 1, 1), threads=128, arguments=[a, out, total, a.numel()])
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pagedserve.emulate import build
from pagedserve.emulate.library import Library
from pagedserve.emulate.ptx_parse import Entry, PtxError, Symbol, parse
from pagedserve.emulate.ptx_translate import translate, translate_module
from pagedserve.emulate.structs import Addressed
from pagedserve.errors import BackendUnavailable, InvalidInput

Argument = Addressed | int | float | bytes

__all__ = ["Argument", "Program", "PtxError", "compile_ptx", "load", "nvcc", "translate"]


@functools.cache
def nvcc() -> str:
    """The CUDA compiler.

    Raises:
        BackendUnavailable: there is none.
    """
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if found is None:
        raise BackendUnavailable("there is no nvcc on PATH: install the CUDA toolkit; no GPU is needed")
    return found


@functools.cache
def nvcc_version() -> str:
    return subprocess.run([nvcc(), "--version"], capture_output=True, text=True, check=True).stdout


def compile_ptx(source: Path, arch: str, *, defines: Sequence[str] = ()) -> str:
    """What nvcc makes of a source file for an architecture such as "sm_90a"; kept in build/emulated.

    Raises:
        BackendUnavailable: there is no nvcc, or the source does not compile.
    """
    flags = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", f"-arch={arch}", *(f"-D{name}" for name in defines)]
    digest = hashlib.sha256(repr((nvcc_version(), flags)).encode())
    for path, text in build.sources_of(source.resolve()).items():
        digest.update(str(path).encode() + b"\0" + text + b"\0")
    result = build.OUTPUT / f"{source.stem}-{arch}-{digest.hexdigest()[:16]}.ptx"
    if not result.exists():
        build.OUTPUT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=build.OUTPUT) as folder:
            made = Path(folder) / "made.ptx"
            done = subprocess.run(
                [nvcc(), *flags, "-ptx", "-o", str(made), str(source)], capture_output=True, text=True
            )
            if done.returncode:
                raise BackendUnavailable(f"nvcc does not compile {source}:\n{done.stderr.strip()[:2000]}")
            made.replace(result)
    return result.read_text()


def load(text: str, *, name: str = "kernel") -> Program:
    """Translates a PTX module; its first launch compiles it.

    Args:
        text: as `compile_ptx` or Triton's asm["ptx"] gives it.
        name: of the files in build/emulated that hold it, and that errors name.

    Raises:
        PtxError: an instruction that the translator does not know.
    """
    module = parse(text)
    stem = build.OUTPUT / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    build.OUTPUT.mkdir(parents=True, exist_ok=True)
    ptx, source = stem.with_suffix(".ptx"), stem.with_suffix(".cpp")
    build.write(ptx, text)
    build.write(source, translate_module(module, str(ptx)))
    return Program(Library(source), {entry.name: entry for entry in module.entries})


@dataclass(frozen=True)
class Program:
    """Kernels of one PTX module, ready to run on CPU tensors, as the current `emulate.session` says."""

    library: Library
    entries: dict[str, Entry]

    @property
    def kernels(self) -> tuple[str, ...]:
        return tuple(self.entries)

    def launch(
        self,
        kernel: str,
        *,
        grid: tuple[int, int, int],
        threads: int,
        arguments: Sequence[Argument],
        shared_bytes: int = 0,
    ) -> None:
        """Runs a kernel on a grid.

        Args:
            kernel: one of `kernels`, or a part of the name that only one of them has.
            threads: of a block.
            arguments: one for each parameter: a CPU tensor (its data), a number, or the bytes of a struct.
            shared_bytes: dynamic shared memory of a block.

        Raises:
            InvalidInput: no such kernel, or arguments that do not fit its parameters.
            KernelFault: the kernel did what it may not do.
        """
        entry = self._entry(kernel)
        if len(arguments) != len(entry.params):
            raise InvalidInput(f"{entry.name} has {len(entry.params)} parameters; {len(arguments)} arguments are given")
        struct = launch_struct(entry)
        values = [packed(value, symbol) for value, symbol in zip(arguments, entry.params, strict=True)]
        index = list(self.entries).index(entry.name)
        head = (ctypes.c_uint32 * 6)(*grid, threads, shared_bytes, index)
        call = struct.from_buffer_copy(bytes(ctypes.sizeof(struct)))
        ctypes.memmove(ctypes.addressof(call), head, ctypes.sizeof(head))
        for place, data in enumerate(values):
            ctypes.memmove(ctypes.addressof(call) + getattr(struct, f"a{place}").offset, data, len(data))
        tensors = [value for value in arguments if isinstance(value, Addressed)]
        self.library.call("pagedserve_ptx_launch", call, tensors)

    def _entry(self, kernel: str) -> Entry:
        if kernel in self.entries:
            return self.entries[kernel]
        found = [entry for name, entry in self.entries.items() if kernel in name]
        if len(found) != 1:
            raise InvalidInput(
                f"{len(found)} kernels have {kernel!r} in their name; there are {', '.join(self.entries)}"
            )
        return found[0]


def launch_struct(entry: Entry) -> type[ctypes.Structure]:
    """ptx_runtime.h's Launch and the kernel's parameters behind it, each on a slot of its own.

    Parameters as wide as a pointer count as pointers, so that a checked run ships the tensors that they lead to.
    """
    fields: list[tuple[str, object]] = [("head", ctypes.c_uint32 * 16)]
    for place, symbol in enumerate(entry.params):
        size = symbol.num_bytes or 0
        is_pointer = size == 8 and symbol.type in ("u64", "b64")
        fields.append((f"a{place}", ctypes.c_void_p if is_pointer else ctypes.c_uint8 * size))
        fields.append((f"p{place}", ctypes.c_uint8 * (-size % PARAMETER_ALIGNMENT)))
    return type("PtxLaunch", (ctypes.Structure,), {"_fields_": fields, "_pack_": 1})


PARAMETER_ALIGNMENT = 64  # a tensor map's, the strictest there is


def packed(value: Argument, symbol: Symbol) -> bytes:
    """An argument as the bytes of its parameter.

    Raises:
        InvalidInput: it does not fit.
    """
    size = symbol.num_bytes or 0
    if isinstance(value, Addressed):
        value = value.data_ptr()
    if isinstance(value, float):
        data = bytes({8: ctypes.c_double, 4: ctypes.c_float}.get(size, ctypes.c_double)(value))
    elif isinstance(value, int):
        data = (value % (1 << 8 * size)).to_bytes(size, "little") if size <= 8 else b""
    else:
        data = bytes(value)
    if len(data) != size:
        raise InvalidInput(f"parameter {symbol.cpp} takes {size} bytes of .{symbol.type}; {value!r} does not fit")
    return data
