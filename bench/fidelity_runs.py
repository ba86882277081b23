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
CROWDS = ((2, 5), (5, 4), (12, 3), (MAX_SEQS, 2))  # of a calibration: users, and requests of each
SHORTEST, LONGEST = 12, 1200  # prompts of a calibration
MOST_TOKENS, MOST_PAUSE_S = 100, 1.0  # of an answer, and before a request
T = TypeVar("T")
User = list[tuple[float, Call]]  # requests one after the other, each with the pause before it


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


def crowds(vocab_size: int, seed: int, sizes: Sequence[tuple[int, int]] = CROWDS) -> list[list[User]]:
    """A calibration: crowds, one when the one before is gone, in an order of the seed. Users pause, ask, and have their
    answers before they pause again.

    So prompts of all lengths come at any moment, alone or together, beside any number of decodes, and decodes run in
    batches of any size.
    """
    clock, number = random.Random(seed), count()

    def asked() -> tuple[float, Call]:
        length = round(math.exp(clock.triangular(math.log(SHORTEST), math.log(LONGEST))))
        prompt = [clock.randrange(1, vocab_size) for _ in range(length)]
        return clock.uniform(0.0, MOST_PAUSE_S), Call(next(number), prompt, clock.randint(2, MOST_TOKENS), 0.0)

    order = clock.sample(sizes, len(sizes))
    return [[[asked() for _ in range(requests)] for _ in range(users)] for users, requests in order]


class Real:
    """Runs calls on the real engine, an engine for each run, and reads its steps from its log."""

    def __init__(self, model: Any, folder: Path) -> None:
        self.model = model
        self._folder = folder
        self._num_logs = 0

    def calibrate(self, seed: int, sizes: Sequence[tuple[int, int]] = CROWDS) -> tuple[Run]:
        """Crowds of this seed, alone."""
        side = Side(partial(self._body, self._log(), partial(self._serve, [seed], sizes)))
        made, share = _counted(side.run)
        return (self._read(made, share),)

    def load(self, profile: RateProfile, calls: Sequence[Call], seed: int) -> tuple[Run, Run]:
        """A workload to its end, and crowds of this seed and of the next ones in turn with it."""
        rush = Rush("workload", False, NO_SLO, profile, [replace(call, token_ids=[]) for call in calls])

        async def run(engine: Any, answered: list[Call]) -> None:
            await run_rush(engine, rush, _params, drain_s=600.0, changed=lambda: None)
            answered += rush.calls

        serving = partial(self._serve, count(seed), CROWDS)
        turns = partial(in_turns, partial(self._body, self._log(), run), partial(self._body, self._log(), serving))
        (loaded, served), share = _counted(turns)
        return replace(self._read(loaded, share), results=rush.results()), self._read(served, share)

    async def _serve(
        self, seeds: Iterable[int], sizes: Sequence[tuple[int, int]], engine: Any, answered: list[Call]
    ) -> None:
        for seed in seeds:
            for crowd in crowds(self.model.config.vocab_size, seed, sizes):
                answered += [call for user in crowd for _, call in user]
                await _ask_together(engine, crowd)

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


async def _ask_together(engine: Any, crowd: Sequence[User]) -> None:
    tasks = [asyncio.create_task(_ask_all(engine, user)) for user in crowd]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _ask_all(engine: Any, user: User) -> None:
    began = now()
    for pause_s, call in user:
        call.due_s = now() - began + pause_s  # as in a workload, a timer that comes late is in what passes outside
        await asyncio.sleep(pause_s)
        await ask(engine, call, _params(call), began)


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
