# SPDX-License-Identifier: Apache-2.0
"""Arguments in, exit code out: 0 well, 1 something is missing, 2 an error that was explained, 130 Ctrl-C."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from pagedserve import __version__
from pagedserve.errors import PagedServeError

DEFAULT_MODEL = "smollm2-135m-instruct"

EXIT_ERROR = 2
EXIT_INTERRUPT = 130
EXIT_BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: its arguments; default: those of the process.

    Returns:
        The exit code.
    """
    _open_missing_streams()
    args = _parser().parse_args(argv)
    try:
        code = importlib.import_module(f"pagedserve.cli.{args.command}").run(args)
        sys.stdout.flush()
        return int(code)
    except PagedServeError as error:
        print(f"pagedserve {args.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return EXIT_INTERRUPT
    except BrokenPipeError:
        _discard_words()
        return EXIT_BROKEN_PIPE
    except OSError as error:  # a full disk behind stdout: commands name the files that they open themselves
        _discard_words()
        print(f"pagedserve {args.command}: cannot go on: {error}", file=sys.stderr)
        return EXIT_ERROR


def _open_missing_streams() -> None:
    """Nothing to read, and a place for words, where the process was started with streams closed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _discard_words() -> None:
    """Where nobody takes what is still to be written, the interpreter's own flush at exit must not fail on it again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pagedserve", description="Paged attention, fused batched decoding, and a thin engine around them."
    )
    parser.add_argument("--version", action="version", version=f"pagedserve {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_generate(commands.add_parser("generate", help="answer one prompt, word by word"))
    _add_chat(commands.add_parser("chat", help="talk with a model"))
    _add_demo(commands.add_parser("demo", help="serve a real model to many users at once, and show what they feel"))
    _add_rush(
        commands.add_parser("rush", help="a spike on the real engine: with promises, and with an unbounded queue")
    )
    _add_replay(commands.add_parser("replay", help="an event log again, decision by decision; and what if"))
    _add_plan(commands.add_parser("plan", help="replicas, spikes and cost of a crowd, simulated in seconds"))
    commands.add_parser("doctor", help="what is installed, what can run here, and why the rest cannot")
    _add_explain(commands.add_parser("explain", help="which backend runs an op, and why the others do not"))
    return parser


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help="what to answer; - reads it from stdin")
    parser.add_argument("--system", metavar="TEXT", help="a system prompt to go before it")
    parser.add_argument(
        "--raw", action="store_true", help="continue the prompt as it stands, without the chat template"
    )
    parser.add_argument("--stats", action="store_true", help="say afterwards, on stderr, how long it took")
    _add_model(parser)
    _add_sampling(parser, temperature=0.0, top_p=1.0, repetition_penalty=1.0)


