# SPDX-License-Identifier: Apache-2.0
"""A model loaded for one command."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from pagedserve import settings
from pagedserve.cli import machine
from pagedserve.cli.console import Console, size


def open_llm(model: str, **options: Any) -> Any:
    """The engine with a synchronous face."""
    from pagedserve import LLM

    return LLM(model, **options)


def open_async_engine(model: str, **options: Any) -> Any:
    """The engine with an asyncio face."""
    from pagedserve import AsyncEngine

    return AsyncEngine(model, **options)


@contextmanager
def llm(args: argparse.Namespace, console: Console) -> Iterator[Any]:
    """An `LLM` of the model options, closed at the end."""
    with console.progress(f"loading {args.model}") as progress:
        opened = open_llm(args.model, **_options(args), progress=progress)
    try:
        yield opened
    finally:
        opened.close()


@asynccontextmanager
async def async_engine(args: argparse.Namespace, console: Console, **options: Any) -> AsyncIterator[Any]:
    """An `AsyncEngine` of the model options and of further ones, closed at the end."""
    with console.progress(f"loading {getattr(args.model, 'name', args.model)}") as progress:
        opened = open_async_engine(args.model, **_options(args), **options, progress=progress)
    try:
        yield opened
    finally:
        await opened.close()


def _options(args: argparse.Namespace) -> dict[str, Any]:
    return {"backend": args.backend, "dtype": args.dtype, "quantize": args.quantize, "kv_dtype": args.kv_dtype}


def describe(engine: Any) -> str:
    """The model and what it runs on, in one line."""
    model, stats = engine.model, engine.stats()
    where = f"{settings.num_threads()} threads, {machine.instruction_set() or 'no compiled kernels'}"
    pages = f"{stats.num_pages:,} pages"
    return f"{model.name}: {size(model.weight_bytes)} of weights ({model.precision}), {pages}; {where}"


def sampling_params(args: argparse.Namespace) -> Any:
    """`SamplingParams` of the sampling options; it refuses impossible ones before any model is loaded."""
    from pagedserve import SamplingParams

    return SamplingParams(
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
        stop=args.stop,
    )


def messages(system: str | None, *turns: str) -> list[dict[str, str]]:
    """A conversation for a chat template: the system prompt, then user and assistant by turns."""
    opening = [{"role": "system", "content": system}] if system else []
    return opening + [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(turns)]
