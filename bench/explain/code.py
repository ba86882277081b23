# SPDX-License-Identifier: Apache-2.0
"""What a warp of paged_decode issues for a tile of tokens: its machine code, counted by the source that it came from.

nvdisasm names for each instruction the source line and the lines that it was inlined at. The loop over tiles is the
smallest one that copies and multiplies. Its instructions are counted once each, but for those of functions that a tile
in the middle of a long sequence does not enter (RARE). Of two branches that exclude each other both are counted.
"""

from __future__ import annotations

import ctypes
import functools
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import gates
from bench.sass import Kernel, read_kernels, tool
from pagedserve.emulate.build import compile_library
from pagedserve.errors import BackendUnavailable
from pagedserve.specs.plan_layout import ceil_div

SIZES = Path(__file__).with_name("sizes.cu")
FORMATS = {"bf16": "BF16", "f16": "F16", "f8": "F8E4M3", "i8": "signed char", "i4": "I4x2"}
# Masks and caps of logits, rows that 16 bytes cannot be copied of, the next sequence, a maximum that still grows.
RARE = ("mask_logits", "change_logits", "copy_rows_by_parts", "enter_task", "shrink_values")
PHASES = {
    "keys": ("multiply_keys",),
    "softmax": ("make_logits", "weigh"),
    "values": ("add_values",),
    "split": ("add_warps",),
    "copies": ("bring",),
}
CLASSES = {
    "matrix": r"HMMA|MOVM",
    "matrix loads": r"LDSM",
    "copies": r"LDGSTS",
    "shared": r"LDS\b|STS",
    "convert": r"F2FP|F2F|I2F|HADD2|HMUL2|HFMA2|PRMT",
    "exponent": r"MUFU",
    "float": r"FADD|FMUL|FFMA|FMNMX|FSETP|FSEL",
    "shuffle": r"SHFL",
    "integer": r"IMAD|IADD|VIADD|LOP3|SHF|ISETP|SEL|LEA|VIMNMX|CS2R|U[A-Z]",
}
DEFINITION = re.compile(r"PAGEDSERVE_(?:HOST_)?DEVICE\b[^=;]*?\b(\w+)\(")
LINE = re.compile(r'//## File "([^"]+)", line (\d+)')
INSTRUCTION = re.compile(r"\s*/\*([0-9a-f]{4,6})\*/\s+\S")


@dataclass(frozen=True)
class Sizes:
    """Of one instantiation, as sizes.cu has them. row_bytes: of a token's keys; merge_ahead: partials read at once."""

    threads: int
    stages: int
    warp_tokens: int
    tile_tokens: int
    tiles_per_split: int
    row_bytes: int
    shared_bytes: int
    merge_ahead: int

    @property
    def tile_bytes(self) -> int:
        """Keys and values that a stage holds."""
        return 2 * self.tile_tokens * self.row_bytes


@dataclass(frozen=True)
class Line:
    """An instruction: address, text, and the functions that it stands in, innermost first."""

    address: int
    text: str
    functions: tuple[str, ...]

    @property
    def opcode(self) -> str:
        return re.sub(r"^@!?U?P\w+\s+", "", self.text).split()[0]


@dataclass(frozen=True)
class Work:
    """What one warp issues.

    Attributes:
        tile: phase -> class -> instructions, for a tile in the middle of a long sequence.
        split: instructions at the end of a split, in which warps add up.
        merge_row, merge_batch: instructions to fold a row of partials: for up to 32 of them, and for each
            `merge_ahead` of these.
    """

    tile: dict[str, Counter[str]]
    split: int
    merge_row: int
    merge_batch: int

    def tile_slots(self, tiles_per_split: int) -> float:
        """Issue slots of a tile, with its share of the split's end."""
        return sum(sum(classes.values()) for classes in self.tile.values()) + self.split / tiles_per_split

    def merge_slots(self, partials: int, merge_ahead: int) -> int:
        """Issue slots of one row."""
        return ceil_div(partials, 32) * self.merge_row + ceil_div(partials, merge_ahead) * self.merge_batch

    def of_class(self, name: str) -> int:
        return sum(classes[name] for classes in self.tile.values())


def sizes_of(kv: str, head_dim: int, columns: int) -> Sizes:
    """head_dim and columns of a bucket: 64, 128 or 256 and 8, 16 or 32."""
    numbers = (ctypes.c_int32 * 8)()
    library = ctypes.CDLL(str(compile_library(SIZES)))
    library.pagedserve_decode_sizes(list(FORMATS).index(kv), head_dim, columns, numbers)
    if not numbers[0]:
        raise BackendUnavailable(f"paged_decode has no kernel of head_dim {head_dim} with {columns} columns")
    return Sizes(*numbers)


def compiled(kv: str, head_dim: int, columns: int, arch: str) -> tuple[Kernel, list[Line]]:
    """One instantiation: what ptxas reports, and its instructions with their sources.

    Raises:
        BackendUnavailable: nvcc, cuobjdump or nvdisasm is missing.
    """
    flags = ("-lineinfo", f"-DPAGEDSERVE_DECODE_HEAD_DIM={head_dim}")
    folder = gates.BUILD.parent / "explain" / str(head_dim)
    cubin = gates.compile_file(gates.LAUNCH / f"paged_decode_{kv}.cu", arch, folder, flags).cubin
    wanted = f"{FORMATS[kv]}, {head_dim}, {columns}>"
    (kernel,) = (kernel for kernel in read_kernels(cubin, arch) if wanted in kernel.name)
    text = subprocess.run([tool("nvdisasm"), "-gi", "-c", str(cubin)], capture_output=True, text=True, check=True)
    (section,) = (part for part in text.stdout.split("--- .text.")[1:] if part.split()[0] == kernel.symbol)
    return kernel, list(lines_of(section, kernel))


