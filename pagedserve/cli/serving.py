# SPDX-License-Identifier: Apache-2.0
"""A model loaded for one command."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pagedserve.cli.console import Console


@contextmanager
def llm(args: argparse.Namespace, console: Console) -> Iterator[Any]:
    """An `LLM` of --model on --backend, closed at the end."""
    with console.status(f"loading {args.model}"):
        opened = importlib.import_module("pagedserve").LLM(args.model, backend=args.backend)
    try:
        yield opened
    finally:
        opened.close()


def sampling_params(args: argparse.Namespace) -> Any:
    """`SamplingParams` of the sampling options; it refuses impossible ones before any model is loaded."""
    return importlib.import_module("pagedserve").SamplingParams(
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
