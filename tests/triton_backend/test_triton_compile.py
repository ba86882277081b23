# SPDX-License-Identifier: Apache-2.0
"""Every kernel and every row of the tables, compiled for sm_80 and sm_90 with no GPU: it fits, and spills nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

import triton

from pagedserve.backends.triton import __main__ as command
from pagedserve.backends.triton.catalogue import FEATURES, OPS, ModelShape
from pagedserve.backends.triton.compile_only import LARGEST_SHARED_BYTES, Job, compile_jobs
from pagedserve.backends.triton.target import TABLES, Target, read_table

pytestmark = [pytest.mark.triton, pytest.mark.timeout(900)]  # a busy machine compiles slowly

CACHE = Path(__file__).resolve().parents[2] / "build" / "triton"
FULL = ModelShape()
ATTENTION = ("paged_decode", "paged_prefill")
# Beside all ops of FULL: attention of every row of the tables, and of all features at once.
SHAPES = [
    (ModelShape(kv="int8"), (*ATTENTION, "append_kv", "rope_append_kv")),
    (ModelShape(kv="float8_e4m3fn"), (*ATTENTION, "append_kv", "rope_append_kv")),
    (ModelShape(kv="int4"), (*ATTENTION, "append_kv", "rope_append_kv")),
    (ModelShape(dtype="float16", kv="float16", num_q_heads=9, num_kv_heads=3, head_dim=64), ATTENTION),
    (ModelShape(head_dim=256, num_q_heads=8, num_kv_heads=4), ATTENTION),
    (ModelShape(dtype="float32", kv="float32", head_dim=80, page_size=5), ATTENTION),
    (ModelShape(dtype="float32", kv="float32", head_dim=256), ATTENTION),
    (ModelShape(features=FEATURES, q_len=5), ("paged_decode",)),
    (ModelShape(features=FEATURES[:-1]), ("paged_prefill",)),
]
# Of FULL in Triton 3.7.1: registers, shared bytes. Other versions allocate otherwise.
BUDGETS = {
    (80, "paged_decode_kernel"): (208, 40 * 1024),
    (80, "paged_prefill_kernel"): (192, 57 * 1024),
    (80, "sample_kernel"): (104, 9 * 1024),
    (80, "rms_norm_kernel"): (64, 1024),
    (80, "act_mul_kernel"): (40, 1024),
    (80, "rope_kernel"): (40, 1024),
    (80, "merge_states_kernel"): (56, 1024),
    (80, "append_kv_kernel"): (40, 1024),
    (80, "rope_append_kv_kernel"): (48, 1024),
    (80, "count_history_kernel"): (24, 1024),
    (90, "paged_decode_kernel"): (176, 40 * 1024),
    (90, "paged_prefill_kernel"): (208, 97 * 1024),
    (90, "sample_kernel"): (104, 9 * 1024),
    (90, "rms_norm_kernel"): (64, 1024),
    (90, "act_mul_kernel"): (40, 1024),
    (90, "rope_kernel"): (40, 1024),
    (90, "merge_states_kernel"): (56, 1024),
    (90, "append_kv_kernel"): (40, 1024),
    (90, "rope_append_kv_kernel"): (48, 1024),
    (90, "count_history_kernel"): (24, 1024),
}
WITH_BUDGETS = "3.7.1"


@pytest.fixture(scope="module")
def compiled():
    """By architecture, all of it."""
    jobs = [
        Job(arch, shape, op, str(CACHE))
        for arch in TABLES
        for shape, ops in [(FULL, tuple(OPS)), *SHAPES]
        for op in ops
    ]
    found = {arch: [] for arch in TABLES}
    for each in compile_jobs(jobs, len(os.sched_getaffinity(0))):
        found[each.job.capability].append(each)
    return found


@pytest.mark.parametrize("arch", TABLES)
def test_every_kernel_fits_and_spills_nothing(compiled, arch):
    for each in compiled[arch]:
        assert each.spilled_bytes == 0, each
        assert each.instructions["LDL"] == each.instructions["STL"] == 0, each
        assert each.registers <= 255
        assert each.shared_bytes <= LARGEST_SHARED_BYTES[arch], each
    assert {each.job.op for each in compiled[arch]} == set(OPS)


@pytest.mark.parametrize("arch", TABLES)
@pytest.mark.skipif(triton.__version__ != WITH_BUDGETS, reason=f"budgets are Triton {WITH_BUDGETS}'s")
def test_kernels_keep_to_their_budgets(compiled, arch):
    for each in compiled[arch]:
        if each.job.shape == FULL:
            registers, shared_bytes = BUDGETS[arch, each.kernel]
            assert each.registers <= registers, (each.kernel, each.registers)
            assert each.shared_bytes <= shared_bytes, (each.kernel, each.shared_bytes)


@pytest.mark.parametrize("arch", TABLES)
def test_attention_uses_matrix_instructions_and_background_copies(compiled, arch):
    for each in compiled[arch]:
        if each.job.op in ATTENTION:
            assert each.instructions["LDGSTS"] > 0, each.job.shape
            if each.job.shape.dtype != "float32":
                wide = arch == 90 and each.job.op == "paged_prefill"
                assert each.instructions["HGMMA" if wide else "HMMA"] > 0, each.job.shape


@pytest.mark.parametrize("arch", TABLES)
def test_every_row_of_the_table_is_compiled(arch, monkeypatch):
    used = []
    config = Target.config

    def noted(self, op, **shape):
        found = config(self, op, **shape)
        used.append((op, dict(found.use)))
        return found

    monkeypatch.setattr(Target, "config", noted)
    for shape, ops in [(FULL, tuple(OPS)), *SHAPES]:
        for op in ops:
            OPS[op](Target(arch), shape)
    for op, rows in read_table(arch).items():
        for row in rows:
            assert (op, row["use"]) in used, (op, row)


def test_a_second_compilation_finds_the_first(tmp_path):
    """In another process, by the same cache: nothing is compiled."""
    program = (
        "import sys, triton; from pagedserve.backends.triton.catalogue import OPS, ModelShape;"
        "from pagedserve.backends.triton.compile_only import CompileOnlyDriver;"
        "from pagedserve.backends.triton.target import Target;"
        "triton.knobs.compilation.listener = lambda **what: print(what['cache_hit']);"
        "triton.runtime.driver.set_active(CompileOnlyDriver(90));"
        "[launch.compile() for launch in OPS['silu_mul'](Target(90), ModelShape())]"
    )
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    seen = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        seen.append(done.stdout.split())
    assert seen == [["False"], ["True"]]


def test_the_command_compiles_for_a_model(tmp_path, capsys):
    words = ["compile", "--arch", "80", "--op", "rope", "--shape", "head_dim=64", "--cache", str(tmp_path)]
    assert command.main([*words, "--workers", "1"]) == 0
    assert "rope_kernel" in capsys.readouterr().out
    assert list(tmp_path.rglob("rope_kernel.cubin"))


@pytest.mark.parametrize(
    "shape, message", [("heads=3", "num_q_heads"), ("head_dim=x", "whole number"), ("kv=int3", "int4")]
)
def test_the_command_refuses_other_shapes(shape, message, capsys):
    assert command.main(["compile", "--shape", shape]) == 2
    assert message in capsys.readouterr().err


def test_tables_say_what_measured_them():
    for arch in TABLES:
        table = read_table(arch)
        assert set(table) == set(OPS)
        for rows in table.values():
            assert rows[-1]["when"] == {}
            for row in rows:
                assert set(row) == {"when", "use", "measured"}
                assert row["measured"] is None or {"case", "us", "gpu", "triton", "date"} <= set(row["measured"])
    assert json.dumps(table)
