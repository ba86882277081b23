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
        if args.raw:
            prompt_token_ids = llm.tokenizer.encode(prompt)
        else:
            prompt_token_ids = llm.tokenizer.encode_chat(serving.messages(args.system, prompt))
        metrics = None
        with closing(llm.stream(prompt_token_ids, params)) as deltas:
            for delta in deltas:
                sys.stdout.write(delta.text)
                sys.stdout.flush()
                metrics = delta.metrics or metrics
        sys.stdout.write("\n")
        if args.stats and metrics is not None:
            console.print(_said(metrics, len(prompt_token_ids)))
    return 0


def _said(metrics: Any, num_prompt_tokens: int) -> str:
    rate = f", {1 / metrics.tpot_s:.0f} tokens/s" if metrics.tpot_s else ""
    return (
        f"{num_prompt_tokens} prompt tokens, first token after {duration(metrics.ttft_s)}; "
        f"{metrics.num_output_tokens} tokens in {duration(metrics.total_s)}{rate}"
    )
