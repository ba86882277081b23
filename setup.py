# SPDX-License-Identifier: Apache-2.0
"""Builds pagedserve._C: every kernel of csrc/cpu/kernels once per instruction set, everything else once."""

import os
import platform
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
COMMON = ["-std=c++17", "-O3", "-fopenmp", "-fvisibility=hidden", "-g0", "-Wall", "-Wextra"]
# Contraction is written out where it is meant: bits must not depend on what a compiler fuses.
KERNEL = ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mprefer-vector-width=512"]
X86_ISAS = {
    "kPortable": [],
    "kAvx2": AVX2,
    "kAvx512": AVX512,
    "kAvx512Bf16": [*AVX512, "-mavx512bf16"],
}


def sources() -> list[str]:
    folders = (ROOT / "csrc/bind", ROOT / "csrc/cpu")
    return sorted(path.relative_to(ROOT).as_posix() for folder in folders for path in folder.rglob("*.cpp"))


def num_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class BuildExt(build_ext):
    """Compiles in parallel, each kernel file once per instruction set, with that set's flags."""

    def build_extension(self, ext):
        is_x86 = platform.machine().lower() in ("x86_64", "amd64")
        isas = X86_ISAS if is_x86 else {"kPortable": []}
        base = [*COMMON, *(["-DPAGEDSERVE_X86"] if is_x86 else [])]
        jobs = []
        for source in ext.sources:
            if Path(source).parent.name == "kernels":
                for isa, flags in isas.items():
                    jobs.append((source, isa, [*base, *KERNEL, *flags, f"-DPAGEDSERVE_ISA={isa}"]))
            else:
                jobs.append((source, "common", base))
        build_temp = Path(self.build_temp)
        newest_header = max(path.stat().st_mtime for path in (ROOT / "csrc").rglob("*.h"))

        def compile_one(job):
            source, isa, flags = job
            out = str(build_temp / isa)
            (target,) = self.compiler.object_filenames([source], output_dir=out)
            newest = max(newest_header, os.path.getmtime(source), os.path.getmtime(__file__))
            if not os.path.exists(target) or os.path.getmtime(target) < newest:
                self.compiler.compile([source], output_dir=out, include_dirs=ext.include_dirs, extra_postargs=flags)
            return target

        with ThreadPoolExecutor(num_processors()) as pool:
            objects = list(pool.map(compile_one, jobs))
        target = self.get_ext_fullpath(ext.name)
        self.compiler.link_shared_object(
            objects, target, extra_postargs=["-fopenmp", "-s"], build_temp=self.build_temp, target_lang="c++"
        )

    def run(self):
        # A wheel holds what this build made, never what an older one left behind.
        if not self.inplace:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


setup(ext_modules=[Pybind11Extension("pagedserve._C", sources())], cmdclass={"build_ext": BuildExt})
