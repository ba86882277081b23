# SPDX-License-Identifier: Apache-2.0
"""What fidelity measures on the real engine: calibrations and workloads, each on an engine of its own that has answered
a first request; and how much of the machine other programs had meanwhile.

A machine's pace changes within a second, by more than a simulator should err. So a calibration takes turns with each
run of a workload, step by step, the other's clock standing still: what the one had of the machine, the other had too.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from bench.turns import Side, in_turns
from pagedserve.cli.measure import now
from pagedserve.cli.rush_load import Call, Rush, ask, run_rush
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.simulate.calibrate import MeasuredStep, read_steps
from pagedserve.simulate.results import Results
from pagedserve.simulate.workload import NO_SLO, RateProfile

MAX_SEQS, MAX_STEP_TOKENS, MAX_MODEL_LEN = 32, 256, 2048
QUIET = 0.02  # of the machine's processor time: what others may have in a run that counts
TOPS = (3, MAX_SEQS, 3, 8, 3)  # requests at once, at the top of each climb of a calibration
SHORTEST, LONGEST = 12, 1200  # prompts of a calibration
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Run:
    """What one engine did.

    Attributes:
        began_s: by its engine's clock, when that had answered the first request. Clocks that take turns go alike.
        around_s: mean of what a request spent outside the engine, before its first token was heard of; NaN: none ended.
        results: of a workload; None of a calibration.
        others_share: of the machine's processor time, what other programs had; NaN where nobody counts it.
    """

    config: SchedulerConfig
    steps: list[MeasuredStep]
    began_s: float
    around_s: float
    results: Results | None
    others_share: float


def climbs(vocab_size: int, seed: int, tops: Sequence[int] = TOPS) -> list[list[tuple[Call, int]]]:
    """A calibration: one request after the other until so many run at once, then all of them to their ends; the tops in
    an order of the seed.

    So prompts of all lengths are computed beside any number of decodes, and decodes run in batches of any size. With
    each request, how many tokens it has when the next one comes.
    """
    clock, number, made = random.Random(seed), 0, []
    for top in clock.sample(tops, len(tops)):
        lead = 2 + 30 // top  # so answers of some 50 tokens
        climb = []
        for place in range(top):
            length = round(math.exp(clock.triangular(math.log(SHORTEST), math.log(LONGEST))))
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
        self._num_logs = 0

    def calibrate(self, seed: int, tops: Sequence[int] = TOPS) -> tuple[Run]:
        """Climbs of this seed, alone."""
        side = Side(partial(self._body, self._log(), partial(self._climb_all, [seed], tops)))
        made, share = _counted(side.run)
        return (self._read(made, share),)

    def load(self, profile: RateProfile, calls: Sequence[Call], seed: int) -> tuple[Run, Run]:
        """A workload to its end, and climbs of this seed and of the next ones in turn with it."""
        rush = Rush("workload", False, NO_SLO, profile, [replace(call, token_ids=[]) for call in calls])

        async def run(engine: Any, answered: list[Call]) -> None:
            await run_rush(engine, rush, _params, drain_s=600.0, changed=lambda: None)
            answered += rush.calls

        climbing = partial(self._climb_all, count(seed), TOPS)
        turns = partial(in_turns, partial(self._body, self._log(), run), partial(self._body, self._log(), climbing))
        (loaded, climbed), share = _counted(turns)
        return replace(self._read(loaded, share), results=rush.results()), self._read(climbed, share)

    async def _climb_all(self, seeds: Iterable[int], tops: Sequence[int], engine: Any, answered: list[Call]) -> None:
        for seed in seeds:
            for climb in climbs(self.model.config.vocab_size, seed, tops):
                answered += [call for call, _ in climb]
                await _climb(engine, climb, random.Random(seed))

    async def _body(self, log: Path, run: Callable[[Any, list[Call]], Awaitable[None]], side: Side[_Made]) -> _Made:
        from pagedserve import AsyncEngine

        options = {"max_seqs": MAX_SEQS, "max_step_tokens": MAX_STEP_TOKENS, "max_model_len": MAX_MODEL_LEN}
        answered: list[Call] = []
        async with AsyncEngine(self.model, event_log=log, clock=side.clock, observer=side, **options) as engine:
            first = Call(-1, range(1, MAX_STEP_TOKENS), 8, 0.0)
            await ask(engine, first, _params(first), now())
            began_s = now()
            with suppress(asyncio.CancelledError):
                await run(engine, answered)
        return _Made(log, began_s, answered)

    def _log(self) -> Path:
        self._num_logs += 1
        return self._folder / f"{self._num_logs}.log"

    def _read(self, made: _Made, others_share: float) -> Run:
        config, steps = read_steps(made.log)
        around = [call.around_s for call in made.answered if call.around_s is not None]
        around_s = sum(around) / len(around) if around else math.nan
        return Run(
            config, [step for step in steps if step.t >= made.began_s], made.began_s, around_s, None, others_share
        )


@dataclass(frozen=True, slots=True)
class _Made:
    """What an engine left: its log, when what counts began, and who was answered then."""

    log: Path
    began_s: float
    answered: list[Call]


async def _climb(engine: Any, climb: Sequence[tuple[Call, int]], clock: random.Random) -> None:
    began = now()
    tasks = []
    try:
        for call, lead in climb:
            call.due_s = now() - began + clock.uniform(0.0, 0.02)  # wherever in a step it falls
            await asyncio.sleep(max(0.0, began + call.due_s - now()))
            ready = asyncio.Event()

            def heard(call: Call, lead: int = lead, ready: asyncio.Event = ready) -> None:
                if len(call.token_ids) >= lead:
                    ready.set()

            tasks.append(asyncio.create_task(ask(engine, call, _params(call), began, heard)))
            await ready.wait()
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _params(call: Call) -> Any:
    from pagedserve import SamplingParams

    return SamplingParams(max_tokens=call.max_tokens, temperature=0.0, ignore_eos=True, cache_salt=str(call.number))


def _counted(run: Callable[[], T]) -> tuple[T, float]:
    """What it returns, and of the machine's processor time meanwhile, what others had."""
    began_s, before = time.monotonic(), _processor_s()
    made = run()
    wall_s, after = time.monotonic() - began_s, _processor_s()
    return made, (after - before) / (wall_s * (os.cpu_count() or 1))


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
