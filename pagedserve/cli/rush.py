# SPDX-License-Identifier: Apache-2.0
"""`pagedserve rush`: a dinner rush on the real engine, once with promises, once with a queue that takes everybody."""

from __future__ import annotations

import argparse
import asyncio
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pagedserve.cli import rush_report, serving
from pagedserve.cli.console import Console, duration
from pagedserve.cli.prompts import FIRST_PROMPT, PROMPTS, SYSTEM_PROMPT
from pagedserve.cli.rush_load import Call, Rush, arrivals, capacity, oracle_share, run_rush
from pagedserve.cli.saved import picture_place
from pagedserve.cli.slo import describe, parse_slo
from pagedserve.errors import InvalidInput
from pagedserve.simulate.workload import RateProfile, Slo, spike

BASE_SHARE = 0.6  # of the measured capacity, outside the spike
SPIKE_AT, SPIKE_LENGTH = 0.2, 0.1  # of a phase
MAX_SEQS, MAX_STEP_TOKENS = 32, 128
MAX_QUEUE = 1024  # where promises are on


def run(args: argparse.Namespace) -> int:
    """Measure the capacity, let the crowd come twice, print the table, save plot, numbers and event logs."""
    if not args.duration >= 4:
        raise InvalidInput(f"--duration is {args.duration:g}; give at least 4 seconds")
    if not args.spike >= 1:
        raise InvalidInput(f"--spike is {args.spike:g}; give a factor of at least 1")
    if not args.returns >= 0:
        raise InvalidInput(f"--returns is {args.returns}; give 0 or more")
    slo = parse_slo(args.slo)
    out = picture_place(args.out, ".json and .log are")
    console = Console()
    rushes, described, rate = asyncio.run(_serve(args, slo, out, console))
    rushes[0].oracle_share = oracle_share(rushes[0], _log(out, rushes[0].name))
    console.table("What the crowd felt", ["", *(rush.name for rush in rushes)], rush_report.rows(rushes))
    console.print(rush_report.DEFINITIONS)
    _save(args, rushes, out, described, rate, console)
    return 0


async def _serve(args: argparse.Namespace, slo: Slo, out: Path, console: Console) -> tuple[list[Rush], str, float]:
    """Both phases on engines of their own, what these are, and the measured capacity in requests a second."""
    rushes: list[Rush] = []
    phase_s = args.duration / 2
    described, rate, profile, model = "", 0.0, None, None
    for name, promises in (("promises on", True), ("unbounded queue", False)):
        options = {"max_seqs": MAX_SEQS, "max_step_tokens": MAX_STEP_TOKENS, "event_log": _log(out, name)}
        options["max_queue"] = MAX_QUEUE if promises else None
        async with _engine(args, model, options, console) as engine:
            prompts, probe = _prompts(engine)
            if profile is None:
                described, model = serving.describe(engine), engine.model
                console.print(described)
                console.print(f"the crowd is promised: {describe(slo)}")
                rate = await capacity(engine, prompts, lambda call: _params(call, "capacity", None), 3 * MAX_SEQS)
                profile = _profile(rate, args.spike, phase_s)
                at_s, length_s = SPIKE_AT * phase_s, SPIKE_LENGTH * phase_s
                console.print(
                    f"capacity, measured: {rate:.3g} requests/s; the crowd comes at {BASE_SHARE:.0%} of it, and "
                    f"{args.spike:g} times that from second {at_s:.0f} on, for {length_s:.0f} s"
                )
            calls = arrivals(profile, prompts, probe, args.seed)
            rush = Rush(name, promises, slo, profile, calls, returns=args.returns)
            rushes.append(rush)
            console.heading(f"{name}: {len(rush.calls)} requests in {duration(phase_s)}")
            await _phase(engine, rush, phase_s, console)
    return rushes, described, rate


def _engine(args: argparse.Namespace, model: Any, options: dict[str, Any], console: Console) -> Any:
    """The first engine loads the model; the second takes it over."""
    if model is None:
        return serving.async_engine(args, console, **options)
    again = copy.copy(args)
    again.model, again.dtype, again.quantize = model, "auto", None
    return serving.async_engine(again, console, **options)


async def _phase(engine: Any, rush: Rush, phase_s: float, console: Console) -> None:
    def make_params(call: Call) -> Any:
        return _params(call, rush.name, rush.slo if rush.promises else None)

    def view() -> str:
        return rush_report.line(rush)

    with console.live(view, view) as changed:
        await run_rush(engine, rush, make_params, drain_s=2 * phase_s, changed=changed)
    console.print(rush_report.line(rush))


def _profile(rate: float, factor: float, phase_s: float) -> RateProfile:
    return spike(
        BASE_SHARE * rate, factor, at_s=SPIKE_AT * phase_s, length_s=SPIKE_LENGTH * phase_s, duration_s=phase_s
    )


def _prompts(engine: Any) -> tuple[list[Sequence[int]], Sequence[int]]:
    """What the crowd asks, and the one question that is asked again and again."""
    encode = engine.model.tokenizer.encode_chat
    prompts = [encode(serving.messages(SYSTEM_PROMPT, prompt)) for prompt in PROMPTS]
    return prompts, encode(serving.messages(SYSTEM_PROMPT, FIRST_PROMPT))


def _params(call: Call, phase: str, slo: Slo | None) -> Any:
    """Greedy, of exactly the drawn length. A salt of its own: no prompt is found in the prefix cache."""
    from pagedserve import SamplingParams

    return SamplingParams(
        max_tokens=call.max_tokens,
        temperature=0.0,
        ignore_eos=True,
        cache_salt=f"{phase} {call.number}.{call.attempt}",
        ttft_deadline_s=slo.ttft_s if slo else None,
        tpot_target_s=slo.tpot_s if slo else None,
        deadline_s=slo.total_s if slo else None,
    )


def _log(out: Path, name: str) -> Path:
    return out.with_name(f"{out.stem}-{name.split()[0]}.log")


def _save(
    args: argparse.Namespace, rushes: Sequence[Rush], out: Path, described: str, rate: float, console: Console
) -> None:
    numbers = out.with_suffix(".json")
    options = {"duration_s": args.duration, "spike": args.spike, "model": args.model, "seed": args.seed}
    options |= {"capacity_per_s": rate, "base_share": BASE_SHARE, "max_seqs": MAX_SEQS}
    try:
        rush_report.save_json(numbers, rushes, options)
        console.print(f"Every number: {numbers}")
        for rush in rushes:
            console.print(f"Event log:    {_log(out, rush.name)}")
        title = f"A {args.spike:g}x spike at {BASE_SHARE * rate:.3g} requests/s"
        rush_report.save_plot(out, rushes, title, described)
        console.print(f"The plot:     {out}")
    except ImportError as error:
        console.print(f"No plot: {error}. To have one: pip install 'pagedserve[plot]'")
    except OSError as error:
        raise InvalidInput(f"{out} cannot be written ({error}); give another path with --out") from None
