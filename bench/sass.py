# SPDX-License-Identifier: Apache-2.0
"""What ptxas made of a kernel: registers, stack, shared memory and instructions, read from a cubin or a library.

cuobjdump comes with CUDA's toolkit or as the package nvidia-cuda-cuobjdump, nvdisasm as nvidia-cuda-nvdisasm.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pagedserve.errors import BackendUnavailable

# What one SM of an architecture holds, and what each block's shared memory takes besides.
ARCHITECTURES = {
    "sm_80": {"registers": 65536, "shared_bytes": 164 << 10, "threads": 2048, "blocks": 32, "reserved_bytes": 1024},
    "sm_90a": {"registers": 65536, "shared_bytes": 228 << 10, "threads": 2048, "blocks": 32, "reserved_bytes": 1024},
}
REGISTER_UNIT = 256  # registers are given to a warp in units of so many
SHARED_UNIT = 128


@dataclass(frozen=True)
class Kernel:
    """One kernel of one architecture.

    Attributes:
        symbol, name: as the linker knows it, and as C++ writes it.
        arch: "sm_90a".
        shared_bytes: static; without what the architecture reserves.
        max_threads: of a block, as __launch_bounds__ says; 0 where it does not.
        instructions: address and text of each.
    """

    symbol: str
    name: str
    arch: str
    registers: int
    stack_bytes: int
    shared_bytes: int
    max_threads: int
    instructions: tuple[tuple[int, str], ...]

    def count(self, pattern: str) -> int:
        """Instructions whose opcode begins with the pattern, a regular expression."""
        found = re.compile(rf"(?:@!?U?P\w+\s+)?{pattern}")
        return sum(found.match(text) is not None for _, text in self.instructions)

    def loops(self) -> list[list[str]]:
        """Instructions of each loop: between a branch back and where it goes."""
        found = []
        for address, text in self.instructions:
            match = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
            if match and int(match[1], 16) < address:
                begin = int(match[1], 16)
                found.append([body for place, body in self.instructions if begin <= place <= address])
        return found

    def blocks_per_sm(self, threads: int, dynamic_shared_bytes: int) -> int:
        """Blocks that one SM holds at once."""
        sm = ARCHITECTURES[self.arch]
        warps = -(-threads // 32)
        registers = warps * round_up(self.registers * 32, REGISTER_UNIT)
        shared = round_up(self.shared_bytes + dynamic_shared_bytes, SHARED_UNIT) + sm["reserved_bytes"]
        limits = (
            sm["registers"] // registers,
            sm["shared_bytes"] // shared,
            sm["threads"] // (32 * warps),
            sm["blocks"],
        )
        return min(limits)


def round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


@functools.cache
def tool(name: str) -> str:
    """Path of one of CUDA's tools.

    Raises:
        BackendUnavailable: it is neither on PATH, nor in CUDA_HOME, nor in a package.
    """
    spec = importlib.util.find_spec("nvidia")
    folders = (
        [
            Path(place) / folder / "bin"
            for place in (spec.submodule_search_locations or [])
            for folder in ("cu13", "cu12")
        ]
        if spec
        else []
    )
    for folder in folders:
        if (folder / name).exists():
            return str(folder / name)
    found = shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
    if found is None:
        raise BackendUnavailable(
            f"{name} is not here; `pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm` brings it"
        )
    return found


def dump(file: Path, option: str, arch: str) -> str:
    """cuobjdump's text about one architecture's kernels in a cubin, an object or a library."""
    environment = os.environ | {"PATH": f"{Path(tool('nvdisasm')).parent}:{os.environ.get('PATH', '')}"}
    words = [tool("cuobjdump"), option, *(["-arch", arch] if file.suffix != ".cubin" else []), str(file)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise BackendUnavailable(f"cuobjdump cannot read {file}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def demangled(symbols: list[str]) -> list[str]:
    if not symbols or shutil.which("c++filt") is None:
        return symbols
    text = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True).stdout
    return text.splitlines()


def read_kernels(file: Path, arch: str) -> list[Kernel]:
    """All kernels of one architecture in a file, by name.

    Raises:
        BackendUnavailable: cuobjdump is missing or cannot read the file.
    """
    usage = re.findall(r"Function (\S+):\s*\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+)", dump(file, "-res-usage", arch))
    sections = dump(file, "-elf", arch).split("\n.nv.info.")[1:]
    threads = {}
    for section in sections:
        match = re.search(r"EIATTR_MAX_THREADS\s+Format:\s*\S+\s+Value:\s*(0x[0-9a-f]+)", section)
        if match:
            threads[section.split("\n", 1)[0].strip()] = int(match[1], 16)
    code = {}
    for section in re.split(r"\n\s*Function : ", dump(file, "-sass", arch))[1:]:
        symbol = section.split("\n", 1)[0].strip()
        lines = re.findall(r"/\*([0-9a-f]{4,6})\*/\s+(.*?)\s*;", section)
        code[symbol] = tuple((int(place, 16), text) for place, text in lines)
    reserved = ARCHITECTURES[arch]["reserved_bytes"] if arch >= "sm_90" else 0  # res-usage counts it from sm_90 on
    names = demangled([symbol for symbol, *_ in usage])
    return [
        Kernel(
            symbol=symbol,
            name=name,
            arch=arch,
            registers=int(registers),
            stack_bytes=int(stack),
            shared_bytes=max(int(shared) - reserved, 0),
            max_threads=threads.get(symbol, 0),
            instructions=code.get(symbol, ()),
        )
        for (symbol, registers, stack, shared), name in zip(usage, names, strict=True)
    ]
