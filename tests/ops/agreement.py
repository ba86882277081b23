# SPDX-License-Identifier: Apache-2.0
"""`pagedserve.ops.agreement` as assertions."""

from typing import Any

from torch import Tensor

from pagedserve.ops.agreement import copied, disagreement, error_beyond_budget, in_float64, results
from pagedserve.specs import Case, OpSpec

__all__ = ["check_backend", "compare", "copied", "in_float64", "results"]


def check_backend(op: str, case: Case, arguments: dict[str, Any], backend: str) -> None:
    """Fails where a backend is further from the float64 reference than the op's budget allows."""
    wrong = disagreement(op, arguments, results(op, copied(arguments), backend))
    assert wrong is None, f"{case.id}: {wrong}"


def compare(spec: OpSpec, what: str, got: Tensor, plain: Tensor, oracle: Tensor) -> None:
    """NaN and infinities first, then |error| against 2 x plain torch's error + rounding."""
    wrong = error_beyond_budget(spec, what, got, plain, oracle)
    assert wrong is None, wrong
