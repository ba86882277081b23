# SPDX-License-Identifier: Apache-2.0
"""Every backend of every op against the float64 reference, on the spec's cases, with poison where nothing is read."""

import pytest

from pagedserve import ops
from pagedserve.ops.cases import make_inputs
from pagedserve.specs import SPECS
from tests.ops.agreement import check_backend

CALLS = [
    pytest.param(name, backend, case, id=f"{name}-{backend}-{case.id}")
    for name, spec in SPECS.items()
    for backend in ops.backends_of(name)
    if backend != "reference"
    for case in spec.cases()
]


@pytest.mark.parametrize("op, backend, case", CALLS)
def test_backend_is_within_the_budget(op, backend, case):
    check_backend(op, case, make_inputs(op, case), backend)