def lines_of(section: str, kernel: Kernel) -> Iterator[Line]:
    """nvdisasm's sources with cuobjdump's texts, whose branches say addresses. A line without a source of its own has
    that of the line before."""
    texts = dict(kernel.instructions)
    functions: tuple[str, ...] = ()
    places: list[str] = []
    for text in section.splitlines():
        if place := LINE.search(text):
            places.append(function_at(str(Path(place[1]).resolve()), int(place[2])))
        elif instruction := INSTRUCTION.match(text):
            functions = tuple(places) or functions
            places = []
            address = int(instruction[1], 16)
            yield Line(address, texts[address], functions)


def function_at(file: str, line: int) -> str:
    """The function there. None behind the file's end: nvcc puts some instructions at a line of another file."""
    functions = _functions(file)
    return functions[line - 1] if line <= len(functions) else ""


@functools.cache
def _functions(file: str) -> list[str]:
    """Of each line of a file of csrc, the function in which it stands."""
    found, current = [], ""
    for text in Path(file).read_text(encoding="utf-8", errors="replace").splitlines():
        definition = DEFINITION.search(text)
        current = definition[1] if definition else "kernel" if "PAGEDSERVE_KERNEL" in text else current
        found.append(current)
    return found


def loops_of(lines: list[Line]) -> list[tuple[int, int]]:
    """First and last address of each loop, the smallest loop first."""
    found = []
    for line in lines:
        target = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", line.text)
        if target and int(target[1], 16) < line.address:
            found.append((int(target[1], 16), line.address))
    return sorted(found, key=lambda loop: loop[1] - loop[0])


def inside(lines: list[Line], loop: tuple[int, int]) -> list[Line]:
    return [line for line in lines if loop[0] <= line.address <= loop[1]]


def has(lines: list[Line], *patterns: str) -> bool:
    return all(any(re.match(pattern, line.opcode) for line in lines) for pattern in patterns)


def work_of(lines: list[Line], sizes: Sizes, head_dim: int, columns: int, num_rows: int) -> Work:
    """Counts a kernel's instructions.

    Raises:
        ValueError: no loop copies and multiplies, or not as often as the tile needs.
    """
    loops = loops_of(lines)
    around = [loop for loop in loops if has(inside(lines, loop), "HMMA", r"LDGSTS\S*\.128")]
    if not around:
        raise ValueError("no loop of the kernel copies and multiplies")
    tile_loop = around[0]
    tile: dict[str, Counter[str]] = {phase: Counter() for phase in PHASES if phase != "split"}
    for line in inside(lines, tile_loop):
        phase = phase_of(line)
        if phase is not None and phase != "split":
            tile[phase][class_of(line)] += 1
    needed = sizes.warp_tokens // 16 * (head_dim // 16) * (columns // 8)
    for phase in ("keys", "values"):
        counted = sum(line.opcode.startswith("HMMA") and phase_of(line) == phase for line in inside(lines, tile_loop))
        if not counted or needed % counted:
            raise ValueError(f"{counted} matrix products of {phase} are in the loop, and a tile needs {needed}")
        tile[phase] = Counter({name: count * (needed // counted) for name, count in tile[phase].items()})
    folds = ceil_div(num_rows, 4) * ceil_div(head_dim, 128)  # columns of a warp, in runs of 128 elements
    split_loop = next(loop for loop in around if has(inside(lines, loop), r"BAR\.SYNC"))
    split = 0
    for line in inside(lines, split_loop):
        if not tile_loop[0] <= line.address <= tile_loop[1] and phase_of(line) == "split":
            split += folds if "fold_column" in line.functions else 1
    return Work(tile, split, *merge_loops(lines))


def merge_loops(lines: list[Line]) -> tuple[int, int]:
    """Instructions of the loop over 32 partials of a row, and of the one in it that folds `merge_ahead` of them."""
    loops = [body for body in (inside(lines, loop) for loop in loops_of(lines)) if is_merge(body)]
    outer = next((body for body in loops if has(body, "MUFU")), [])
    inner = next((body for body in loops if body[0] in outer and len(body) < len(outer)), [])
    return len(outer) - len(inner), len(inner)


def is_merge(body: list[Line]) -> bool:
    """A line or two of what is around it may have moved in."""
    return sum("merge_partials" in line.functions for line in body) > 0.9 * len(body)


def phase_of(line: Line) -> str | None:
    """None: not of a tile in the middle of a long sequence."""
    if any(name in RARE for name in line.functions):
        return None
    for phase, names in PHASES.items():
        if any(name in line.functions for name in names):
            return phase
    return "copies" if "attend_split" in line.functions else None


def class_of(line: Line) -> str:
    return next((name for name, pattern in CLASSES.items() if re.match(pattern, line.opcode)), "control")
