# SPDX-License-Identifier: Apache-2.0
"""Budgets of kernels as data: what `python -m bench gates` holds ptxas to.

A budget is the measured number of nvcc 13.0 with little to spare, so that a change that costs registers, blocks per SM
or instructions is seen, and is either undone or written down here with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ARCHS = ("sm_80", "sm_90a")


@dataclass(frozen=True)
class KernelBudget:
    """What every instantiation that `kernel` names must keep.

    Attributes:
        kernel: a regular expression that is found in the kernel's C++ name; the first row that fits is a kernel's own.
        registers: of a thread, at most.
        shared_bytes: static, at most.
        dynamic_shared_bytes: that the launcher asks for at most; counted for occupancy.
        blocks: on an SM at once, at least.
        required: pattern of opcodes -> how many at least.
        forbidden: patterns of opcodes; LDL and STL (local memory) are forbidden to all.
        archs: that this row is about.
    """

    kernel: str
    registers: int
    blocks: int
    shared_bytes: int = 0
    dynamic_shared_bytes: int = 0
    required: Mapping[str, int] = field(default_factory=dict)
    forbidden: tuple[str, ...] = ()
    archs: tuple[str, ...] = ARCHS


@dataclass(frozen=True)
class FileBudget:
    """What a launch file must keep on each architecture: processor seconds to compile, and bytes of its cubin."""

    compile_s: float
    cubin_bytes: int


ALWAYS_FORBIDDEN = ("LDL", "STL")
# 16 bytes a lane; 64-bit addresses of pages; waiting for the kernel before, which PTX of sm_80 has no word for.
LOAD_16, STORE_16, WIDE = r"LDG\.E\S*\.128", r"STG\.E\S*\.128", r"IMAD\.WIDE"
QUANTISED, ANY = r"\(pagedserve::DType\)[345]", r"\(pagedserve::DType\)\d"

KERNELS: tuple[KernelBudget, ...] = (
    KernelBudget(rf"append_kv_kernel<{ANY}, {QUANTISED}>", 40, 6, required={LOAD_16: 2, WIDE: 20, "SHFL": 1}),
    KernelBudget(rf"append_kv_kernel<{ANY}, {ANY}>", 40, 6, required={LOAD_16: 1, STORE_16: 1, WIDE: 20}),
    KernelBudget(r"copy_pages_kernel<\S*U32x4>", 86, 2, required={LOAD_16: 16, STORE_16: 16, WIDE: 10}),
    KernelBudget(r"copy_pages_kernel<unsigned char>", 60, 4, required={WIDE: 10}),
    KernelBudget(r"plan_decode_kernel", 66, 3, shared_bytes=192, required={STORE_16: 1, WIDE: 20}),
)
# Seconds are three times what a core of Zen 4 takes, so that a slower one keeps them too.
FILES: dict[str, FileBudget] = {
    "append_kv.cu": FileBudget(10, 320_000),
    "copy_pages.cu": FileBudget(3, 22_000),
    "error_text.cu": FileBudget(3, 2_000),
    "plan_decode.cu": FileBudget(4, 52_000),
}
