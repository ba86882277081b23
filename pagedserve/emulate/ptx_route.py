# SPDX-License-Identifier: Apache-2.0
"""A launch file whose kernels are what nvcc made of them: the launcher as C++, each kernel translated from PTX.

Both compilers mangle a kernel's name alike, so that the launcher finds the translation of the kernel that it names. A
kernel is translated when it is first launched: a launch file has many, and a call uses one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pagedserve.emulate import build
from pagedserve.emulate.ptx import compile_ptx
from pagedserve.emulate.ptx_parse import parse
from pagedserve.emulate.ptx_translate import translate_module
from pagedserve.errors import KernelFault

NOT_TRANSLATED = "not-translated"  # of csrc/target/ptx_runtime.h
# Kernels are found by their names, which hidden symbols do not have.
HEAD = "#pragma GCC visibility push(default)\n#define PAGEDSERVE_EMULATED_PTX\n"
# Of the source's own kernels only the addresses are wanted.
UNUSED = '#pragma GCC optimize("O0")\n'
ARCHS = {"sm_80": 80, "sm_90a": 90}


def known_kernels(source: Path, arch: str) -> frozenset[str]:
    """Kernels of a launch file that were launched before."""
    listed = list_of(source, arch)
    return frozenset(listed.read_text().split()) if listed.exists() else frozenset()


def list_of(source: Path, arch: str) -> Path:
    digest = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:8]
    return build.OUTPUT / f"{source.stem}-{arch}-{digest}.kernels"


def learn(source: Path, arch: str, translated: frozenset[str], fault: KernelFault) -> None:
    """Remembers the kernel that a launch did not find among those translated. Other processes learn meanwhile.

    Raises:
        KernelFault: the fault is another, or the kernel was translated.
    """
    name = str(fault).rpartition(" ")[2]
    if fault.kind != NOT_TRANSLATED or name in translated:
        raise fault
    build.write(list_of(source, arch), "\n".join(sorted({*known_kernels(source, arch), name})))


def compile_library(
    source: Path, arch: str, build_name: str, kernels: frozenset[str], defines: Sequence[str] = ()
) -> Path:
    """The shared library of a launch file with these kernels.

    Raises:
        PtxError: the translator does not know an instruction; BackendUnavailable: there is no nvcc or C++ compiler.
    """
    source = source.resolve()
    text = compile_ptx(source, arch, defines=defines)
    digest = hashlib.sha256("\0".join([str(source), text, *sorted(kernels)]).encode()).hexdigest()[:16]
    ptx, made = (build.OUTPUT / f"{source.stem}-{arch}-{digest}.{ending}" for ending in ("ptx", "cpp"))
    if not made.exists():
        build.write(ptx, text)
        translated = translate_module(parse(text, only=kernels), str(ptx))
        build.write(made, f'{HEAD}{translated}{UNUSED}#include "{source}"\n')
    return build.compile_library(made, build_name, [*defines, f"PAGEDSERVE_EMULATED_ARCH={ARCHS[arch]}"])
