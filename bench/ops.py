# SPDX-License-Identifier: Apache-2.0
"""Times ops of pagedserve beside torch's own functions, as a share of what the machine was measured to do at best."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from bench import op_peers
from bench.cases import BenchCase, cases_of
from bench.cases.case import Inputs, nbytes
from bench.device import Call, Sampler, last_cache_bytes, placed, sampler
from bench.report import Row
from bench.roofline import Roof, floats
from bench.timing import Rotation, Timing, alternate_samples
from pagedserve import ops
from pagedserve.errors import PagedServeError

COLUMNS = {
    "op": "op",
    "case": "case",
    "inputs": "inputs",
    "us": "us",
    "spread_percent": "±%",
    "min_us": "min us",
    "GB_per_s": "GB/s",
    "GFLOP_per_s": "GFLOP/s",
    "roof_percent": "% of roof",
    "bound": "bound",
    "read_percent": "% of reading",
}
DEFINITIONS = """\
us: median of whole calls of pagedserve.ops, checks included; ±%: (p90 - p10) / median. What is right of it up to the
bound is of the shortest call, as the roof is what the machine did at best, before, between or after the calls. Inputs
are cold: they rotate through twice the last cache; or warm: a thousand copies are less than that. GB/s and GFLOP/s
count what the op's definition must move and compute, once. % of roof: the time at the measured bandwidth, or at the
measured rate of matrix products if that is longer (bound says which), over our time. % of reading, where memory is the
bound: the time in which as many bytes were read in order, turn by turn with our calls, over our time, medians both, so
that what others do to memory meets both. x NAME: that peer's time over ours; it takes its turn between our calls, on
the same inputs. On a GPU calls are replayed in a graph between two device events."""


def ours(case: BenchCase, inputs: Inputs, backend: str) -> Callable[[], object]:
    if case.op == "paged_decode" and backend.startswith("cuda"):
        inputs = inputs | {"workspace": planned(inputs, backend)}
    return functools.partial(getattr(ops, case.op), **inputs, backend=backend)


def planned(inputs: Inputs, backend: str) -> torch.Tensor:
    """The workspace of a decode, with its plan: made once a step, for all layers, and so not part of a call."""
    q, k, lens = inputs["q"], inputs["k_pages"], inputs["kv_lens"]
    heads, q_len = (q.shape[1], k.shape[2], q.shape[2]), inputs.get("q_len", 1)
    size = ops.decode_workspace_bytes(len(lens), *heads, max_kv_tokens=int(lens.clamp(min=0).sum()), q_len=q_len)
    workspace = torch.empty(size, dtype=torch.uint8, device=lens.device)
    names = dict(zip(("num_q_heads", "num_kv_heads", "head_dim"), heads, strict=True))
    ops.plan_decode(lens, workspace, **names, q_len=q_len, backend=backend)
    return workspace


def time_case(
    case: BenchCase,
    backend: str,
    *,
    peers: Sequence[str] = (),
    budget_s: float,
    cold_bytes: int | None = None,
    device: str = "cpu",
) -> Row:
    """One row: our time, the peers' beside it, what the op moves and computes. `under_roof` adds the share.

    Args:
        peers: names as `op_peers.call` knows them; one that cannot run here leaves its reason in the row.
        cold_bytes: that copies of the inputs shall take together; default twice the device's last cache.
        device: where the inputs stand, and whose clock is read: "cpu" or "cuda".

    Raises:
        BackendUnavailable, InvalidInput: as the op raises them for this backend.
    """
    first = case.make()
    cost = ops.explain(case.op, first)
    rotation = Rotation(lambda: placed(case.make(), device), nbytes(first), cold_bytes, last_cache_bytes(device))
    with torch.inference_mode():
        for inputs in rotation.copies:
            if any(isinstance(value, ops.Weight) for value in inputs.values()):
                ours(case, inputs, backend)()  # a backend packs a weight at its first call
        samplers = {"ours": sampler(device, [ours(case, inputs, backend) for inputs in rotation.copies])}
        found = {name: peer_sampler(name, case, rotation.copies, device) for name in peers}
        samplers |= {name: each for name, each in found.items() if isinstance(each, Sampler)}
        memory = floats(max(cost.bytes, rotation.cold_bytes, 4), device)
        samplers["read"] = sampler(device, [memory.max])
        timings = alternate_samples({name: each.sample for name, each in samplers.items()}, budget_s=budget_s)
    mine = timings["ours"]
    row: Row = {
        "bench": "ops",
        "op": case.op,
        "case": case.name,
        "backend": backend,
        "device": device,
        "inputs": "cold" if rotation.is_cold else "warm",
        "clock": samplers["ours"].way,
        "us": mine.median_s * 1e6,
        "spread_percent": mine.spread * 100,
        "min_us": mine.min_s * 1e6,
        "calls": mine.num_calls,
        "GB_per_s": cost.bytes / mine.min_s / 1e9,
        "GFLOP_per_s": cost.flops / mine.min_s / 1e9,
        "read_GB_per_s": memory.nbytes / timings["read"].median_s / 1e9,
        "best_read_GB_per_s": memory.nbytes / timings["read"].min_s / 1e9,
        "read_bytes": memory.nbytes,
        "bytes": cost.bytes,
        "flops": cost.flops,
        "rate": case.rate,
    }
    for name, each in found.items():
        row |= {f"{name}_why": each} if isinstance(each, str) else peer_columns(name, each.way, timings[name], mine)
    return row | ({"torch_way": case.torch_way} if "torch" in timings else {})


def peer_sampler(name: str, case: BenchCase, copies: Sequence[Inputs], device: str) -> Sampler | str:
    """How to time a peer on the same inputs; the reason where it cannot run."""
    try:
        calls: list[Call] = [op_peers.call(name, case, inputs) for inputs in copies]
        return sampler(device, calls)
    except (PagedServeError, ImportError) as error:
        return str(error)


def peer_columns(name: str, way: str, peer: Timing, mine: Timing) -> Row:
    return {
        f"{name}_us": peer.median_s * 1e6,
        f"{name}_min_us": peer.min_s * 1e6,
        f"{name}_clock": way,
        f"times_{name}": peer.min_s / mine.min_s,
    }


def columns(peers: Sequence[str]) -> dict[str, str]:
    """The table's columns, with two for each peer."""
    found = dict(COLUMNS)
    for name in peers:
        found |= {f"{name}_min_us": f"{name} min us", f"times_{name}": f"x {name}"}
    return found


