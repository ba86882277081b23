# SPDX-License-Identifier: Apache-2.0
"""From a real engine's event log to a step cost: every step that the log holds, and prices fitted to them.

The log says when each step was planned and when it was done; the scheduler, replaying it, says what was in it. Prices
are found by least squares of the relative error, each at least 0, and steps that took far longer than their like
(another program had the processor) do not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from os import PathLike

from pagedserve.errors import InvalidInput
from pagedserve.eventlog.codec import read_log
from pagedserve.eventlog.watched import Planned, Record
from pagedserve.scheduling.config import SchedulerConfig
from pagedserve.scheduling.cost import StepShape
from pagedserve.scheduling.events import StepDone, StepFailed
from pagedserve.scheduling.scheduler import Scheduler
from pagedserve.simulate.cost import PRICES, SETTLED, StepCurve, hat_weights, priced, steps_in_a_row
from pagedserve.simulate.hardware import Constant, Machine
from pagedserve.simulate.pace import Paced

STIFFNESS = 20.0
HICCUP = 3.0  # times what a step is expected to take, and another program had the processor
KNOTS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """A step that a real engine computed. period_ms: until the next was planned, where that followed at once."""

    t: float
    shape: StepShape
    ms: float
    period_ms: float


def measured_steps(config: SchedulerConfig, records: Iterable[Record]) -> Iterator[MeasuredStep]:
    """The steps of a log that were done, in order.

    A step's period is from its plan to the next one, if that was made within a step's time after its end: what the loop
    does between two steps is in it. Else it is the step's own time.
    """
    scheduler = Scheduler(config)
    plan, planned_s = None, 0.0
    last: MeasuredStep | None = None
    for record in records:
        if isinstance(record, Planned):
            if last is not None:
                period_ms = 1e3 * (record.t - last.t)
                yield replace(last, period_ms=period_ms) if last.ms <= period_ms < 2 * last.ms else last
                last = None
            plan, planned_s = scheduler.plan(record.t), record.t
            continue
        if isinstance(record, StepDone) and plan is not None:
            ms = 1e3 * (record.t - planned_s)
            last = MeasuredStep(planned_s, plan.shape, ms, ms) if ms > 0 else None
        if isinstance(record, (StepDone, StepFailed)):
            plan = None
        scheduler.apply(record)
    if last is not None:
        yield last


def read_steps(path: str | PathLike[str]) -> tuple[SchedulerConfig, list[MeasuredStep]]:
    """The config and the steps of an event log; InvalidInput where the file is none."""
    try:
        with open(path, encoding="utf-8") as file:
            config, entries = read_log(file)
            return config, list(measured_steps(config, (record for record, _ in entries)))
    except OSError as error:
        raise InvalidInput(f"the event log {str(path)!r} cannot be read: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True)
class Fit:
    """A cost, and how far off it is on its own steps: in their whole time, and in a single one (median)."""

    cost: StepCurve
    num_steps: int
    total_error: float
    median_error: float


def fit(steps: Sequence[MeasuredStep], *, rounds: int = 4) -> Fit:
    """A step cost for measured periods.

    Raises:
        InvalidInput: fewer steps than there are prices to find.
    """
    knots = _knots(steps)
    count = len(knots) + len(PRICES)
    if len(steps) < 4 * count:
        raise InvalidInput(
            f"{len(steps)} measured steps are too few for {count} prices; give a log of at least {4 * count}"
        )
    rows, behind = [], SETTLED
    for shape in (step.shape for step in steps):
        rows.append([*hat_weights(shape.num_tokens, knots), *priced(shape, behind)])
        behind = behind.after(shape)
    truth = [step.period_ms for step in steps]
    weights = [1.0 / value for value in truth]
    stiff = _straight(steps, knots)
    prices = [0.0] * count
    for _ in range(rounds):
        extra = [row for row, _ in stiff], [0.0] * len(stiff), [weight for _, weight in stiff]
        prices = _least_squares(rows + extra[0], truth + extra[1], weights + extra[2])
        guesses = [sum(map(float.__mul__, map(float, row), prices)) for row in rows]
        # Relative to what is expected: relative to what was measured, slow steps would count less than fast ones.
        weights = [1.0 / guess if guess > value / HICCUP else 0.0 for guess, value in zip(guesses, truth, strict=True)]
    # The whole time must be right too, hiccups left out.
    guesses = [sum(map(float.__mul__, map(float, row), prices)) for row in rows]
    alike = [(guess, value) for guess, value in zip(guesses, truth, strict=True) if guess > value / HICCUP]
    scale = sum(value for _, value in alike) / sum(guess for guess, _ in alike) if alike else 1.0
    prices = [price * scale for price in prices]
    cost = StepCurve(zip(knots, prices, strict=False), **dict(zip(PRICES, prices[len(knots) :], strict=True)))
    guesses = list(steps_in_a_row(cost, (step.shape for step in steps)))
    errors = sorted(abs(guess - value) / value for guess, value in zip(guesses, truth, strict=True))
    return Fit(cost, len(steps), sum(guesses) / sum(truth) - 1.0, errors[len(errors) // 2])


def paced(fitted: Fit, steps: Iterable[MeasuredStep], *, begin_s: float = 0.0, clock_s: float | None = None) -> Paced:
    """The fitted cost at the paces that the periods of these steps had.

    Args:
        begin_s: as Paced.
        clock_s: play the paces back by the clock from then on, pauses included; None: without them.
    """
    taken = ((step.shape, step.period_ms) for step in steps)
    return Paced(fitted.cost, taken if clock_s is None else _by_the_clock(steps, clock_s), begin_s=begin_s)


def _by_the_clock(steps: Iterable[MeasuredStep], t: float) -> Iterator[tuple[StepShape | None, float]]:
    for step in steps:
        yield None, max(0.0, 1e3 * (step.t - t))
        yield step.shape, step.period_ms
        t = max(t, step.t) + step.period_ms / 1e3


def machine_from_log(path: str | PathLike[str]) -> Machine:
    """The machine that wrote an event log."""
    config, steps = read_steps(path)
    fitted = fit(steps)
    source = f"{fitted.num_steps:,} steps of {path}, median error {fitted.median_error:.1%}"
    cost = fitted.cost
    constants = (
        *(Constant(f"step of {tokens:g} tokens", ms, "ms", "measured", source) for tokens, ms in cost.knots),
        Constant("reading a token's keys and values", cost.context_ms * 1e6, "ns", "measured", source),
        Constant("the same beside a prompt", cost.mixed_context_ms * 1e6, "ns", "measured", source),
        Constant("attending from a prompt's token to another", cost.pair_ms * 1e6, "ns", "measured", source),
        Constant("a sequence of a step that only decodes", cost.seq_ms * 1e3, "us", "measured", source),
        Constant("a sequence beside a prompt", cost.mixed_seq_ms * 1e3, "us", "measured", source),
        Constant("the first decode behind a prompt, more", cost.settle_ms * 1e3, "us", "measured", source),
        Constant("a decode behind which others came or went, more", cost.change_ms * 1e3, "us", "measured", source),
        Constant(f"pages of {config.page_size} tokens", config.num_pages, "", "measured", f"the log's own: {path}"),
    )
    name = f"the machine of {path}"
    pace = paced(fitted, steps)
    return Machine(name, cost, config.num_pages, config.page_size, config.max_model_len, constants, pace)


def _knots(steps: Sequence[MeasuredStep]) -> list[float]:
    """Of KNOTS, those with measured steps on both sides near enough to say something about them."""
    sizes = sorted(step.shape.num_tokens for step in steps)
    if not sizes:
        return [1.0]
    chosen: list[float] = []
    for low, high in pairwise(KNOTS):
        if sum(low <= size < high for size in sizes) >= 4:
            chosen += [float(low)] if low not in chosen else []
            chosen.append(float(high))
    # The ends go no further than what was measured.
    inner = [knot for knot in chosen if sizes[0] < knot < sizes[-1]]
    ends = {float(sizes[0]), float(sizes[-1])}
    return sorted({*inner, *ends})


def _straight(steps: Sequence[MeasuredStep], knots: Sequence[float]) -> list[tuple[list[float], float]]:
    """Rows, with their weights, that are 0 where each knot lies on the line between its neighbours.

    Decodes are as many tokens as sequences, so steps alone leave open what is whose. Each row counts as STIFFNESS steps
    that were seen on that line: where many were measured, a corner stays.
    """
    rows = []
    for place in range(1, len(knots) - 1):
        below, here, above = knots[place - 1 : place + 2]
        row = [0.0] * (len(knots) + len(PRICES))
        share = (here - below) / (above - below)
        row[place - 1 : place + 2] = [1.0 - share, -1.0, share]
        like = min(steps, key=lambda step: abs(step.shape.num_tokens - here))
        rows.append((row, STIFFNESS**0.5 / like.period_ms))
    return rows


def _least_squares(rows: Sequence[Sequence[float]], truth: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Prices of at least 0 that minimise sum((weight * (row . prices - truth))^2), by coordinate descent."""
    count = len(rows[0])
    scale = [max(abs(row[i]) * w for row, w in zip(rows, weights, strict=True)) or 1.0 for i in range(count)]
    gram = [[0.0] * count for _ in range(count)]
    target = [0.0] * count
    for row, value, weight in zip(rows, truth, weights, strict=True):
        scaled = [(i, entry * weight / scale[i]) for i, entry in enumerate(row) if entry]
        for i, a in scaled:
            target[i] += a * value * weight
            line = gram[i]
            for j, b in scaled:
                line[j] += a * b
    prices = [0.0] * count
    for _ in range(4000):
        moved = 0.0
        for i in range(count):
            if gram[i][i] > 0:
                rest = sum(g * p for g, p in zip(gram[i], prices, strict=True)) - gram[i][i] * prices[i]
                new = max(0.0, (target[i] - rest) / gram[i][i])
                moved = max(moved, abs(new - prices[i]))
                prices[i] = new
        if moved < 1e-10 * max(prices):
            break
    return [price / s for price, s in zip(prices, scale, strict=True)]
