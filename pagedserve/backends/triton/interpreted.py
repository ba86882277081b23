# SPDX-License-Identifier: Apache-2.0
"""The ops on CPU tensors, interpreted and watched: what the table of backends calls "triton-interpreted".

Thousands of times slower than a GPU: for learning, tests and debugging.
"""

from __future__ import annotations

from typing import Any

from pagedserve.backends.triton.builders import as_ops
from pagedserve.backends.triton.interpreter import interpret
from pagedserve.backends.triton.target import INTERPRETED, Target


def _target(*operands: Any) -> Target:
    return INTERPRETED


globals().update(as_ops(_target, interpret))
