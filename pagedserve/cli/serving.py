# SPDX-License-Identifier: Apache-2.0
"""A model loaded for one command."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from pagedserve.cli.console import Console


def open_llm(model: str, *, backend: str) -> Any:
    """The engine with a synchronous face."""
    from pagedserve.engine import LLM

    return LLM(model, backend=backend)


def open_async_engine(model: str, *, backend: str) -> Any:
    """The engine with an asyncio face."""
    from pagedserve.engine import AsyncEngine

    return AsyncEngine(model, backend=backend)


@contextmanager
def llm(args: argparse.Namespace, console: Console) -> Iterator[Any]:
    """An `LLM` of --model on --backend, closed at the end."""
    with console.status(f"loading {args.model}"):
        opened = open_llm(args.model, backend=args.backend)
    try:
        yield opened
    finally:
        opened.close()


@asynccontextmanager
async def async_engine(args: argparse.Namespace, console: Console) -> AsyncIterator[Any]:
    """An `AsyncEngine` of --model on --backend, closed at the end."""
    with console.status(f"loading {args.model}"):
        opened = open_async_engine(args.model, backend=args.backend)
    try:
        yield opened
    finally:
        await opened.close()


def sampling_params(args: argparse.Namespace) -> Any:
    """`SamplingParams` of the sampling options; it refuses impossible ones before any model is loaded."""
    from pagedserve.engine.sampling import SamplingParams

    return SamplingParams(
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        seed=args.seed,
        stop=args.stop,
    )


def messages(system: str | None, *turns: str) -> list[dict[str, str]]:
    """A conversation for a chat template: the system prompt, then user and assistant by turns."""
    opening = [{"role": "system", "content": system}] if system else []
    return opening + [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(turns)]
