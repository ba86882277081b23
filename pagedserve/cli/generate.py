# SPDX-License-Identifier: Apache-2.0
"""`pagedserve generate`: one prompt, its words as they come."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from typing import Any

from pagedserve.cli import serving
from pagedserve.cli.console import Console, duration
from pagedserve.errors import InvalidInput


def run(args: argparse.Namespace) -> int:
    """Answer args.prompt on stdout."""
    params = serving.sampling_params(args)
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    if not prompt.strip():
        raise InvalidInput("the prompt is empty; give some words, or - and some words on stdin")
    if args.raw and args.system:
        raise InvalidInput("--system is part of a chat template and --raw leaves the template out; give one of them")
    console = Console(to_stderr=True)
    with serving.llm(args, console) as llm:
        metrics = None
        with closing(llm.stream(prompt if args.raw else serving.messages(args.system, prompt), params)) as deltas:
            for delta in deltas:
                sys.stdout.write(delta.text)
                sys.stdout.flush()
                metrics = delta.metrics or metrics
        sys.stdout.write("\n")
        if args.stats and metrics is not None:
            console.print(_said(metrics))
    return 0


def _said(metrics: Any) -> str:
    rate = f", {1 / metrics.tpot_s:.0f} tokens/s" if metrics.tpot_s else ""
    return (
        f"first token after {duration(metrics.ttft_s)}; "
        f"{metrics.num_output_tokens} tokens in {duration(metrics.total_s)}{rate}"
    )
