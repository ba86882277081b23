# SPDX-License-Identifier: Apache-2.0
"""`pagedserve demo`: one user, then many at once, then the same ones one at a time; what each of them felt."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from pagedserve.cli import report, serving
from pagedserve.cli.console import Console, duration, size
from pagedserve.cli.live import CrowdView, QueueView
from pagedserve.cli.measure import Answer, Phase, run_phase
from pagedserve.cli.plot import save_plot
from pagedserve.cli.prompts import FIRST_PROMPT, PROMPTS, SYSTEM_PROMPT
from pagedserve.cli.saved import picture_place
from pagedserve.errors import InvalidInput

NUM_SHOWN = 4  # answers of the crowd that are printed whole


def run(args: argparse.Namespace) -> int:
    """Serve, measure, print the table, save the plot and the numbers."""
    out = picture_place(args.out, "the .json is")
    console = Console()
    phases, described = asyncio.run(_serve(args, console))
    _, at_once, one_by_one = phases
    console.table("What the users felt", report.columns(phases), report.rows(phases))
    identical = report.num_identical(at_once, one_by_one)
    console.print(f"Answers identical, token by token, in both modes: {identical} of {args.users}")
    _save(args, out, phases, described, console)
    return 0


async def _serve(args: argparse.Namespace, console: Console) -> tuple[list[Phase], str]:
    """The three phases, on one engine, and what that engine is."""
    users = list(islice(cycle(PROMPTS), args.users))
    async with serving.async_engine(args, console) as engine:
        described = serving.describe(engine)
        console.print(described)
        first = Phase("one user", False)
        await _first_user(engine, first, args, console)
        at_once = Phase(f"{args.users} at once", True)
        await _crowd(engine, at_once, users, args, console)
        one_by_one = Phase("one at a time", False)
        await _queue(engine, one_by_one, users, args, console)
    return [first, at_once, one_by_one], described


async def _first_user(engine: Any, phase: Phase, args: argparse.Namespace, console: Console) -> None:
    console.heading(f"One user asks: {FIRST_PROMPT}")
    prompts = _encode(engine, phase, [FIRST_PROMPT])
    (answer,) = phase.answers
    written = 0

    def write_new_words() -> None:
        nonlocal written
        console.write(answer.text[written:])
        written = len(answer.text)

    await run_phase(engine, phase, prompts, _params("first", args), write_new_words)
    console.write("\n")
    rate = f", then {1 / answer.tpot_s:.0f} tokens/s" if answer.tpot_s else ""
    console.print(f"(first word after {duration(answer.ttft_s)}{rate})")


async def _crowd(engine: Any, phase: Phase, users: Sequence[str], args: argparse.Namespace, console: Console) -> None:
    console.heading(f"{len(users)} users ask at the same moment")
    prompts = _encode(engine, phase, users)
    view = CrowdView(phase)
    with console.live(view.render, view.line) as changed:
        await run_phase(engine, phase, prompts, _params("at once", args), changed)
    for answer in phase.answers[:: max(1, -(-len(users) // NUM_SHOWN))]:
        console.print(f"  {answer.number + 1}. {answer.prompt}")
        console.print(f"     {' '.join(answer.text.split())}")
    console.print(f"all {len(users)} answered in {duration(phase.duration_s)}, {phase.tokens_per_s:,.0f} tokens/s")


async def _queue(engine: Any, phase: Phase, users: Sequence[str], args: argparse.Namespace, console: Console) -> None:
    console.heading(f"The same {len(users)} users, one at a time")
    prompts = _encode(engine, phase, users)
    view = QueueView(phase)
    with console.live(view.render, view.line) as changed:
        await run_phase(engine, phase, prompts, _params("one at a time", args), changed)
    console.print(f"all {len(users)} answered in {duration(phase.duration_s)}, {phase.tokens_per_s:,.0f} tokens/s")


def _encode(engine: Any, phase: Phase, users: Sequence[str]) -> list[list[int]]:
    """Token ids of each user's chat, and the phase's empty answers beside them."""
    prompts = [engine.model.tokenizer.encode_chat(serving.messages(SYSTEM_PROMPT, user)) for user in users]
    phase.answers = [
        Answer(number, user, len(prompt)) for number, (user, prompt) in enumerate(zip(users, prompts, strict=True))
    ]
    return prompts


def _params(phase: str, args: argparse.Namespace) -> Any:
    """Greedy. The salt keeps a phase from finding the prompts of the phase before in the prefix cache."""
    from pagedserve import SamplingParams

    return SamplingParams(max_tokens=args.max_tokens, temperature=0.0, cache_salt=phase)


def _save(args: argparse.Namespace, out: Path, phases: Sequence[Phase], described: str, console: Console) -> None:
    numbers = out.with_suffix(".json")
    options = {"users": args.users, "max_tokens": args.max_tokens, "model": args.model, "backend": args.backend}
    try:
        report.save_json(numbers, phases, options)
        console.print(f"Every number: {numbers} ({size(numbers.stat().st_size)})")
        title = f"{args.users} users, {args.max_tokens} tokens each at most"
        save_plot(out, phases[1], phases[2], title, described)
        console.print(f"The plot:     {out}")
    except ImportError as error:
        console.print(f"No plot: {error}. To have one: pip install 'pagedserve[plot]'")
    except OSError as error:
        raise InvalidInput(f"{out} cannot be written ({error}); give another path with --out") from None
