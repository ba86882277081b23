# SPDX-License-Identifier: Apache-2.0
"""What must reject a wrong kernel. Each check runs an op of backend "cuda-emulated", and raises where it is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.gpu import intrinsics
from pagedserve import ops
from pagedserve.emulate import Run, current
from pagedserve.ops.agreement import copied, disagreement, results
from pagedserve.ops.cases import make_inputs
from pagedserve.specs import SPECS, Case
from tests.ops.agreement import check_backend

BACKEND = "cuda-emulated"


@dataclass(frozen=True)
class Check:
    """One way to reject a kernel.

    Attributes:
        body: raises where the kernels of the current session are wrong.
        file: the launch file whose kernels it judges; "": none that g++ compiles.
        run: how the session runs them.
    """

    body: Callable[[], None]
    file: str = ""
    run: Run = field(default_factory=Run)


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
    planned([300, 17, 0, 129] + [50] * 300, BACKEND)


# ---- paged_decode ----

HEADS = {"num_q_heads": 4, "num_kv_heads": 2, "head_dim": 64}


def decode_case(
    lens: tuple[int, ...], page_size: int = 7, q_len: int = 1, kv: str = "bfloat16", **options: Any
) -> Case:
    """No length is a whole number of pages: behind each there is a row of NaN."""
    options |= {"q_len": q_len} if q_len > 1 else {}
    dtypes = {"q": "bfloat16", "k_pages": kv}
    name = f"{kv} pages of {page_size}, kv_lens {lens}, {options}"
    return Case(name, HEADS | {"page_size": page_size}, dtypes, options, lens, (q_len,) * len(lens))


def decode_inputs(case: Case, num_blocks: int = 8) -> dict[str, Any]:
    """A call of the case, with the host's plan for so many blocks."""
    inputs = make_inputs("paged_decode", case)
    plan = HEADS | {name: value for name, value in case.options.items() if name in ("q_len", "window")}
    sizes = HEADS | {"q_len": case.q_lens[0]}
    size = ops.decode_workspace_bytes(len(case.lens), **sizes, max_kv_tokens=sum(case.lens))
    inputs["workspace"] = torch.full((size,), 0xAB, dtype=torch.uint8)
    ops.plan_decode(inputs["kv_lens"], inputs["workspace"], **plan, num_blocks=num_blocks, backend="cpu")
    return inputs


def decode(*cases: Case) -> None:
    for case in cases:
        inputs = decode_inputs(case)
        got = results("paged_decode", copied(inputs), BACKEND)
        del inputs["workspace"], got["workspace"]  # in which the reference leaves nothing
        wrong = disagreement("paged_decode", inputs, got)
        assert wrong is None, f"{case.id}: {wrong}"


def decode_values() -> None:
    """Lengths around tiles and splits, an empty row, a window, queries beside each other."""
    decode(
        decode_case((300, 17, 0, 129, 521)),
        decode_case((71, 300), page_size=48, window=33),
        decode_case((38, 261), q_len=2),
    )


def decode_codes() -> None:
    decode(decode_case((271, 18), kv="int8"))


def decode_pieces() -> None:
    """A strand of three splits in three blocks, one of a single split, an empty one."""
    decode(decode_case((701, 17, 0)))


def decode_groups() -> None:
    """Strands of two groups, whose first or both are cut, and one of a single split."""
    decode(decode_case((4500, 17)))


