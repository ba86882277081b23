# SPDX-License-Identifier: Apache-2.0
"""Builds pagedserve._C, every kernel of csrc/cpu/kernels once per instruction set, and pagedserve._cuda where nvcc is.

Needs a C++17 compiler with OpenMP and Python's headers; no torch, and no GPU. Objects are kept in build/, so a second
build compiles what changed. `build_ext --portable` (or `portable = 1` under [build_ext] in a setup.cfg) leaves the x86
instruction sets out, which is also what every processor other than x86-64 gets.

PAGEDSERVE_CUDA        auto: CUDA kernels where nvcc is found (default); 1: fail where it is not; 0: none
PAGEDSERVE_CUDA_ARCHS  what to compile them for, as "80 90a 90+ptx" (default): machine code, and PTX for later GPUs
CUDA_HOME, CUDA_PATH   where nvcc is looked for, in bin/, before PATH
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

ROOT = Path(__file__).parent.resolve()
COMMON = ["-std=c++17", "-O3", "-fopenmp", "-fvisibility=hidden", "-g0", "-Wall", "-Wextra"]
LINK = ["-fopenmp", "-s"]
# Contraction is written out where it is meant: bits must not depend on what a compiler fuses.
KERNEL = ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
# pybind11's templates are most of a build. At -O1 they compile in 34 s of processor time instead of 47, and a call
# through them takes 0.02 us more.
BIND = ["-O1"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mprefer-vector-width=512"]
PORTABLE_ISAS: dict[str, list[str]] = {"kPortable": []}
X86_ISAS = {**PORTABLE_ISAS, "kAvx2": AVX2, "kAvx512": AVX512, "kAvx512Bf16": [*AVX512, "-mavx512bf16"]}
CUDA_ARCHS = "80 90a 90+ptx"
# A spilled register is an error. Kernels call constexpr functions of headers that the host compiles too.
NVCC = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra"]
NVCC += ["-Xptxas=--warn-on-spills,--warning-as-error"]
PROBE = """\
#include <omp.h>
#include <optional>
int main() { return std::optional<int>(omp_get_max_threads()).value() < 1; }
"""


def sources(*patterns: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern))


def extensions() -> list[Pybind11Extension]:
    found = [Pybind11Extension("pagedserve._C", sources("csrc/bind/*.cpp", "csrc/cpu/**/*.cpp", "csrc/plan/*.cpp"))]
    wanted = os.environ.get("PAGEDSERVE_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        stop(f"PAGEDSERVE_CUDA is {wanted!r}; give auto, 1 or 0")
    if wanted == "1" or (wanted == "auto" and find_nvcc() is not None):
        found.append(Pybind11Extension("pagedserve._cuda", sources("csrc/bind/cuda/*.cpp", "csrc/launch/*.cu")))
    return found


def find_nvcc() -> str | None:
    """nvcc of a toolkit, or of pip's nvidia-cuda-nvcc where CUDA_HOME points at it."""
    for home in ("CUDA_HOME", "CUDA_PATH"):
        nvcc = Path(os.environ.get(home) or "/no such folder") / "bin" / "nvcc"
        if nvcc.is_file():
            return str(nvcc)
    return shutil.which("nvcc")


def cuda_archs() -> list[str]:
    archs = os.environ.get("PAGEDSERVE_CUDA_ARCHS", CUDA_ARCHS).replace(";", " ").split()
    wrong = [arch for arch in archs if not re.fullmatch(r"(8|9|1\d)\d[af]?(\+ptx)?", arch)]
    if wrong or not archs:
        stop(f"PAGEDSERVE_CUDA_ARCHS is {' '.join(archs)!r}; give 80 or above, as in {CUDA_ARCHS!r}")
    return archs


def gencode(arch: str) -> str:
    number, _, ptx = arch.partition("+")
    return f"-gencode=arch=compute_{number},code={'compute' if ptx else 'sm'}_{number}"


