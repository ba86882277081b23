# SPDX-License-Identifier: Apache-2.0
"""Launch files run on what nvcc emitted: the same launcher, the same tensors, the same bits as from the source."""

import shutil
from pathlib import Path

import pytest
import torch

from pagedserve import ops
from pagedserve.backends import params
from pagedserve.backends.operands import PlanDecode
from pagedserve.emulate import Library, Run, build, library, ptx_route, session
from pagedserve.errors import KernelFault

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
LENS = [300, 17, 0, -1, 129, *range(1, 40)]


def plan() -> torch.Tensor:
    """Of the emulator, in a workspace full of a step before's."""
    lens = torch.tensor(LENS, dtype=torch.int32)
    size = ops.decode_workspace_bytes(len(LENS), 8, 2, 64, max_kv_tokens=sum(max(n, 0) for n in LENS))
    workspace = torch.full((size,), 0xAB, dtype=torch.uint8)
    call = PlanDecode.of("plan_decode", lens, workspace, 8, 2, 64, 1, 0, 24)
    fields = params.plan_decode(call, call.num_blocks)
    library("plan_decode").run("pagedserve_plan_decode", "PlanDecodeParams", fields)
    return workspace


@pytest.mark.parametrize("schedule", ["in-order", "random"])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_the_planner_as_nvcc_made_it(arch, schedule):
    expected = plan()
    with session(Run(schedule=schedule), ptx=arch) as here:
        assert torch.equal(plan(), expected)
    assert here.counters["blocks"] == 1
    assert here.counters["barriers"] > 0


def test_the_planner_as_nvcc_made_it_has_no_races():
    with session(Run(build="races"), ptx="sm_90a"):
        plan()


@pytest.mark.parametrize("schedule", ["in-order", "random"])
def test_mbarriers_and_bulk_copies_as_nvcc_made_them(schedule):
    folder = Path(__file__).parent
    given, copied = torch.randn(128), torch.zeros(128)
    with session(Run(schedule=schedule), ptx="sm_90a") as here:
        Library(folder / "hopper.cu", (), folder / "params.h").run(
            "hopper_bulk", "HopperParams", {"a": given, "c": copied}
        )
    assert torch.equal(copied, given)
    assert here.counters["async_copies"] > 0


def test_what_another_process_learnt_meanwhile_is_compiled_next(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "OUTPUT", tmp_path)
    source = tmp_path / "some.cu"
    missing = {name: KernelFault(f"not translated yet: {name}", kind=ptx_route.NOT_TRANSLATED) for name in ("f", "g")}
    for name in ("f", "g", "f"):  # two processes, both without f
        ptx_route.learn(source, "sm_80", frozenset(), missing[name])
    assert ptx_route.known_kernels(source, "sm_80") == {"f", "g"}
    with pytest.raises(KernelFault):
        ptx_route.learn(source, "sm_80", frozenset({"f"}), missing["f"])
    with pytest.raises(KernelFault, match="elsewhere"):
        ptx_route.learn(source, "sm_80", frozenset(), KernelFault("out of bounds elsewhere", kind="bounds"))
