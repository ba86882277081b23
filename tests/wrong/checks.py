# SPDX-License-Identifier: Apache-2.0
"""What must reject a wrong kernel. Each check runs an op of backend "cuda-emulated", and raises where it is wrong."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from bench.gpu import intrinsics
from pagedserve import ops
from pagedserve.emulate import Run, Session, current, session
from pagedserve.ops.cases import make_inputs
from pagedserve.specs import SPECS
from tests.ops.agreement import check_backend

BACKEND = "cuda-emulated"


def values(op: str, **dtypes: tuple[str, ...]) -> None:
    """The spec's cases whose tensors have these dtypes, against the float64 reference."""
    chosen = [case for case in SPECS[op].cases() if all(case.dtypes.get(n) in d for n, d in dtypes.items())]
    assert chosen, f"{op} has no case of {dtypes}"
    for case in chosen:
        check_backend(op, case, make_inputs(op, case), BACKEND)


# ---- append_kv, copy_pages ----


def append_values() -> None:
    """The spec's cases, then a row with a NaN and one with an infinity, in codes with a scale."""
    values("append_kv", k=("bfloat16",), k_pages=("bfloat16", "int8", "int4"))
    k = torch.randn(3, 2, 16).bfloat16()
    k[0, 0, 3], k[1, 1, 15] = torch.nan, torch.inf
    pages, scales = torch.zeros(2, 4, 2, 16, dtype=torch.int8), torch.zeros(2, 4, 2)
    others, other_scales = torch.zeros_like(pages), torch.zeros_like(scales)
    slots = torch.tensor([1, 6, 2])
    ops.append_kv(k, k, pages, others, slots, k_scales=scales, v_scales=other_scales, backend=BACKEND)
    assert scales[0, 1, 0].isnan(), "a row with a NaN has a scale"
    assert scales[1, 2, 1].isnan(), "a row with an infinity has a scale"
    assert torch.equal(scales.isnan(), other_scales.isnan())
    assert int(scales.isnan().sum()) == 2


def append_in_bounds() -> None:
    """Slots of -1, in a pool that begins where its memory begins."""
    k = torch.randn(4, 2, 16).bfloat16()
    pages, others = (torch.zeros(2, 4, 2, 16, dtype=torch.bfloat16) for _ in range(2))
    with session_like(Run(build="bounds")):
        ops.append_kv(k, k, pages, others, torch.tensor([-1, 0, -1, 7]), backend=BACKEND)
    assert torch.equal(pages[0, 0], k[1])


def append_far() -> None:
    """A page that begins at 4 GiB: memory that is never touched costs none."""
    num_pages = (4 << 30) // (4 * 2 * 16) + 1
    k = torch.randn(1, 2, 16).bfloat16()
    pages, others = (torch.empty(num_pages, 4, 2, 16, dtype=torch.int8) for _ in range(2))
    scales, other_scales = (torch.empty(num_pages, 4, 2) for _ in range(2))
    last = num_pages - 1
    pages[last, 3] = others[last, 3] = 0
    slots = torch.tensor([last * 4 + 3])
    ops.append_kv(k, k, pages, others, slots, k_scales=scales, v_scales=other_scales, backend=BACKEND)
    for codes, scale in ((pages, scales), (others, other_scales)):
        written = codes[last, 3].float() * scale[last, 3][:, None]
        assert (written - k[0].float()).abs().max() < 0.05, "what was appended does not stand on the last page"


def copy_values() -> None:
    """The spec's cases, then a chain in which a page is written and then copied on."""
    values("copy_pages")
    pages = torch.arange(6 * 32, dtype=torch.float32).view(6, 2, 16)
    given = pages.clone()
    ops.copy_pages(pages, pages, torch.tensor([0, 1]), torch.tensor([1, 2]), backend=BACKEND)
    assert torch.equal(pages[2], given[0]), "a page that was written is not copied on as it is then"


def copy_in_bounds() -> None:
    pages = torch.arange(4 * 32, dtype=torch.float32).view(4, 2, 16)
    with session_like(Run(build="bounds")):
        ops.copy_pages(pages, pages, torch.tensor([0, 1, 0]), torch.tensor([2, 3, 2]), backend=BACKEND)


# ---- plan_decode ----

LENGTHS = ([300, 17, 0, 129], [-1], [], [4096] + [64] * 40, list(range(0, 6000, 13)))


def planned(lens: list[int], backend: str) -> Tensor:
    kv_lens = torch.tensor(lens, dtype=torch.int32)
    size = ops.decode_workspace_bytes(len(lens), 8, 2, 64, max_kv_tokens=sum(max(n, 0) for n in lens))
    workspace = torch.full((size,), 0xAB, dtype=torch.uint8)
    ops.plan_decode(kv_lens, workspace, num_q_heads=8, num_kv_heads=2, head_dim=64, num_blocks=24, backend=backend)
    return workspace


def plan_equals_hosts() -> None:
    """Byte for byte, in a workspace full of a step before's."""
    for lens in LENGTHS:
        assert torch.equal(planned(lens, BACKEND), planned(lens, "cpu")), f"the plan of {lens[:5]} is not the host's"


def plan_races() -> None:
    with session_like(Run(build="races")):
        planned([300, 17, 0, 129] + [50] * 300, BACKEND)


# ---- instructions ----


def words_as_compiled() -> None:
    """Matrix loads, products and copies: what nvcc emitted of these sources against what the right ones mean."""
    run, oracle = intrinsics.translated("sm_90a", current().sources["intrinsics"]), intrinsics.emulated()
    for which, word in enumerate(intrinsics.WORDS):
        if not word.name.startswith(("load_matrices", "mma", "copy_async")):
            continue
        expected, call = intrinsics.Call.make(which), intrinsics.Call.make(which)
        oracle(expected)
        run(call)
        wrong, _ = intrinsics.differences(word, call.out, expected.out)
        assert not wrong, f"{word.name}: {wrong} results are not what the word means"


def session_like(run: Run, ptx: str = "") -> AbstractContextManager[Session]:
    """A session of these checks' sources, run otherwise."""
    here = current()
    return session(run, sources=here.sources, defines=here.defines, ptx=ptx)


CHECKS: dict[str, Callable[[], None]] = {
    "append values": append_values,
    "append stays in bounds": append_in_bounds,
    "append beyond 4 GiB": append_far,
    "copy values": copy_values,
    "copy stays in bounds": copy_in_bounds,
    "plan equals the host's": plan_equals_hosts,
    "plan races": plan_races,
    "words as nvcc made them": words_as_compiled,
}
