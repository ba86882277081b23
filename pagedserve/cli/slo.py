# SPDX-License-Identifier: Apache-2.0
"""Promises as people write them: ttft=1s,tpot=50ms,total=30s."""

from __future__ import annotations

import math
import re

from pagedserve.errors import InvalidInput
from pagedserve.simulate.workload import Slo

UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
NAMES = {"ttft": "ttft_s", "tpot": "tpot_s", "total": "total_s"}


def seconds(text: str) -> float:
    """A duration with its unit; InvalidInput for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s|min|h)\s*", text)
    value = float(match[1]) * UNITS_S[match[2]] if match else math.nan
    if not value > 0:
        raise InvalidInput(f"{text!r} is no duration above 0; write a number and one of {', '.join(UNITS_S)}, as 50ms")
    return value


def parse_slo(text: str) -> Slo:
    """Each promise at most once, at least one; InvalidInput says which can be made."""
    promises: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        field = NAMES.get(name.strip())
        if field is None or not equals or field in promises:
            raise InvalidInput(
                f"--slo is {text!r}; write {', '.join(f'{known}=...' for known in NAMES)}, each once at most"
            )
        promises[field] = seconds(value)
    return Slo(**promises)


def describe(slo: Slo) -> str:
    """In words."""
    from pagedserve.cli.console import duration

    parts = [("first token within", slo.ttft_s), ("tokens apart at most", slo.tpot_s), ("all within", slo.total_s)]
    return ", ".join(f"{words} {duration(value)}" for words, value in parts if value is not None)
