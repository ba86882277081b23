# SPDX-License-Identifier: Apache-2.0
"""Ops on the device against the float64 reference, and a decode in a graph that is replayed with other lengths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bench.cases.attention import AttentionShape
from bench.device import placed
from bench.gpu.place import Place, verdict
from bench.report import Row
from pagedserve import ops
from pagedserve.errors import PagedServeError
from pagedserve.ops.agreement import copied, disagreement, results
from pagedserve.ops.cases import cases_for, make_inputs
from pagedserve.ops.registry import TABLE

SOAK_SHAPE = "48x3000-h32/8-d128-p16-bf16"
DRY_SOAK_SHAPE = "4x70-h4/2-d16-p4-bf16"
SOAK_REPLAYS, DRY_REPLAYS = 400, 3


def sweep(place: Place, done: set[str]) -> Iterator[Row]:
    """Every case of every op that the backend has, several seeds each; in a dry run the first case of each."""
    for row in (row for row in TABLE if row.backend == place.backend):
        op, cases = row.op, list(cases_for(row))
        for case in cases[:1] if place.is_dry else cases:
            for seed in range(1 if place.is_dry else 4):
                name = f"{op} {case.id} seed {seed}"
                if name not in done:
                    yield verdict(name, failure(place, op, make_inputs(op, case, seed)))


def failure(place: Place, op: str, arguments: dict[str, Any]) -> Exception | None:
    """What the backend gets wrong on a call, or None. An error of the device is not caught: nothing works after it."""
    try:
        got = results(op, placed(copied(arguments), place.device), place.backend)
        place.synchronise()
        wrong = disagreement(op, arguments, {name: tensor.cpu() for name, tensor in got.items()})
    except PagedServeError as error:
        return error
    return AssertionError(wrong) if wrong else None


class Soak:
    """A plan and a decode over one set of buffers, in a graph where there is a device."""

    def __init__(self, place: Place, shape: AttentionShape) -> None:
        inputs = placed(shape.inputs(prefill=False), place.device)
        self.place, self.out = place, inputs.pop("out")
        self.lse = torch.empty(self.out.shape[:2], device=place.device)
        self.inputs, self.shape = inputs, shape
        heads = (shape.num_q_heads, shape.num_kv_heads, shape.head_dim)
        tokens = shape.num_seqs * shape.kv_len
        size = ops.decode_workspace_bytes(shape.num_seqs, *heads, max_kv_tokens=tokens)
        self.workspace = torch.full((size,), 0xAB, dtype=torch.uint8, device=place.device)
        self.replay = self.step if place.is_dry else self.captured().replay

    def step(self) -> None:
        shape = self.shape
        ops.plan_decode(
            self.inputs["kv_lens"],
            self.workspace,
            num_q_heads=shape.num_q_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            backend=self.place.backend,
        )
        call = {"workspace": self.workspace, "out": self.out, "lse": self.lse, "backend": self.place.backend}
        ops.paged_decode(**self.inputs, **call)

    def captured(self) -> torch.cuda.CUDAGraph:
        self.step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        return graph

    def change(self, random: torch.Generator) -> None:
        """Other lengths, empty and full rows among them, and pages in another order; ids behind a length are poison."""
        shape, inputs = self.shape, self.inputs
        lens = torch.randint(-1, shape.kv_len + 1, (shape.num_seqs,), generator=random, dtype=torch.int32)
        lens[torch.randint(shape.num_seqs, (1,), generator=random)] = shape.kv_len
        num_pages = inputs["k_pages"].shape[0]
        table = torch.randperm(num_pages, generator=random).to(torch.int32).view(shape.num_seqs, -1)
        behind = torch.arange(table.shape[1])[None] * shape.page_size >= lens[:, None]
        inputs["kv_lens"].copy_(lens)
        inputs["page_table"].copy_(table.masked_fill(behind, 2**31 - 1))
        self.out.fill_(torch.nan)
        self.lse.fill_(torch.nan)

    def compared(self) -> None:
        """Against the reference, and by bits against a call outside of the graph that plans for itself."""
        self.place.synchronise()
        arguments = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in self.inputs.items()}
        wrong = disagreement("paged_decode", arguments, {"result 0": self.out.cpu(), "result 1": self.lse.cpu()})
        assert wrong is None, wrong
        again = ops.paged_decode(**self.inputs, backend=self.place.backend)
        assert torch.equal(again.cpu(), self.out.cpu()), "a call outside of the graph gives other bits"


def soak(place: Place, done: set[str]) -> Iterator[Row]:
    """Replays with other lengths each time; all compared by bits with a second replay, some with the reference."""
    name = DRY_SOAK_SHAPE if place.is_dry else SOAK_SHAPE
    if name in done:
        return
    why = place.lacks("plan_decode", "paged_decode")
    if why:
        yield {"case": name, "why": why}
        return
    runner, random = Soak(place, AttentionShape.parse(name)), torch.Generator().manual_seed(7)
    replays = DRY_REPLAYS if place.is_dry else SOAK_REPLAYS
    error: Exception | None = None
    count = 0
    for count in range(1, replays + 1):
        runner.change(random)
        runner.replay()
        first = runner.out.clone()
        runner.replay()
        try:
            assert torch.equal(first.view(torch.int16), runner.out.view(torch.int16)), (
                f"replay {count} changes its bits"
            )
            if count % 20 == 1 or place.is_dry:
                runner.compared()
        except AssertionError as found:
            error = found
            break
    yield verdict(name, error, replays=count)
