# SPDX-License-Identifier: Apache-2.0
"""What is measured on the device: roofs, the grid of decodes beside every peer, the constants of a cost model."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench import op_peers, ops, roofline
from bench.cases import BenchCase, cases_of
from bench.cases.attention import attention_case
from bench.gpu.place import Place
from bench.report import Row
from bench.roofline import Roof
from pagedserve.errors import PagedServeError

# In order of value: the shapes that others have published, then low-bit pages, few KV heads, verification, odd sizes.
GRID = (
    "8x32768-h32/8-d128-p16-bf16",
    "32x4096-h32/8-d128-p16-bf16",
    "1x32768-h32/8-d128-p16-bf16",
    "1x1024-h32/8-d128-p16-bf16",
    "128x2048-h64/8-d128-p64-fp8",
    "8x32768-h32/8-d128-p16-fp8",
    "8x32768-h32/8-d128-p16-int8",
    "8x32768-h32/8-d128-p16-int4",
    "8x4096-h32/8-d128-p16-bf16",
    "64x1024-h32/8-d128-p16-bf16",
    "1x131072,31x4096-h8/1-d128-p64-fp8",
    "32x4096+4-h32/8-d128-p16-bf16",
    "32x4096-h28/4-d128-p16-bf16",
    "32x4096-h32/32-d128-p16-bf16",
    "32x4096-h32/8-d64-p16-bf16",
    "32x4096-h16/8-d256-p16-bf16",
    "32x4096-h32/8-d128-p1-bf16",
    "32x4096-h32/8-d128-p16-f16",
)
DRY_GRID = ("2x33-h4/2-d16-p4-bf16",)
OTHER_OPS = ("append_kv", "copy_pages", "merge_states")


def measured_roof(place: Place) -> Roof:
    if place.is_dry:
        return roofline.measure(torch.get_num_threads(), budget_s=0.1, num_bytes=1 << 20, edge=64)
    return roofline.measure(torch.get_num_threads(), budget_s=5.0, device="cuda")


def roof_row(roof: Roof) -> Row:
    rates = {f"{name}_TFLOP_per_s": rate / 1e12 for name, rate in roof.flops_per_s.items()}
    return {"read_GB_per_s": roof.read_bytes_per_s / 1e9, "copy_GB_per_s": roof.copy_bytes_per_s / 1e9, **rates}


def roofs(place: Place, done: set[str]) -> Iterator[Row]:
    if "roof" not in done:
        yield {"case": "roof", **roof_row(measured_roof(place))}


def grid_cases(place: Place) -> Iterator[BenchCase]:
    yield from (attention_case("paged_decode", text) for text in (DRY_GRID if place.is_dry else GRID))
    for op in OTHER_OPS:
        yield from cases_of(op, "quick" if place.is_dry else "default")


def grid(place: Place, done: set[str]) -> Iterator[Row]:
    """Each case with every peer that can run it, as a share of the roof measured in the same process."""
    roof = measured_roof(place)
    for case in grid_cases(place):
        name = f"{case.op} {case.name}"
        if name in done:
            continue
        why = place.lacks(case.op)
        if why:
            yield {"case": name, "why": why}
            continue
        peers = [] if place.is_dry else op_peers.names(case.op, place.backend)
        try:
            row = ops.time_case(
                case,
                place.backend,
                peers=peers,
                budget_s=0.0 if place.is_dry else 1.5,
                cold_bytes=0 if place.is_dry else None,
                device=place.device,
            )
        except PagedServeError as error:
            yield {"case": name, "why": str(error)}
            continue
        words = ["python", "-m", "bench", "ops", case.op, "--backend", place.backend, "--device", place.device]
        command = " ".join([*words, "--peer", "all", "--grid", case.name if case.op == "paged_decode" else "default"])
        yield {**ops.under_roof(row, roof), "case": name, "command": command}


# Sequences and keys of each: the time of a decode is fitted over them.
CONSTANTS_SIZES = tuple((seqs, keys) for seqs in (1, 4, 16, 64) for keys in (256, 2048, 16384))
DRY_CONSTANTS_SIZES = ((1, 16), (2, 16), (1, 64), (2, 64))


def constants(place: Place, done: set[str]) -> Iterator[Row]:
    """seconds = launch + a sequence's share * num_seqs + bytes / bandwidth, by least squares over sizes."""
    if "cost model" in done:
        return
    why = place.lacks("plan_decode", "paged_decode")
    if why:
        yield {"case": "cost model", "why": why}
        return
    sizes = DRY_CONSTANTS_SIZES if place.is_dry else CONSTANTS_SIZES
    heads = "h4/2-d16-p4" if place.is_dry else "h32/8-d128-p16"
    terms, seconds = [], []
    for num_seqs, keys in sizes:
        case = attention_case("paged_decode", f"{num_seqs}x{keys}-{heads}-bf16")
        budget_s, cold = (0.0, 0) if place.is_dry else (0.5, None)
        row = ops.time_case(case, place.backend, budget_s=budget_s, cold_bytes=cold, device=place.device)
        terms.append([1.0, float(num_seqs), float(row["bytes"])])
        seconds.append(row["min_us"] / 1e6)
    matrix, wanted = torch.tensor(terms, dtype=torch.float64), torch.tensor(seconds, dtype=torch.float64)
    weights = 1 / wanted  # so that each size counts alike, small ones too
    fit = torch.linalg.lstsq(matrix * weights[:, None], (wanted * weights)[:, None]).solution.flatten()
    errors = ((matrix @ fit) / wanted - 1).abs()
    yield {
        "case": "cost model",
        "launch_us": float(fit[0]) * 1e6,
        "sequence_us": float(fit[1]) * 1e6,
        "fitted_GB_per_s": float(1 / fit[2]) / 1e9 if fit[2] > 0 else None,
        "largest_error_percent": float(errors.max()) * 100,
        "points": len(sizes),
    }
