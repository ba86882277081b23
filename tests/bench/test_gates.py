# SPDX-License-Identifier: Apache-2.0
"""Gates: what ptxas made of a kernel is read right, and each way to leave a budget is named."""

import argparse
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from bench import gates, report
from bench.gates_table import FILES, KERNELS, KernelBudget
from bench.sass import Kernel, tool
from pagedserve.errors import BackendUnavailable

LOOP = ((0, "LDG.E.128 R4, [R2]"), (16, "@P0 FADD R1, R1, R4"), (32, "@P1 BRA 0x0"), (48, "EXIT"))


def kernel(**changes) -> Kernel:
    facts = {"symbol": "k", "name": "k", "arch": "sm_90a", "registers": 64, "stack_bytes": 0, "shared_bytes": 0}
    return Kernel(**{**facts, "max_threads": 128, "instructions": LOOP, **changes})


def test_instructions_are_counted_and_loops_found():
    assert kernel().count("FADD") == 1
    assert kernel().count(r"LDG\.E\S*\.128") == 1
    assert kernel().count("ADD") == 0
    assert [len(loop) for loop in kernel().loops()] == [3]


@pytest.mark.parametrize(
    "registers, threads, shared_bytes, blocks",
    [
        (168, 128, 70656, 3),  # 3 x 4 warps x 32 x 168 registers; 3 x 70 KB
        (32, 1024, 0, 2),  # 64 warps
        (32, 32, 0, 32),  # the most blocks there are
        (255, 256, 0, 1),
        (40, 128, 100 << 10, 2),
    ],
)
def test_blocks_of_an_sm(registers, threads, shared_bytes, blocks):
    assert kernel(registers=registers).blocks_per_sm(threads, shared_bytes) == blocks


def test_each_way_beyond_a_budget_is_named():
    budget = KernelBudget("k", 64, 8, required={"FADD": 1}, forbidden=("HMMA",))
    assert gates.faults(kernel(), 0, budget) == []
    assert gates.faults(kernel(), 0, None) == ["no budget: add a row to KERNELS in bench/gates_table.py"]
    assert gates.faults(kernel(registers=65), 8, budget)[:2] == ["65 registers, allowed 64", "8 spill bytes, allowed 0"]
    assert gates.faults(kernel(stack_bytes=16), 0, budget) == ["16 stack bytes, allowed 0"]
    assert gates.faults(kernel(shared_bytes=4), 0, budget) == ["4 shared bytes, allowed 0"]
    assert gates.faults(kernel(max_threads=512), 0, budget) == ["2 blocks per SM, wanted 8"]
    broken = kernel(instructions=((0, "STL [R1], R2"), (16, "HMMA.16816 R1")))
    assert gates.faults(broken, 0, budget) == [
        "0 of FADD, wanted 1",
        "1 of STL, which is forbidden",
        "1 of HMMA, which is forbidden",
    ]


def test_names_are_short():
    name = "void pagedserve::kernels::append_kv_kernel<(pagedserve::DType)2, (pagedserve::DType)5>(pagedserve::P, int)"
    assert gates.short_name(name) == "append_kv_kernel<bf16, i4>"


def test_every_launch_file_has_a_budget():
    assert set(FILES) == {path.name for path in gates.LAUNCH.glob("*.cu")}
    rows = [(row.kernel, arch) for row in KERNELS for arch in row.archs]
    assert len(set(rows)) == len(rows)


def needs_tools() -> None:
    try:
        tool("cuobjdump")
        tool("nvcc")
    except BackendUnavailable as error:
        pytest.skip(str(error))


SPILLS = """
extern "C" __global__ void __launch_bounds__(1024, 2) spills(const float* a, float* out) {
  float x[64];
  for (int i = 0; i < 64; ++i) x[i] = a[i * 1024 + threadIdx.x];
  __syncthreads();
  for (int i = 0; i < 64; ++i) out[i * 1024 + threadIdx.x] = x[i] * x[63 - i] + x[i * 7 % 64];
}
"""


def test_a_kernel_that_spills_is_beyond_every_budget(tmp_path):
    needs_tools()
    source = tmp_path / "spills.cu"
    source.write_text(SPILLS)
    compiled = gates.compile_file(source, "sm_90a", tmp_path)
    (found,) = gates.read_kernels(compiled.cubin, "sm_90a")
    assert found.max_threads == 1024
    faults = gates.faults(found, compiled.spills[found.symbol], KernelBudget("spills", 32, 2))
    assert any("spill bytes, allowed 0" in fault for fault in faults)
    assert any("of STL, which is forbidden" in fault for fault in faults)
    assert gates.compile_file(source, "sm_90a", tmp_path) == compiled  # not compiled again
    assert gates.file_row(compiled, 1, None)["passes"].startswith("no: no budget")


def test_small_launch_files_keep_their_budgets():
    needs_tools()
    kernels, files = gates.judge(["sm_80", "sm_90a"], "copy_pages")
    assert [row["passes"] for row in [*kernels, *files]] == ["yes"] * (len(kernels) + 2)
    assert all(row["spill_bytes"] == 0 for row in kernels)


def test_the_built_library_keeps_its_budgets(capsys):
    if gates.built_library() is None:
        pytest.skip("no CUDA library is built here")
    needs_tools()
    args = argparse.Namespace(built=True, arch="sm_80,sm_90a", only="")
    assert gates.run(args, Console(width=200)) == 0, capsys.readouterr().out


def test_what_does_not_compile_is_said(tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    source = Path(tmp_path) / "broken.cu"
    source.write_text("nonsense")
    with pytest.raises(BackendUnavailable, match=r"nvcc does not compile broken\.cu for sm_80"):
        gates.compile_file(source, "sm_80", tmp_path)
    assert report.ROOT in gates.BUILD.parents
