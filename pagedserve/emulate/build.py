# SPDX-License-Identifier: Apache-2.0
"""Compiles a kernel's launch file for the emulator, into build/emulated, once for each state of sources and flags."""

import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from pagedserve.errors import BackendUnavailable, InvalidInput

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
OUTPUT = ROOT / "build" / "emulated"

# Kernels read memory as whichever type suits; contraction would hide what nvcc is told to do.
COMMON = ("-x", "c++", "-std=c++17", "-DPAGEDSERVE_EMULATED", "-fPIC", "-shared", "-fvisibility=hidden")
COMMON += ("-fno-gnu-unique", "-fno-strict-aliasing", "-ffp-contract=off", "-g1")
UNDEFINED = "bounds,shift,signed-integer-overflow,integer-divide-by-zero,alignment"
# What is compiled once runs a few times: -O2 takes twice as long as -O1 for a translated kernel, and gains less.
# At -O1, or with all of -fsanitize=undefined, "bounds" takes four times as long to compile.
BUILDS: dict[str, tuple[str, ...]] = {
    "plain": ("-O1",),
    "bounds": ("-O0", "-fno-omit-frame-pointer", f"-fsanitize=address,{UNDEFINED}"),
    "races": ("-O1", "-fno-omit-frame-pointer", "-fsanitize=thread"),
}
RUNTIMES = {"bounds": "libasan.so", "races": "libtsan.so"}
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


@functools.cache
def compiler() -> str:
    """The C++ compiler that emulated kernels are compiled with."""
    found = shutil.which("g++") or shutil.which("c++")
    if found is None:
        raise BackendUnavailable("emulated kernels need a C++17 compiler, and there is no g++: install one")
    return found


@functools.cache
def compiler_version() -> str:
    return subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True).stdout


def runtime(build: str) -> Path:
    """The sanitizer's runtime library of a build, to be loaded before all others."""
    name = RUNTIMES[build]
    command = [compiler(), f"-print-file-name={name}"]
    path = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    if not path.is_absolute():
        raise BackendUnavailable(f"checking {build} needs {name}, which {compiler()} lacks: install GCC's sanitizers")
    return path


def launch_file(op: str) -> Path:
    """csrc/launch/<op>.cu."""
    path = CSRC / "launch" / f"{op}.cu"
    if not CSRC.is_dir():
        raise BackendUnavailable(f"emulated kernels are compiled from {CSRC}, which is not here: use a checkout")
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in (CSRC / "launch").glob("*.cu"))) or "none yet"
        raise InvalidInput(f"there is no launch file for {op!r} in {CSRC / 'launch'}; there are: {known}")
    return path


def sources_of(path: Path, seen: dict[Path, bytes] | None = None) -> dict[Path, bytes]:
    """A file and all that it includes by a quoted name, with their contents."""
    seen = {} if seen is None else seen
    if path in seen or not path.is_file():
        return seen
    seen[path] = path.read_bytes()
    for name in INCLUDE.findall(seen[path].decode("utf-8")):
        sources_of((path.parent / name).resolve(), seen)
    return seen


def write(path: Path, text: str) -> None:
    """All of it or nothing, whoever reads or writes the file meanwhile; a file that holds the text already stays."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=path.suffix, delete=False) as file:
        file.write(text)
    os.replace(file.name, path)


def flags_of(build: str, defines: Sequence[str]) -> Iterator[str]:
    if build not in BUILDS:
        raise InvalidInput(f"there is no build {build!r}; the builds are {', '.join(BUILDS)}")
    yield from COMMON
    yield from BUILDS[build]
    yield from (f"-D{define}" for define in defines)


def compile_library(source: Path, build: str = "plain", defines: Sequence[str] = ()) -> Path:
    """The shared library of a source: compiled now, or found where nothing it is made of has changed.

    Raises:
        BackendUnavailable: there is no compiler, or the source does not compile; the message holds its first errors.
    """
    source = source.resolve()
    if not source.is_file():
        raise InvalidInput(f"{source} is not a file")
    flags = list(flags_of(build, defines))
    digest = hashlib.sha256(repr((compiler_version(), flags)).encode())
    for path, text in sources_of(source).items():
        digest.update(str(path).encode() + b"\0" + text + b"\0")
    result = OUTPUT / f"{source.stem}-{build}-{digest.hexdigest()[:16]}.so"
    if result.exists():
        return result
    OUTPUT.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(suffix=".so", dir=OUTPUT)
    os.close(handle)
    try:
        command = [compiler(), *flags, str(source), "-o", temporary]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            raise BackendUnavailable(f"{source} does not compile for the emulator:\n" + "\n".join(errors[:8]))
        os.replace(temporary, result)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return result
