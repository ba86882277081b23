# SPDX-License-Identifier: Apache-2.0
"""python -m bench explain paged_decode: what a decode on a GPU that is not here can reach, from its machine code, its
plan and a data sheet. Every time is a prediction."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from rich.console import Console

from bench import report
from bench.explain.code import CLASSES, Work, compiled, sizes_of, work_of
from bench.explain.predict import BITS, CARDS, Card, Prediction, Shape, planned, predict
from pagedserve.errors import BackendUnavailable, InvalidInput

DTYPES = {"bf16": "bf16", "f16": "f16", "fp16": "f16", "fp8": "f8", "f8": "f8", "int8": "i8", "i8": "i8"}
DTYPES |= {"int4": "i4", "i4": "i4"}
# What is to be reached on an H200, DESIGN.md's page of numbers: heads, lengths, keys and values, microseconds.
BARS: tuple[tuple[str, str, str, float | None], ...] = (
    ("32/8", "8x32768", "bf16", 250.0),
    ("32/8", "32x4096", "bf16", 135.0),
    ("32/8", "32768", "bf16", 43.0),
    ("32/8", "1024", "bf16", 8.0),
    ("64/8", "128x2048", "fp8", 140.0),
    ("32/8", "8x32768", "fp8", 145.0),
    ("8/1", "131072,31x4096", "fp8", 28.4),
    ("32/8", "8x32768", "int8", None),
    ("32/8", "8x32768", "int4", None),
)
BAR_COLUMNS = {
    "heads": "heads",
    "kv_lens": "kv_lens",
    "kv": "KV",
    "bar_us": "bar us",
    "floor_us": "floor us",
    "predicted_us": "predicted us",
    "merge_us": "merge us",
    "bound": "longest term",
    "needed": "bandwidth the bar needs",
    "issue": "issue / memory",
    "in_flight": "in flight / needed",
    "balance": "balance",
    "slack": "slack us",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("op", choices=("paged_decode",))
    add("--heads", default="32/8", metavar="Q/KV")
    add("--head-dim", type=int, default=128)
    add("--page-size", type=int, default=16, help="it changes no number here: a row of a page is read in one piece")
    add("--kv-lens", default="8x32768", help="tokens of each sequence: 8x32768, or 131072,31x4096")
    add("--dtype", default="bf16", help=f"of keys and values: {', '.join(DTYPES)}")
    add("--gpu", default="h200", help=f"{', '.join(CARDS)}")
    add("--bars", action="store_true", help="all shapes that have a bar, in place of one shape")


def whole(text: str, option: str) -> int:
    if not text.strip().isdigit():
        raise InvalidInput(f"{option}: {text!r} is no whole number")
    return int(text)


def lens_of(text: str) -> tuple[int, ...]:
    """ "131072,31x4096"."""
    found: list[int] = []
    for part in text.split(","):
        count, times, length = part.rpartition("x")
        found += [whole(length, "--kv-lens")] * (whole(count, "--kv-lens") if times else 1)
    return tuple(found)


def shape_of(heads: str, kv_lens: str, dtype: str, head_dim: int, page_size: int) -> Shape:
    q, slash, kv = heads.partition("/")
    num_q_heads, num_kv_heads = whole(q, "--heads"), whole(kv if slash else q, "--heads")
    if not num_kv_heads or num_q_heads % num_kv_heads:
        raise InvalidInput(f"--heads is {heads!r}; give query heads and KV heads, the first a multiple: 32/8")
    if dtype not in DTYPES:
        raise InvalidInput(f"--dtype is {dtype!r}; choose from {', '.join(DTYPES)}")
    if not 1 <= head_dim <= 256 or head_dim % 8 or page_size < 1:
        raise InvalidInput("--head-dim is a multiple of 8 up to 256, and --page-size at least 1")
    return Shape(num_q_heads, num_kv_heads, head_dim, page_size, lens_of(kv_lens), DTYPES[dtype])


def card_of(name: str) -> Card:
    if name not in CARDS:
        raise InvalidInput(f"--gpu is {name!r}; choose from {', '.join(CARDS)}")
    return CARDS[name]


def explained(shape: Shape, card: Card, bar_s: float | None = None) -> tuple[Prediction, Work]:
    """Compiles, counts, plans and predicts.

    Raises:
        BackendUnavailable: nvcc, g++ or cuobjdump is missing.
        InvalidInput: the shape runs on CUDA cores.
    """
    if shape.num_q_heads == shape.num_kv_heads and BITS[shape.kv] == 16:
        raise InvalidInput(
            f"--heads: {shape.num_q_heads}/{shape.num_kv_heads} of {shape.kv} runs on CUDA cores, and only "
            f"kernels of matrix products are counted; give more query heads than KV heads, or fp8, int8 or int4"
        )
    bucket = next(size for size in (64, 128, 256) if shape.head_dim <= size)
    columns = next(size for size in (8, 16, 32) if shape.rows.tile_rows <= size)
    sizes = sizes_of(shape.kv, bucket, columns)
    kernel, lines = compiled(shape.kv, bucket, columns, card.arch)
    num_rows = min(shape.rows.num_rows, shape.rows.tile_rows)
    work = work_of(lines, sizes, bucket, columns, num_rows)
    blocks = kernel.blocks_per_sm(sizes.threads, sizes.shared_bytes)
    plan = planned(shape, card.num_sms)
    return predict(shape, card, sizes, work, kernel.registers, blocks, plan, bar_s), work


def work_rows(work: Work) -> Iterator[report.Row]:
    names = (*CLASSES, "control")
    for phase, classes in work.tile.items():
        yield {"phase": phase, "all": sum(classes.values())} | {name: classes[name] for name in names}
    total = {name: work.of_class(name) for name in names}
    yield {"phase": "a tile", "all": sum(total.values())} | total
    yield {"phase": "end of a split", "all": work.split}
    yield {"phase": "a row's merge, each 32 partials", "all": work.merge_row}
    yield {"phase": "of them each that are read at once", "all": work.merge_batch}


def bar_row(heads: str, kv_lens: str, kv: str, found: Prediction) -> report.Row:
    bar = found.bar_s
    return {
        "heads": heads,
        "kv_lens": kv_lens,
        "kv": kv,
        "bar_us": bar and bar * 1e6,
        "floor_us": found.floor_s * 1e6,
        "predicted_us": found.predicted_s * 1e6,
        "merge_us": found.merge_s * 1e6,
        "bound": found.bound,
        "needed": None if found.needed_share is None else f"{found.needed_share:.0%}",
        "issue": f"{found.issue_share:.0%}",
        "in_flight": f"{found.in_flight_share:.1f}",
        "balance": f"{found.balance:.2f}",
        "slack": bar and (bar - found.predicted_s) * 1e6,
    }


def show_bars(args: argparse.Namespace, card: Card, console: Console) -> None:
    rows = []
    for heads, kv_lens, kv, bar_us in BARS:
        shape = shape_of(heads, kv_lens, kv, 128, 16)
        found, _ = explained(shape, card, bar_us and bar_us * 1e-6)
        rows.append(bar_row(heads, kv_lens, kv, found))
    title = f"Predicted for {card.gpu.name}, head_dim 128, page_size 16: nothing here was measured"
    report.show(rows, BAR_COLUMNS, title=title, console=console)


def show_one(args: argparse.Namespace, card: Card, console: Console) -> None:
    shape = shape_of(args.heads, args.kv_lens, args.dtype, args.head_dim, args.page_size)
    bar = next(
        (bar for *call, bar in BARS if call == [args.heads, args.kv_lens, args.dtype] and args.gpu == "h200"), None
    )
    found, work = explained(shape, card, bar and bar * 1e-6)
    facts = [{"name": f.name, "value": f.value, "unit": f.unit, "origin": f.origin} for f in found.facts]
    columns = {"name": "fact", "value": "value", "unit": "", "origin": "from"}
    report.show(facts, columns, title=f"paged_decode on {card.gpu.name}, {args.dtype} keys and values", console=console)
    names = ("phase", "all", *CLASSES, "control")
    title = f"Instructions of a warp, counted in {card.arch}'s machine code"
    report.show(list(work_rows(work)), {name: name for name in names}, title=title, console=console)
    rows = [bar_row(args.heads, args.kv_lens, args.dtype, found)]
    report.show(rows, BAR_COLUMNS, title="Predicted: nothing here was measured", console=console)


def run(args: argparse.Namespace, console: Console) -> int:
    try:
        (show_bars if args.bars else show_one)(args, card_of(args.gpu), console)
    except (BackendUnavailable, InvalidInput) as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        return 2
    return 0