def under_roof(row: Row, roof: Roof) -> Row:
    """The row with its share of what the machine can do."""
    cost = (row["bytes"], row["flops"], row["rate"])
    bound = roof.bound(*cost)
    read_us = row["bytes"] / row["read_GB_per_s"] / 1e3
    return row | {
        "roof_percent": roof.floor_s(*cost) / row["min_us"] * 1e8,
        "bound": bound,
        "read_percent": 100 * read_us / row["us"] if bound == "memory" else None,
        "roof_GB_per_s": roof.read_bytes_per_s / 1e9,
        "roof_GFLOP_per_s": roof.flops_per_s[row["rate"]] / 1e9,
    }


def best_read(rows: Iterable[Row], num_bytes: int) -> float:
    """Bytes a second of the fastest reading beside the rows' calls, of at least num_bytes; 0 where there was none."""
    return max((row["best_read_GB_per_s"] * 1e9 for row in rows if row["read_bytes"] >= num_bytes), default=0.0)


def chosen(names: Sequence[str], grid: str, only: str) -> Iterator[BenchCase]:
    """Cases of the named ops whose own name holds `only`."""
    for name in names:
        for case in cases_of(name, grid):
            if only in case.name:
                yield case


def repro(case: BenchCase, args: Any) -> str:
    """The command that times this case again."""
    words = ["python", "-m", "bench", "ops", case.op, "--backend", args.backend, "--peer", args.peer]
    words += ["--device", args.device, "--threads", str(args.threads), "--grid", args.grid, "--only", case.name]
    return shlex.join(words)