def same_bits(lens: tuple[int, ...], blocks: tuple[int, ...], unit: int) -> None:
    """The same bits however many blocks share the work, and the next time in the same workspace.

    With queries of 0 all keys count alike, and the values of the first two units of tokens cancel: added in another
    order they swallow the others.
    """
    found = {}
    for num_blocks in blocks:
        inputs = decode_inputs(decode_case(lens), num_blocks)
        inputs["q"].zero_()
        tokens = torch.arange(2 * unit)
        for table in inputs["page_table"]:
            pages = table[tokens // 7].long()
            inputs["v_pages"][pages, tokens % 7] = (65536.0 - 131072 * (tokens // unit)).bfloat16()[:, None, None]
        for turn in ("first", "second"):
            o, lse = ops.paged_decode(**inputs, return_lse=True, backend=BACKEND)
            found[f"{num_blocks} blocks, {turn} launch"] = torch.cat([o.flatten().float(), lse.flatten()])
    want, *others = found.items()
    for name, bits in others:
        assert torch.equal(bits, want[1]), f"{name}: other bits than {want[0]}"


def decode_bits() -> None:
    same_bits((901, 1300), (1, 3, 7, 16), 256)


def decode_bits_of_groups() -> None:
    """Three groups: whole, cut in the first one, cut everywhere."""
    same_bits((8500,), (1, 3, 5, 24), 4096)


def decode_hides() -> None:
    """A key that the first of two queries does not see is NaN: only the second may show it."""
    inputs = decode_inputs(decode_case((38,), q_len=2))
    page, row = inputs["page_table"][0, 37 // 7], 37 % 7
    inputs["k_pages"][page, row] = torch.nan
    o = ops.paged_decode(**inputs, backend=BACKEND)
    assert o[1].isnan().all(), "a NaN among the keys that a query sees does not show"
    assert not o[0].isnan().any(), "a NaN shows in a query that does not see it"


def decode_refuses_stale() -> None:
    """Planned for 300 tokens, run with 20: NaN, and the other rows as they should be."""
    inputs = decode_inputs(decode_case((300, 17)))
    inputs["kv_lens"] = torch.tensor([20, 17], dtype=torch.int32)
    o, lse = ops.paged_decode(**inputs, return_lse=True, backend=BACKEND)
    assert o[0].isnan().all(), "a row that was planned for another length is not NaN"
    assert lse[0].isnan().all(), "nor is its lse"
    assert not o[1].isnan().any(), "a row that was planned as it is is NaN"


def decode_stale_in_bounds() -> None:
    """Planned for 3000 tokens, run with 20 in a page table that ends there, and with ids that are no pages."""
    inputs = decode_inputs(decode_case((3000, 17)))
    inputs["kv_lens"] = torch.tensor([20, 17], dtype=torch.int32)
    inputs["page_table"] = inputs["page_table"][:, :6].clone()
    inputs["page_table"][0, 3:] = 1 << 24
    o = ops.paged_decode(**inputs, backend=BACKEND)
    assert o[0].isnan().all(), "a row that was planned for another length is not NaN"


def decode_far() -> None:
    """Two pages whose offsets differ by 2^31 elements: memory that is never touched costs none."""
    inputs = decode_inputs(decode_case((13,)))
    want = ops.paged_decode(**inputs, backend=BACKEND)
    near = inputs["page_table"][0, :2].tolist()
    stride = 2**31 + 64
    for name in ("k_pages", "v_pages"):
        pages = inputs[name]
        pool = torch.empty(stride + pages[0].numel(), dtype=pages.dtype)
        inputs[name] = pool.as_strided((2, *pages.shape[1:]), (stride, *pages.stride()[1:]))
        inputs[name].copy_(pages[near])
    inputs["page_table"][0, :2] = torch.tensor([0, 1])
    assert torch.equal(ops.paged_decode(**inputs, backend=BACKEND), want), "a page beyond 4 GiB is not what it holds"


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


CHECKS = {
    "append values": Check(append_values, "append_kv"),
    "append stays in bounds": Check(append_in_bounds, "append_kv", Run(build="bounds")),
    "append beyond 4 GiB": Check(append_far, "append_kv"),
    "copy values": Check(copy_values, "copy_pages"),
    "copy stays in bounds": Check(copy_in_bounds, "copy_pages", Run(build="bounds")),
    "plan equals the host's": Check(plan_equals_hosts, "plan_decode"),
    "plan races": Check(plan_races, "plan_decode", Run(build="races")),
    "decode values": Check(decode_values, "paged_decode_bf16"),
    "decode of codes": Check(decode_codes, "paged_decode_i8"),
    "decode races": Check(decode_pieces, "paged_decode_bf16", Run(build="races")),
    "decode races of groups": Check(decode_groups, "paged_decode_bf16", Run(build="races")),
    "decode stays in bounds": Check(decode_pieces, "paged_decode_bf16", Run(build="bounds")),
    "decode bits": Check(decode_bits, "paged_decode_bf16"),
    "decode bits of groups": Check(decode_bits_of_groups, "paged_decode_bf16"),
    "decode hides what is not seen": Check(decode_hides, "paged_decode_bf16"),
    "decode refuses a stale plan": Check(decode_refuses_stale, "paged_decode_bf16"),
    "a stale plan stays in bounds": Check(decode_stale_in_bounds, "paged_decode_bf16", Run(build="bounds")),
    "decode beyond 4 GiB": Check(decode_far, "paged_decode_bf16"),
    "words as nvcc made them": Check(words_as_compiled),
}