def _add_chat(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--system", metavar="TEXT", help="a system prompt")
    _add_model(parser)
    _add_sampling(parser, temperature=0.2, top_p=0.9, repetition_penalty=1.1)


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--users", type=_positive, default=64, metavar="N", help="users at once (default: 64)")
    parser.add_argument("--max-tokens", type=_positive, default=64, metavar="N", help="of each answer (default: 64)")
    parser.add_argument("--out", default="out/demo.png", metavar="PNG", help="the plot; a .json stands beside it")
    _add_model(parser)


def _add_rush(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--duration", type=float, default=120.0, metavar="S", help="seconds of arrivals, both phases (default: 120)"
    )
    parser.add_argument("--spike", type=float, default=10.0, metavar="FACTOR", help="times the usual (default: 10)")
    parser.add_argument(
        "--slo",
        default="ttft=2s,tpot=200ms",
        metavar="PROMISE",
        help="as ttft=1s,tpot=50ms (default: ttft=2s,tpot=200ms)",
    )
    returns = "how often somebody who is sent away comes back (default: 1)"
    parser.add_argument("--returns", type=int, default=1, metavar="N", help=returns)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the crowd (default: 0)")
    parser.add_argument("--out", default="out/rush.png", metavar="PNG", help="the plot; .json and .log beside it")
    _add_model(parser)


def _add_replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", metavar="LOG", help="what an engine wrote as its event_log")
    parser.add_argument(
        "--what-if",
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD=VALUE",
        help="the last session's requests again in virtual time, with this in its config, as num_pages=500",
    )
    parser.add_argument("--slo", metavar="SLO", help="the same, with other promises to all, as ttft=1s,tpot=50ms")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--users", type=_positive, default=10_000, metavar="N", help="people (default: 10000)")
    parser.add_argument("--every", default="60s", metavar="TIME", help="each asks once in this time (default: 60s)")
    parser.add_argument(
        "--slo",
        default="ttft=1s,tpot=50ms",
        metavar="PROMISE",
        help="first token, mean gap, whole answer, as ttft=1s,tpot=50ms,total=30s (default: ttft=1s,tpot=50ms)",
    )
    parser.add_argument("--model", default="llama-3-8b", metavar="MODEL", help="a known name or a folder")
    parser.add_argument("--weights", default="bf16", metavar="FORMAT", help="bf16 or fp8 (default: bf16)")
    parser.add_argument("--gpu", default="h200", metavar="GPU", help="b200, h200, h100, a100 or l40s (default: h200)")
    parser.add_argument(
        "--steps", metavar="LOG", help="a real engine's event log: its steps in place of --model and --gpu"
    )
    means = "mean of the prompts (default: 1155, Azure's conversations of 2023)"
    parser.add_argument("--prompt-tokens", type=float, default=1155.0, metavar="N", help=means)
    parser.add_argument("--output-tokens", type=float, default=211.0, metavar="N", help="of the answers (default: 211)")
    parser.add_argument("--spike", type=float, default=10.0, metavar="FACTOR", help="times the users (default: 10)")
    parser.add_argument("--start", default="90s", metavar="TIME", help="what a replica takes to start (default: 90s)")
    parser.add_argument("--price", type=float, default=4.0, metavar="PRICE", help="of a replica's hour (default: 4)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the simulated crowd (default: 0)")
    parser.add_argument(
        "--processes", type=_positive, metavar="N", help="to simulate on (default: as cores, at most 4)"
    )
    parser.add_argument("--json", action="store_true", help="the numbers on stdout in place of tables")
    parser.add_argument("--out", default="out/plan.png", metavar="PNG", help="the plot; a .json stands beside it")


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("op", metavar="OP", help="as paged_decode")
    parser.add_argument(
        "--shape", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="sizes and dtypes of the call"
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="MODEL",
        help=f"a GGUF file, a folder of safetensors, or a known name (default: {DEFAULT_MODEL})",
    )
    parser.add_argument("--backend", default="auto", metavar="NAME", help="cpu, reference or auto (default: auto)")
    parser.add_argument("--dtype", default="auto", metavar="DTYPE", help="of weights: auto, float32 or bfloat16")
    parser.add_argument("--quantize", metavar="FORMAT", help="round the weights to q8 or q4")
    parser.add_argument("--kv-dtype", default="auto", metavar="DTYPE", help="of cached keys and values, as int8")


def _add_sampling(
    parser: argparse.ArgumentParser, *, temperature: float, top_p: float, repetition_penalty: float
) -> None:
    parser.add_argument("--max-tokens", type=int, default=256, metavar="N", help="of the answer (default: 256)")
    parser.add_argument(
        "--temperature", type=float, default=temperature, metavar="T", help=f"0 is greedy (default: {temperature:g})"
    )
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="0 is off (default: 0)")
    parser.add_argument("--top-p", type=float, default=top_p, metavar="P", help=f"1 is off (default: {top_p:g})")
    parser.add_argument("--min-p", type=float, default=0.0, metavar="P", help="0 is off (default: 0)")
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=repetition_penalty,
        metavar="R",
        help=f"above 1 discourages what was said before (default: {repetition_penalty:g})",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same words")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends the answer; may be repeated")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value
