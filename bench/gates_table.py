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

# Tiles come by asynchronous copies of 16 bytes and go to the matrix units by ldmatrix, both operands in their places.
DECODE = {r"LDGSTS\S*\.128": 24, "LDSM": 6, "HMMA": 16, "MOVM": 2, r"MUFU\.EX2": 22, "ATOM": 1, WIDE: 90}
HALVES, F8, I8, I4 = r"\S*::B?F16", r"\S*::F8E4M3", "signed char", r"\S*::I4x2"
# Format of keys and values, head_dim and columns, then registers (they are given out by eights), dynamic shared bytes
# and blocks on an SM, of sm_80 and of sm_90a. Where shared memory has room for two blocks, merges may take registers.
DECODES = (
    (HALVES, "64, 8", (168, 71_728, 2), (168, 71_728, 3)),
    (HALVES, "64, 16", (184, 75_440, 2), (192, 75_440, 2)),
    (HALVES, "64, 32", (240, 82_864, 2), (240, 82_864, 2)),
    (HALVES, "128, 8", (168, 73_776, 2), (168, 73_776, 3)),
    (HALVES, "128, 16", (255, 80_560, 2), (255, 80_560, 2)),
    (HALVES, "256, 8", (255, 145_456, 1), (255, 145_456, 1)),
    (F8, "64, 8", (184, 77_744, 2), (192, 77_744, 2)),
    (F8, "64, 16", (255, 81_456, 2), (216, 81_456, 2)),
    (F8, "64, 32", (248, 88_880, 1), (248, 88_880, 2)),
    (F8, "128, 8", (168, 76_720, 2), (168, 76_720, 3)),
    (F8, "128, 16", (248, 83_504, 1), (208, 83_504, 2)),
    (F8, "256, 8", (232, 80_816, 2), (200, 80_816, 2)),
    (I8, "64, 8", (176, 77_744, 2), (192, 77_744, 2)),
    (I8, "64, 16", (216, 81_456, 2), (216, 81_456, 2)),
    (I8, "64, 32", (248, 88_880, 1), (248, 88_880, 2)),
    (I8, "128, 8", (168, 76_720, 2), (168, 76_720, 3)),
    (I8, "128, 16", (200, 83_504, 1), (208, 83_504, 2)),
    (I8, "256, 8", (200, 80_816, 2), (200, 80_816, 2)),
    (I4, "64, 8", (160, 44_976, 3), (168, 44_976, 3)),
    (I4, "64, 16", (184, 48_688, 2), (192, 48_688, 2)),
    (I4, "64, 32", (216, 56_112, 2), (216, 56_112, 2)),
    (I4, "128, 8", (184, 80_816, 2), (192, 80_816, 2)),
    (I4, "128, 16", (224, 87_600, 1), (224, 87_600, 2)),
    (I4, "256, 8", (192, 82_864, 2), (208, 82_864, 2)),
)
# The same where a KV head has one query head: head_dim, then as above. Nothing goes through a matrix instruction.
CORES = {r"LDGSTS\S*\.128": 48, r"LDS\.128": 29, "FFMA": 512, r"MUFU\.EX2": 30, "ATOM": 1, WIDE: 90}
DECODES_ON_CORES = (
    (64, (168, 71_728, 2), (168, 71_728, 3)),
    (128, (255, 73_776, 2), (255, 73_776, 2)),
    (256, (255, 145_456, 1), (255, 145_456, 1)),
)

KERNELS: tuple[KernelBudget, ...] = (
    KernelBudget(rf"append_kv_kernel<{ANY}, {QUANTISED}>", 40, 6, required={LOAD_16: 2, WIDE: 20, "SHFL": 1}),
    KernelBudget(rf"append_kv_kernel<{ANY}, {ANY}>", 40, 6, required={LOAD_16: 1, STORE_16: 1, WIDE: 20}),
    KernelBudget(r"copy_pages_kernel<\S*U32x4>", 86, 2, required={LOAD_16: 16, STORE_16: 16, WIDE: 10}),
    KernelBudget(r"copy_pages_kernel<unsigned char>", 60, 4, required={WIDE: 10}),
    *(
        KernelBudget(rf"DecodeConfig<{kv}, {sizes}>", registers, blocks, 0, shared, DECODE, archs=(arch,))
        for kv, sizes, *budgets in DECODES
        for arch, (registers, shared, blocks) in zip(ARCHS, budgets, strict=True)
    ),
    *(
        KernelBudget(
            rf"CoresConfig<{HALVES}, {head_dim}>", registers, blocks, 0, shared, CORES, ("HMMA", "LDSM"), archs=(arch,)
        )
        for head_dim, *budgets in DECODES_ON_CORES
        for arch, (registers, shared, blocks) in zip(ARCHS, budgets, strict=True)
    ),
    KernelBudget(r"merge_states<", 32, 16, required={r"MUFU\.EX2": 8, WIDE: 10}),
    KernelBudget(r"plan_decode_kernel", 88, 2, shared_bytes=192, required={STORE_16: 1, WIDE: 20}),
)
# Seconds are three times what a core of Zen 4 takes, so that a slower one keeps them too.
FILES: dict[str, FileBudget] = {
    "append_kv.cu": FileBudget(10, 320_000),
    "copy_pages.cu": FileBudget(3, 22_000),
    "error_text.cu": FileBudget(3, 2_000),
    "plan_decode.cu": FileBudget(4, 60_000),
    "merge_states.cu": FileBudget(3, 60_000),
    **{f"paged_decode_{name}.cu": FileBudget(80, 1_850_000) for name in ("bf16", "f16")},
    **{f"paged_decode_{name}.cu": FileBudget(60, 1_350_000) for name in ("f8", "i8", "i4")},
}
