# SPDX-License-Identifier: Apache-2.0
"""A small replica to simulate with, and what several tests ask of a run."""

from __future__ import annotations

import dataclasses
from typing import Any

from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.simulate.cost import StepCurve
from pagedserve.simulate.workload import NO_SLO, Request, Slo

CONFIG = SchedulerConfig(
    num_pages=4096, page_size=16, max_seqs=32, max_step_tokens=512, max_model_len=4096, prefix_cache=False
)
# 10 ms a step, and 0.1 ms for each token beyond a hundred.
COST = StepCurve([(100, 10.0), (200, 20.0)])


def config(**changes: Any) -> SchedulerConfig:
    return dataclasses.replace(CONFIG, **changes)


def ask(arrival_s: float, prompt: int = 100, output: int = 10, *, first: int = 0, slo: Slo = NO_SLO) -> Request:
    return Request(arrival_s, range(first, first + prompt), output, slo)
