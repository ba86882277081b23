# SPDX-License-Identifier: Apache-2.0
"""Every backend of every op against the float64 reference, on the spec's cases, with poison where nothing is read."""

import importlib.util
from dataclasses import replace

import pytest

from pagedserve.ops.cases import cases_for, make_inputs
from pagedserve.ops.registry import TABLE
from tests.ops.agreement import check_backend

WITHOUT_TRITON = importlib.util.find_spec("triton") is None
TRITON = (pytest.mark.triton, pytest.mark.skipif(WITHOUT_TRITON, reason="Triton is not installed"))

CALLS = [
    pytest.param(
        row.op,
        row.backend,
        case,
        id=f"{row.op}-{row.backend}-{case.id}",
        marks=TRITON if row.backend == "triton-interpreted" else (),
    )
    for row in TABLE
    if row.backend != "reference" and "cpu" in row.requirement.devices
    for case in cases_for(row)
]


@pytest.mark.parametrize("op, backend, case", CALLS)
def test_backend_is_within_the_budget(op, backend, case):
    if backend == "triton-interpreted" and case.lens:  # slow: one empty, one short, one of two splits
        case = replace(case, lens=(*case.lens[1:3], case.lens[4]), q_lens=(*case.q_lens[1:3], case.q_lens[4]))
    check_backend(op, case, make_inputs(op, case), backend)
