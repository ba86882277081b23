# SPDX-License-Identifier: Apache-2.0
"""The CUDA half of a build: when there is one, what nvcc is told, what fails it. Compilers here only note orders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTES_ORDERS = """\
#!/bin/sh
echo "$(basename "$0") $*" >> "{log}"
case "$*" in *"{fails_on}"*) echo "{says}"; exit {status};; esac
case "$*" in *--version*) echo "Cuda compilation tools, release 13.0, V13.0.88";; esac
while [ $# -gt 0 ]; do
  if [ "$1" = -o ]; then mkdir -p "$(dirname "$2")"; echo built > "$2"; fi
  shift
done
"""

if not sys.platform.startswith("linux"):
    pytest.skip("pagedserve builds on Linux", allow_module_level=True)


class Machine:
    """A copy of the sources, a g++ and, on request, an nvcc that write down how they were called."""

    def __init__(self, folder: Path) -> None:
        self.tree, self.log = folder / "tree", folder / "orders"
        self.bin, self.toolkit = folder / "bin", folder / "toolkit"
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
        for name in ("csrc", "pagedserve"):
            shutil.copytree(ROOT / name, self.tree / name, ignore=ignored)
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
            shutil.copy(ROOT / name, self.tree)
        self.bin.mkdir()
        for tool in ("sh", "basename", "dirname", "mkdir"):
            (self.bin / tool).symlink_to(shutil.which(tool) or "/bin/false")
        self.tool(self.bin / "g++")

    def tool(self, path: Path, fails_on: str = "no such word", says: str = "", status: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(NOTES_ORDERS.format(log=self.log, fails_on=fails_on, says=says, status=status))
        path.chmod(0o755)

    def setup_py(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("CUDA_", "PAGEDSERVE_", "LD"))}
        tools = {"PATH": str(self.bin), "CC": "g++", "CXX": "g++", "LDSHARED": "g++ -shared", "LDCXXSHARED": "g++"}
        return subprocess.run(
            [sys.executable, "setup.py", "-q", *arguments],
            cwd=self.tree,
            env={**kept, **tools, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def orders(self, tool: str) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if line.startswith(f"{tool} ")]

    def built(self) -> set[str]:
        return {path.name.partition(".")[0] for path in self.tree.glob("build/lib*/pagedserve/_*.so")}


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def with_nvcc(machine) -> Machine:
    machine.tool(machine.bin / "nvcc")
    return machine


def last_line(done: subprocess.CompletedProcess) -> str:
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_auto_without_nvcc_is_a_cpu_build(machine):
    done = machine.setup_py("build")
    assert done.returncode == 0, done.stderr
    assert machine.built() == {"_C"}


def test_asking_for_cuda_without_nvcc_fails_in_a_sentence(machine):
    told = last_line(machine.setup_py("build_ext", PAGEDSERVE_CUDA="1"))
    assert "PAGEDSERVE_CUDA=1 asks for CUDA kernels, but there is no nvcc in CUDA_HOME/bin or on PATH" in told
    assert "PAGEDSERVE_CUDA=auto" in told


@pytest.mark.parametrize("wanted", ["auto", "1"])
def test_every_launch_file_is_compiled_for_every_architecture(with_nvcc, wanted):
    done = with_nvcc.setup_py("build", PAGEDSERVE_CUDA=wanted)
    assert done.returncode == 0, done.stderr
    assert with_nvcc.built() == {"_C", "_cuda"}
    compiled = [order for order in with_nvcc.orders("nvcc") if " -c " in order]
    assert len(compiled) == len(list((ROOT / "csrc/launch").glob("*.cu"))) > 0
    for order in compiled:
        for arch in ("compute_80,code=sm_80", "compute_90a,code=sm_90a", "compute_90,code=compute_90"):
            assert f"-gencode=arch={arch} " in order
        assert "-Xptxas=--warn-on-spills,--warning-as-error" in order
    (linked,) = (order for order in with_nvcc.orders("nvcc") if "-shared" in order)
    assert "-cudart=static" in linked
    assert not any("torch" in order for order in with_nvcc.orders("nvcc"))


def test_zero_leaves_cuda_out_and_what_an_older_build_left(with_nvcc):
    assert with_nvcc.setup_py("build").returncode == 0
    assert with_nvcc.setup_py("build_ext", "--inplace").returncode == 0
    in_tree = with_nvcc.tree / "pagedserve"
    assert list(in_tree.glob("_cuda.*.so"))
    with_nvcc.log.unlink()
    assert with_nvcc.setup_py("build", PAGEDSERVE_CUDA="0").returncode == 0
    assert with_nvcc.built() == {"_C"}
    assert with_nvcc.setup_py("build_ext", "--inplace", PAGEDSERVE_CUDA="0").returncode == 0
    assert not list(in_tree.glob("_cuda.*.so"))
    assert with_nvcc.orders("nvcc") == []


def test_architectures_are_the_callers_and_keep_their_own_objects(with_nvcc):
    done = with_nvcc.setup_py("build_ext", PAGEDSERVE_CUDA_ARCHS="86;90a+ptx")
    assert done.returncode == 0, done.stderr
    order = next(order for order in with_nvcc.orders("nvcc") if " -c " in order)
    assert [word for word in order.split() if word.startswith("-gencode")] == [
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_90a,code=compute_90a",
    ]
    assert "objects-cuda-86-90a+ptx" in order


@pytest.mark.parametrize(
    "variable, value, advice",
    [
        ("PAGEDSERVE_CUDA", "yes", "give auto, 1 or 0"),
        ("PAGEDSERVE_CUDA_ARCHS", "70", "give 80 or above, as in '80 90a 90+ptx'"),
        ("PAGEDSERVE_CUDA_ARCHS", "", "give 80 or above, as in '80 90a 90+ptx'"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(with_nvcc, variable, value, advice):
    told = last_line(with_nvcc.setup_py("build_ext", **{variable: value}))
    assert f"{variable} is {value!r}" in told
    assert advice in told


def test_a_spill_fails_the_build(with_nvcc):
    spill = "ptxas warning : Registers are spilled to local memory in function 'append_kv_kernel'"
    with_nvcc.tool(with_nvcc.bin / "nvcc", fails_on="append_kv.cu", says=spill, status=255)
    done = with_nvcc.setup_py("build_ext")
    assert spill in done.stderr
    assert "nvcc` failed (above)" in last_line(done)
    assert with_nvcc.built() <= {"_C"}


def test_the_toolkit_that_cuda_home_names_goes_first(with_nvcc):
    with_nvcc.tool(with_nvcc.toolkit / "bin" / "nvcc")
    (with_nvcc.toolkit / "lib").mkdir()  # as pip's nvidia-cuda-nvcc has it
    (with_nvcc.bin / "nvcc").write_text("#!/bin/sh\nexit 1\n")
    done = with_nvcc.setup_py("build_ext", CUDA_HOME=str(with_nvcc.toolkit))
    assert done.returncode == 0, done.stderr
    (linked,) = (order for order in with_nvcc.orders("nvcc") if "-shared" in order)
    assert f"-L{with_nvcc.toolkit}/lib " in linked


def test_only_what_changed_is_compiled_again(with_nvcc):
    """nvcc lists what an object was made from; this one lists nothing, so its objects are always old."""
    assert with_nvcc.setup_py("build_ext").returncode == 0
    for made in with_nvcc.tree.glob("build/objects-cuda*/*/*.o"):
        made.with_suffix(".d").write_text(f"{made}: {with_nvcc.tree}/csrc/params.h\n")
    for made in with_nvcc.tree.glob("build/objects*/*/**/*.o"):
        made.touch()
    with_nvcc.log.unlink()
    assert with_nvcc.setup_py("build_ext").returncode == 0
    assert not [order for order in with_nvcc.orders("nvcc") if " -c " in order]
    (with_nvcc.tree / "csrc/params.h").touch()
    assert with_nvcc.setup_py("build_ext").returncode == 0
    assert [order for order in with_nvcc.orders("nvcc") if " -c " in order]
