# SPDX-License-Identifier: Apache-2.0
"""What fidelity measures on the real engine: calibrations and workloads, each on an engine of its own that has answered
a first request; and how much of the machine other programs had meanwhile."""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pagedserve.cli.rush_load import Call, Rush, ask, run_rush
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.simulate.calibrate import MeasuredStep, read_steps
from pagedserve.simulate.results import Results
from pagedserve.simulate.workload import NO_SLO, RateProfile

MAX_SEQS, MAX_STEP_TOKENS, MAX_MODEL_LEN = 32, 256, 2048
QUIET = 0.02  # of the machine's processor time: what others may have in a run that counts
TOPS = (3, MAX_SEQS, 3, 8, 3)  # requests at once, at the top of each climb of a calibration
SHORTEST, LONGEST = 12, 1200  # prompts of a calibration


@dataclass(frozen=True, slots=True)
class Run:
    """What one engine did.

    Attributes:
        around_s: mean of what a request spent outside the engine, before its first token was heard of.
        results: of a workload; None of a calibration.
        others_share: of the machine's processor time, what other programs had; NaN where nobody counts it.
    """

    config: SchedulerConfig
    steps: list[MeasuredStep]
    around_s: float
    results: Results | None
    others_share: float


def climbs(vocab_size: int, seed: int, tops: Sequence[int] = TOPS) -> list[list[tuple[Call, int]]]:
    """A calibration: one request after the other until so many run at once, then all of them to their ends.

    So prompts of all lengths are computed beside any number of decodes, and decodes run in batches of any size. With
    each request, how many tokens it has when the next one comes.
    """
    clock, number, made = random.Random(seed), 0, []
    for top in tops:
        lead = 2 + 24 // top
        climb = []
        for place in range(top):
            length = round(math.exp(clock.uniform(math.log(SHORTEST), math.log(LONGEST))))
            prompt = [clock.randrange(1, vocab_size) for _ in range(length)]
            climb.append((Call(number, prompt, lead * (top - place) + clock.randrange(lead * top), 0.0), lead))
            number += 1
        made.append(climb)
    return made


class Real:
    """Runs calls on the real engine, an engine for each run, and reads its steps from its log."""

    def __init__(self, model: Any, folder: Path) -> None:
        self.model = model
        self._folder = folder
        self._num_runs = 0

    def calibrate(self, seed: int, tops: Sequence[int] = TOPS) -> Run:
        """Climbs of this seed."""
        made = climbs(self.model.config.vocab_size, seed, tops)

        async def run(engine: Any) -> list[Call]:
            for climb in made:
                await _climb(engine, climb, random.Random(seed))
            return [call for climb in made for call, _ in climb]

        return self._run(run)

    def load(self, profile: RateProfile, calls: Sequence[Call]) -> Run:
        """A workload to its end."""
        rush = Rush("workload", False, NO_SLO, profile, [replace(call, token_ids=[]) for call in calls])

        async def run(engine: Any) -> list[Call]:
            await run_rush(engine, rush, _params, drain_s=600.0, changed=lambda: None)
            return rush.calls

        return replace(self._run(run), results=rush.results())

    def _run(self, run: Callable[[Any], Awaitable[list[Call]]]) -> Run:
        from pagedserve import AsyncEngine

        self._num_runs += 1
        log = self._folder / f"{self._num_runs}.log"
        began_s, share = math.nan, math.nan

        async def main() -> list[Call]:
            nonlocal began_s, share
            options = {"max_seqs": MAX_SEQS, "max_step_tokens": MAX_STEP_TOKENS, "max_model_len": MAX_MODEL_LEN}
            async with AsyncEngine(self.model, event_log=log, **options) as engine:
                first = Call(-1, range(1, MAX_STEP_TOKENS), 8, 0.0)
                await ask(engine, first, _params(first), time.perf_counter())
                began_s, before = time.monotonic(), _processor_s()
                calls = await run(engine)
                wall_s, after = time.monotonic() - began_s, _processor_s()
            share = (after - before) / (wall_s * (os.cpu_count() or 1))
            return calls

        around = [call.around_s for call in asyncio.run(main()) if call.around_s is not None]
        config, steps = read_steps(log)
        return Run(config, [step for step in steps if step.t >= began_s], sum(around) / len(around), None, share)


async def _climb(engine: Any, climb: Sequence[tuple[Call, int]], clock: random.Random) -> None:
    began = time.perf_counter()
    tasks = []
    for call, lead in climb:
        call.due_s = time.perf_counter() - began + clock.uniform(0.0, 0.02)  # wherever in a step it falls
        await asyncio.sleep(max(0.0, began + call.due_s - time.perf_counter()))
        ready = asyncio.Event()

        def heard(call: Call, lead: int = lead, ready: asyncio.Event = ready) -> None:
            if len(call.token_ids) >= lead:
                ready.set()

        tasks.append(asyncio.create_task(ask(engine, call, _params(call), began, heard)))
        await ready.wait()
    await asyncio.gather(*tasks)


def _params(call: Call) -> Any:
    from pagedserve import SamplingParams

    return SamplingParams(max_tokens=call.max_tokens, temperature=0.0, ignore_eos=True, cache_salt=str(call.number))


def await_quiet(limit_s: float = 120.0) -> None:
    """Wait until others leave the processors alone for two seconds, or so long."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        before = _processor_s()
        time.sleep(2.0)
        if not _processor_s() - before > 2.0 * QUIET * (os.cpu_count() or 1):
            return


def _processor_s() -> float:
    """Seconds of all processors that went to others, a hypervisor included; NaN where the system does not say."""
    try:
        user, nice, system, _, _, *interrupts = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except (OSError, ValueError):
        return math.nan
    own = os.times()
    return sum(map(int, (user, nice, system, *interrupts))) / os.sysconf("SC_CLK_TCK") - own.user - own.system
