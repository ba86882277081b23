# SPDX-License-Identifier: Apache-2.0
"""Open-loop load on a real engine: requests are sent when they are due, whether the engine keeps up or not."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pagedserve.cli.measure import Engine, Sample, now, timed, watching
from pagedserve.errors import InvalidInput, PagedServeError, RequestRejected
from pagedserve.simulate.calibrate import fit, paced, read_steps
from pagedserve.simulate.oracle import compare
from pagedserve.simulate.results import SERVED, Results, percentile
from pagedserve.simulate.workload import RateProfile, Request, Slo, lognormal

PROBES = 10


@dataclass(slots=True)
class Call:
    """One request, and what became of it. Times are seconds since the phase began; due_s is of the latest attempt.

    Attributes:
        first_due_s: of its first attempt.
        probe: it is the one request that is sent PROBES times.
        end: "" while it is open; else as in simulate.results, or "failed".
        hold_s: for so long after retry_after_s a place is kept.
        around_s: of its time to the first token, what passed outside the engine: from when it was due to the door, and
            from the token to here.
    """

    number: int
    prompt: Sequence[int]
    max_tokens: int
    due_s: float
    probe: bool = False
    attempt: int = 0
    first_due_s: float = 0.0
    first_s: float | None = None
    last_s: float | None = None
    token_ids: list[int] = field(default_factory=list)
    end: str = ""
    retry_after_s: float | None = None
    hold_s: float | None = None
    around_s: float | None = None


@dataclass(slots=True)
class Rush:
    """One phase: the same arrivals, with promises or without.

    Attributes:
        calls: every attempt; those who come back stand behind the first attempts.
    """

    name: str
    promises: bool
    slo: Slo
    profile: RateProfile
    calls: list[Call] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    now_s: float = 0.0
    preemptions: int = 0
    recomputed_tokens: int = 0
    places_claimed: int = 0
    places_kept: int = 0
    returns: int = 1  # how often somebody who is sent away comes back
    oracle_share: float = math.nan  # of all arrivals that an oracle would have answered in time

    def results(self) -> Results:
        """What became of everybody, for the figures."""
        results = Results()
        for call in self.calls:
            request = Request(call.due_s, call.prompt, call.max_tokens, self.slo)
            results.add(
                call.number,
                request,
                call.end or "abort",
                attempt=call.attempt,
                first_s=call.first_s,
                last_s=call.last_s if call.end in SERVED else None,
                output_tokens=len(call.token_ids),
                retry_after_s=call.retry_after_s,
            )
        return results

    @property
    def probes(self) -> list[list[Call]]:
        """The attempts of each probe."""
        attempts: dict[int, list[Call]] = {}
        for call in self.calls:
            if call.probe:
                attempts.setdefault(call.number, []).append(call)
        return list(attempts.values())


def arrivals(profile: RateProfile, prompts: Sequence[Sequence[int]], probe: Sequence[int], seed: int) -> list[Call]:
    """The calls of a phase: prompts in turn, lengths drawn by seed, and PROBES times the same one, evenly spread."""
    draw, clock = lognormal(40, 0.6, 128), random.Random(seed)
    due = [(t, False) for t in profile.arrivals(seed)]
    due += [((place + 0.5) * profile.duration_s / PROBES, True) for place in range(PROBES)]
    calls = []
    for number, (due_s, is_probe) in enumerate(sorted(due)):
        prompt = probe if is_probe else prompts[number % len(prompts)]
        calls.append(Call(number, prompt, 32 if is_probe else draw(clock), due_s, is_probe, first_due_s=due_s))
    return calls


async def capacity(
    engine: Engine, prompts: Sequence[Sequence[int]], make_params: Callable[[Call], Any], n: int
) -> float:
    """Requests a second that the engine finishes while it always has as many as it can run at once.

    The rate between the end of a quarter of n requests and of three quarters, all sent at once.
    """
    calls = [Call(i, prompts[i % len(prompts)], 40, 0.0) for i in range(n)]
    began = now()
    await asyncio.gather(*(ask(engine, call, make_params(call), began) for call in calls))
    ends = sorted(call.last_s or 0.0 for call in calls)
    span = ends[3 * n // 4] - ends[n // 4]
    return (3 * n // 4 - n // 4) / span if span > 0 else n / max(ends[-1], 1e-9)


async def run_rush(
    engine: Engine, rush: Rush, make_params: Callable[[Call], Any], *, drain_s: float, changed: Callable[[], None]
) -> None:
    """Send every call of a phase when it is due, wait for the answers, and note when what came.

    Args:
        make_params: SamplingParams of a call.
        drain_s: so long after the last arrival, who has no answer yet is cut off.
        changed: called when something happened.
    """
    began = now()
    tasks: set[asyncio.Task[None]] = set()

    def note(sample: Sample) -> None:
        rush.now_s = sample.t_s
        rush.samples.append(sample)
        changed()

    async with watching(engine, began, note):
        try:
            for call in list(rush.calls):
                await asyncio.sleep(max(0.0, began + call.due_s - now()))
                tasks.add(asyncio.create_task(_visit(engine, rush, call, make_params, began)))
            end_s = rush.profile.duration_s + drain_s
            _, late = await asyncio.wait(tasks, timeout=max(0.0, began + end_s - now()))
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for task in tasks:
                task.cancel()
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
    stats = engine.stats()
    rush.preemptions, rush.recomputed_tokens = stats.preemptions, stats.recomputed_tokens
    rush.places_claimed, rush.places_kept = stats.places_claimed, stats.places_kept


async def _visit(engine: Engine, rush: Rush, call: Call, make_params: Callable[[Call], Any], began: float) -> None:
    """One user: who is sent away with a time comes back after it."""
    while True:
        await ask(engine, call, make_params(call), began)
        if call.retry_after_s is None or call.attempt >= rush.returns:
            return
        due_s = now() - began + call.retry_after_s
        if due_s > rush.profile.duration_s:
            return  # the evening is over
        call = replace(
            call,
            attempt=call.attempt + 1,
            due_s=due_s,
            token_ids=[],
            end="",
            retry_after_s=None,
            hold_s=None,
            first_s=None,
            last_s=None,
        )
        await asyncio.sleep(max(0.0, began + due_s - now()))
        rush.calls.append(call)


async def ask(engine: Engine, call: Call, params: Any, began: float) -> None:
    """Send a call, and note when what came."""
    try:
        async with aclosing(timed(engine, call.prompt, params, began, f"call-{call.number}")) as deltas:
            async for t, delta in deltas:
                if delta.token_ids:
                    call.first_s = t if call.first_s is None else call.first_s
                    call.last_s = t
                    call.token_ids += delta.token_ids
                call.end = delta.finish_reason or call.end
                inside = delta.metrics
                if inside is not None and inside.first_token_s is not None and call.first_s is not None:
                    call.around_s = call.first_s - call.due_s - (inside.first_token_s - inside.arrival_s)
    except RequestRejected as error:
        call.end, call.retry_after_s, call.hold_s = error.reason, error.retry_after_s, error.hold_s
    except PagedServeError:
        call.end = "failed"


def oracle_share(rush: Rush, log: Path) -> float:
    """What an oracle would have kept of a phase's arrivals, simulated on the steps of its own log; NaN without such."""
    try:
        config, steps = read_steps(log)
        cost = paced(fit(steps), steps)
    except InvalidInput:
        return math.nan
    config = replace(config, prefix_cache=False)  # each call has a salt of its own, though prompts are alike
    calls = [call for call in rush.calls if not call.attempt]

    def stream() -> Iterator[Request]:
        return (Request(call.due_s, call.prompt, call.max_tokens, rush.slo) for call in calls)

    return compare(config, cost, stream).oracle


@dataclass(frozen=True, slots=True)
class Consistency:
    """The same request, again and again under load. Waits are from the first attempt to the first token.

    Attributes:
        answered: of PROBES; the others were sent away and stayed away.
        identical: of those answered, how many gave the tokens that most of them gave.
    """

    answered: int
    identical: int
    least_s: float | None
    median_s: float
    most_s: float | None


def consistency(rush: Rush) -> Consistency:
    """Of a phase's probes."""
    answered = [attempts[-1] for attempts in rush.probes if attempts[-1].end in SERVED]
    waits = [call.first_s - call.first_due_s for call in answered if call.first_s is not None]
    texts = [tuple(call.token_ids) for call in answered]
    identical = max((texts.count(text) for text in texts), default=0)
    return Consistency(
        len(answered), identical, min(waits, default=None), percentile(waits, 50), max(waits, default=None)
    )
