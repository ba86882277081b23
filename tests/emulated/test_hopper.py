# SPDX-License-Identifier: Apache-2.0
"""mbarriers, bulk copies and products of warp groups, against torch; and a pipeline with one thing wrong."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pagedserve import emulate
from pagedserve.emulate import Library, Run
from pagedserve.errors import KernelFault

HERE = Path(__file__).parent
LIBRARY = Library(HERE / "hopper.cu", (), HERE / "params.h")

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="emulated kernels are compiled with g++")


def error(name: str, n: int, depth: int = 320, **options: Any) -> float:
    """How far a product is from torch's; NaN loses."""
    random = torch.Generator().manual_seed(n)
    a, b = torch.randn(64, depth, generator=random).bfloat16(), torch.randn(n, depth, generator=random).bfloat16()
    given_b = b.T.contiguous() if name.endswith("_mn") else b
    c = torch.full((64, n), torch.nan)
    with emulate.session(Run(**options)):
        LIBRARY.run(f"hopper_{name}", "HopperParams", {"a": a, "b": given_b, "c": c, "depth": depth})
    off = float((c.double() - a.double() @ b.double().T).abs().max())
    return off if off == off else float("inf")


@pytest.mark.parametrize("name, n", [("n64", 64), ("n16", 16), ("n8", 8), ("n64_mn", 64), ("n32_mn", 32)])
@pytest.mark.parametrize("depth", [64, 320])
def test_products_are_right(name, n, depth):
    assert error(name, n, depth) < 1e-4


@pytest.mark.parametrize(
    "options", [{"schedule": "reversed"}, {"schedule": "random", "seed": 5}, {"eager_copies": True}]
)
def test_products_are_right_in_any_order(options):
    assert error("n16", 16, **options) < 1e-4


@pytest.mark.parametrize("build", ["plain", "races"])
def test_bulk_copies_and_matrices_go_both_ways(build):
    given, c = torch.randn(128), torch.zeros(128)
    with emulate.session(Run(build=build)):
        LIBRARY.run("hopper_bulk", "HopperParams", {"a": given, "c": c})
    assert torch.equal(c, given)


def test_a_right_pipeline_has_no_race_and_stays_in_bounds():
    assert error("n16", 16, build="races") < 1e-4


def test_faults_that_values_show():
    assert error("no_full_wait", 16) == float("inf")
    assert error("late_product_wait", 16) > 1e-2


def test_faults_that_errors_name():
    with pytest.raises(KernelFault, match="no thread has initialised yet") as raised:
        error("no_init_barrier", 16, schedule="reversed")
    assert raised.value.kind == "uninitialised-mbarrier"
    with pytest.raises(KernelFault, match=r"threads wait in mbarrier_wait at hopper\.cu") as raised:
        error("too_many_bytes", 16)
    assert raised.value.kind == "deadlock"


def test_faults_that_only_the_race_check_names():
    assert error("no_empty_wait", 16) < 1e-4
    with pytest.raises(KernelFault, match=r"hopper\.cu") as raised:
        error("no_empty_wait", 16, build="races")
    assert raised.value.kind == "race"