class Build(build):
    """A wheel holds what this build made, never what an older one left behind."""

    def run(self):
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildExt(build_ext):
    """Compiles in parallel, each kernel file once per instruction set, with that set's flags."""

    user_options: ClassVar = [*build_ext.user_options, ("portable", None, "leave the x86 instruction sets out")]
    boolean_options: ClassVar = [*build_ext.boolean_options, "portable"]

    def initialize_options(self):
        super().initialize_options()
        self.portable = 0

    def run(self):
        super().run()
        # What an earlier build left in the tree and this one did not make would be loaded as if it were new.
        if self.inplace and "pagedserve._cuda" not in {ext.name for ext in self.extensions}:
            for stale in (ROOT / "pagedserve").glob("_cuda.*.so"):
                stale.unlink()

    def build_extension(self, ext):
        self.check_compiler()
        if ext.name == "pagedserve._cuda":
            self.build_cuda(ext)
        else:
            self.build_cpu(ext)

    def build_cpu(self, ext):
        is_x86 = platform.machine().lower() in ("x86_64", "amd64") and not self.portable
        isas = X86_ISAS if is_x86 else PORTABLE_ISAS
        # Not self.build_temp: an editable install hands in a folder that it throws away.
        objects_dir = ROOT / "build" / f"objects-{sysconfig.get_platform()}{'' if is_x86 else '-portable'}"
        jobs = []
        base = [*COMMON, *(["-DPAGEDSERVE_X86"] if is_x86 else [])]
        for source in ext.sources:
            if Path(source).parent.name == "kernels":
                for isa, flags in isas.items():
                    jobs.append((source, isa, [*base, *KERNEL, *flags, f"-DPAGEDSERVE_ISA={isa}"]))
            elif Path(source).parent.name == "bind":
                # These alone see Python's headers, and so belong to one interpreter.
                jobs.append((source, sys.implementation.cache_tag, [*base, *BIND]))
            else:
                jobs.append((source, "common", base))
        with ThreadPoolExecutor(num_processors()) as pool:
            objects = list(pool.map(lambda job: self.compile_one(ext, objects_dir, *job), jobs))
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), extra_postargs=LINK, build_temp=self.build_temp, target_lang="c++"
        )

    def build_cuda(self, ext):
        nvcc, archs = find_nvcc(), cuda_archs()
        if nvcc is None:
            stop(
                "PAGEDSERVE_CUDA=1 asks for CUDA kernels, but there is no nvcc in CUDA_HOME/bin or on PATH: install "
                "the CUDA toolkit, point CUDA_HOME at it, or leave PAGEDSERVE_CUDA=auto for a CPU-only build"
            )
        objects_dir = ROOT / "build" / "-".join(["objects-cuda", *archs])
        toolkit = toolkit_version(nvcc)
        names = [f'-DPAGEDSERVE_CUDA_ARCHS="{" ".join(archs)}"', f'-DPAGEDSERVE_CUDA_TOOLKIT="{toolkit}"']
        binding = [source for source in ext.sources if source.endswith(".cpp")]
        kernels = [source for source in ext.sources if source.endswith(".cu")]
        flags = [*NVCC, *map(gencode, archs)]
        with ThreadPoolExecutor(num_processors()) as pool:
            made = [pool.submit(compile_cuda, nvcc, source, objects_dir / toolkit, flags) for source in kernels]
            folder = sys.implementation.cache_tag
            made += [
                pool.submit(self.compile_one, ext, objects_dir, source, folder, [*COMMON, *BIND, *names])
                for source in binding
            ]
            objects = [job.result() for job in made]
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        home = Path(nvcc).resolve().parent.parent
        folders = [f"-L{folder}" for folder in (home / "lib64", home / "lib") if folder.is_dir()]
        run([nvcc, "-shared", "-cudart=static", "-Xlinker=-s", *folders, *objects, "-o", str(target)])

    def compile_one(self, ext, objects_dir, source, folder, flags):
        out = str(objects_dir / folder)
        (target,) = self.compiler.object_filenames([source], output_dir=out)
        if is_stale(Path(target)):
            flags = [*flags, "-MMD"]
            self.compiler.compile([source], output_dir=out, include_dirs=ext.include_dirs, extra_postargs=flags)
        return target

    def check_compiler(self):
        if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
            stop("Python's headers (Python.h) are missing: install them, for example with `apt install python3-dev`")
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder) / "probe.cpp"
            probe.write_text(PROBE)
            try:
                objects = self.compiler.compile([str(probe)], output_dir="/", extra_postargs=["-std=c++17", "-fopenmp"])
                self.compiler.link_executable(
                    objects, str(probe.with_suffix("")), extra_postargs=["-fopenmp"], target_lang="c++"
                )
            except (CompileError, LinkError):
                name = self.compiler.compiler_cxx[0]
                stop(f"`{name}` does not compile C++17 with OpenMP: `apt install g++`, say, or name another with CXX=")


def toolkit_version(nvcc: str) -> str:
    told = run([nvcc, "--version"])
    found = re.search(r"V(\d+\.\d+\.\d+)", told)
    if found is None:
        stop(f"`{nvcc} --version` names no version: {told.strip()}")
    return found[1]


def compile_cuda(nvcc: str, source: str, folder: Path, flags: list[str]) -> str:
    target = folder / Path(source).with_suffix(".o").name
    if is_stale(target):
        folder.mkdir(parents=True, exist_ok=True)
        listed = str(target.with_suffix(".d"))
        run([nvcc, *flags, "-MD", "-MF", listed, "-c", source, "-o", str(target)])
    return str(target)


def run(command: list[str]) -> str:
    """A command's output. What a failed one says goes before the sentence that names it."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        print(done.stdout, file=sys.stderr)
        stop(f"`{command[0]}` failed (above): {' '.join(command)}")
    return done.stdout


def is_stale(target: Path) -> bool:
    """Whether this file or one that the object was made from, as the compiler listed them beside it, is newer."""
    listed = target.with_suffix(".d")
    if not target.exists() or not listed.exists():
        return True
    made_from = [Path(name) for name in listed.read_text().replace("\\\n", "").partition(":")[2].split()]
    age = target.stat().st_mtime
    return any(not path.exists() or path.stat().st_mtime > age for path in (*made_from, Path(__file__)))


def num_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stop(reason: str) -> None:
    raise SystemExit(f"pagedserve cannot be built here: {reason}")


if not sys.platform.startswith("linux"):
    stop(f"it builds on Linux, and this is {sys.platform}; a Linux container or virtual machine will do")

setup(ext_modules=extensions(), cmdclass={"build": Build, "build_ext": BuildExt})
