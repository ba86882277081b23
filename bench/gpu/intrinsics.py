# SPDX-License-Identifier: Apache-2.0
"""Every word of csrc/target against the emulator's answer, on random bits and the numbers where formats end.

In a dry run what nvcc emitted takes the GPU's place: the PTX route against the source route.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.gpu.place import Place, verdict
from bench.report import ROOT, Row
from bench.sass import tool
from pagedserve.emulate import Library, structs
from pagedserve.emulate.ptx import compile_ptx, load
from pagedserve.errors import BackendUnavailable, PagedServeError

HERE = Path(__file__).resolve().parent
SOURCE, HEADER = HERE / "intrinsics.cu", HERE / "intrinsics.h"
NUM_BLOCKS = 32
# Ends of the formats, ties, and what is no number.
EDGES = (0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, 127.5, -128.5, 300.0, 447.0, 448.0, 464.0, 480.0, 1e-3, 2.0**-9, 2.0**-10)
EDGES += (2.0**-24, 2.0**-25, 65504.0, 65519.0, 65520.0, 1e30, -1e30, 1e-40, 2.0**-126, float("inf"), float("-inf"))
EDGES += (float("nan"), 3.0e38, 1.00390625, 1.01171875)


def bits(random: torch.Generator) -> Tensor:
    """[NUM_BLOCKS, 32, 8] int32, anything."""
    return torch.randint(-(2**31), 2**31, (NUM_BLOCKS, 32, 8), generator=random).to(torch.int32)


def floats(random: torch.Generator) -> Tensor:
    values, spread = torch.randn(2, NUM_BLOCKS, 32, 8, generator=random)
    values = values * torch.exp(3 * spread)
    edges = torch.tensor(EDGES)
    values[0, : len(EDGES), 0] = edges
    values[1, : len(EDGES), 1] = edges
    return values.view(torch.int32)


def positive(random: torch.Generator) -> Tensor:
    return floats(random).view(torch.float32).abs().view(torch.int32)


def small(random: torch.Generator) -> Tensor:
    return (4 * torch.randn(NUM_BLOCKS, 32, 8, generator=random)).view(torch.int32)


def halves(dtype: torch.dtype) -> Callable[[torch.Generator], Tensor]:
    return lambda random: torch.randn(NUM_BLOCKS, 32, 16, generator=random).to(dtype).view(torch.int32)


@dataclass(frozen=True)
class Word:
    """One number of intrinsics.cu.

    Attributes:
        inputs: of the lanes.
        result: how its words are compared: "bits"; or as "float32", "bfloat16" or "float16", where NaN equals NaN,
            within `tolerance` of the largest result or, if `relative`, of each.
    """

    name: str
    inputs: Callable[[torch.Generator], Tensor] = bits
    result: str = "bits"
    tolerance: float = 0.0
    relative: bool = True


BF16, F16 = torch.bfloat16, torch.float16
# Hardware adds a matrix product's terms in groups and truncates: some units in the last place of the largest.
SUM = 2.0**-20
WORDS = (
    *map(Word, ("shuffle", "shuffle_xor", "shuffle_up", "shuffle_down", "shuffle of 8", "shuffle_down of 8", "ballot")),
    Word("any_lane, all_lanes"),
    Word("pack<BF16>", floats, "bfloat16"),
    Word("pack<F16>", floats, "float16"),
    Word("unpack<BF16>", bits, "float32"),
    Word("unpack<F16>", bits, "float32"),
    Word("f16x2_of_f8x2", bits, "float16"),
    Word("f8x2_of_floats", floats),
    Word("i8_of_float", floats),
    Word("from_float<BF16>", floats, "bfloat16"),
    Word("from_float<F16>", floats, "float16"),
    Word("to_float(F8E4M3)", bits, "float32"),
    Word("fma_f16x2", halves(F16), "float16"),
    Word("add_f16x2", halves(F16), "float16"),
    Word("sub_f16x2", halves(F16), "float16"),
    Word("mul_f16x2", halves(F16), "float16"),
    Word("fma_bf16x2", halves(BF16), "bfloat16"),
    Word("permute_bytes"),
    Word("logic3<0xea>"),
    Word("exp2_approx", small, "float32", 2.0**-21),
    Word("log2_approx", positive, "float32", 2.0**-20, relative=False),
    Word("reciprocal_approx", small, "float32", 2.0**-22),
    Word("rsqrt_approx", positive, "float32", 2.0**-22),
    Word("tanh_approx", small, "float32", 2.0**-10),
    *map(Word, (f"load_matrices{suffix}<{n}>" for suffix in ("", "_transposed") for n in (1, 2, 4))),
    Word("mma_m16n8k16<BF16>", halves(BF16), "float32", SUM, relative=False),
    Word("mma_m16n8k8<BF16>", halves(BF16), "float32", SUM, relative=False),
    Word("mma_m16n8k16<F16>", halves(F16), "float32", SUM, relative=False),
    Word("mma_m16n8k8<F16>", halves(F16), "float32", SUM, relative=False),
    *map(Word, (f"copy_async<{n}>" for n in (16, 8, 4))),
    Word("copy_async<16> of nothing"),
    *map(Word, ("atomic_add", "atomic_max", "atomic_min", "atomic_increment_wrap", "atomic_cas", "atomic_exchange")),
    Word("load_streaming, store_streaming"),
    Word("transpose_matrix"),
)


@dataclass(frozen=True)
class Call:
    """What one word is given, and what it leaves."""

    which: int
    given: Tensor  # [NUM_BLOCKS, 32, 8] int32, as the others
    out: Tensor
    memory: Tensor

    @staticmethod
    def make(which: int, device: str = "cpu") -> Call:
        random = torch.Generator().manual_seed(which)
        given = WORDS[which].inputs(random)
        memory = bits(random)
        memory[:, 0, 0] = 0 if WORDS[which].name == "atomic_increment_wrap" else memory[:, 0, 0]
        return Call(which, given.to(device), torch.full_like(given, -1).to(device), memory.to(device))

    def fields(self) -> dict[str, object]:
        return {
            "in": self.given,
            "out": self.out,
            "global": self.memory,
            "which": self.which,
            "num_blocks": NUM_BLOCKS,
        }

    def struct(self) -> ctypes.Structure:
        return structs.fill(structs.header(HEADER).structs["IntrinsicsParams"], self.fields())


Runner = Callable[[Call], None]


def emulated() -> Runner:
    library = Library(SOURCE, header=HEADER)
    return lambda call: library.run("pagedserve_intrinsics", "IntrinsicsParams", call.fields())


def translated(arch: str, source: Path = SOURCE) -> Runner:
    program = load(compile_ptx(source, arch), name=f"intrinsics-{arch}")

    def run(call: Call) -> None:
        program.launch("intrinsics_kernel", grid=(NUM_BLOCKS, 1, 1), threads=32, arguments=[bytes(call.struct())])

    return run


def on_gpu() -> Runner:
    """nvcc's library of the same source."""
    major, minor = torch.cuda.get_device_capability()
    arch = "90a" if (major, minor) == (9, 0) else f"{major}{minor}"
    path = ROOT / "build" / f"intrinsics-{arch}.so"
    path.parent.mkdir(exist_ok=True)
    words = [tool("nvcc"), "-std=c++17", "-O3", "--expt-relaxed-constexpr", "-shared", "-Xcompiler=-fPIC"]
    words += [f"-gencode=arch=compute_{arch},code=sm_{arch}", "-o", str(path), str(SOURCE)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise BackendUnavailable(f"nvcc does not compile {SOURCE.name}:\n{done.stderr.strip()[:1000]}")
    library = ctypes.CDLL(str(path))

    def run(call: Call) -> None:
        error = library.pagedserve_intrinsics(ctypes.byref(call.struct()), None)
        torch.cuda.synchronize()
        if error:
            raise BackendUnavailable(f"the launch gave error {error}")

    return run


def differences(word: Word, got: Tensor, wanted: Tensor) -> tuple[int, float]:
    """How many results differ by more than the tolerance, and the largest difference."""
    if word.result == "bits":
        return int((got != wanted).sum()), 0.0
    dtype = getattr(torch, word.result)
    got, wanted = got.view(dtype).double(), wanted.view(dtype).double()
    same = (got == wanted) | (got.isnan() & wanted.isnan())
    finite = wanted.isfinite() & got.isfinite()
    scale = wanted.abs() if word.relative else torch.full_like(wanted, max(1.0, float(wanted[finite].abs().max())))
    error = ((got - wanted).abs() / scale.clamp(min=2.0**-126)).where(finite, torch.inf).where(~same, 0.0)
    return int((error > word.tolerance).sum()), float(error.max())


def rows(place: Place, done: set[str]) -> Iterator[Row]:
    """A row for each word and each way to run it; the emulator's source route is what all are compared with."""
    oracle = emulated()
    ways = {"ptx": translated("sm_90a")} if place.is_dry else {"gpu": on_gpu()}
    for name, run in ways.items():
        for which, word in enumerate(WORDS):
            case = f"{word.name}, {name}"
            if case in done:
                continue
            expected, call = Call.make(which), Call.make(which, place.device)
            try:
                oracle(expected)
                run(call)
            except PagedServeError as error:
                yield verdict(case, error)
                continue
            wrong, largest = differences(word, call.out.cpu(), expected.out)
            stored, _ = differences(Word("memory"), call.memory.cpu(), expected.memory)
            error = ValueError(f"{wrong} results and {stored} words of memory differ") if wrong or stored else None
            yield verdict(case, error, results=call.out.numel(), largest_error=largest, allowed_error=word.tolerance)
