# SPDX-License-Identifier: Apache-2.0
"""Turns a spec's case into the arguments of a call: random where it may be read, poison where it must not be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pagedserve.ops.check import DTYPES
from pagedserve.ops.registry import Call, Row
from pagedserve.ops.rope_table import rope_table
from pagedserve.ops.weight import Weight
from pagedserve.specs import SPECS, Case

BAD_PAGES = torch.tensor([-1, 2**31 - 1, -(2**31)], dtype=torch.int32)
Arguments = dict[str, Any]


def cases_for(row: Row) -> Iterator[Case]:
    """The cases of a row's op in dtypes that its backend takes: float32 becomes bfloat16 where it does not take it."""
    spec, device = SPECS[row.op], next(iter(row.requirement.devices), "cpu")
    for case in spec.cases():
        dtypes = {name: case.dtypes.get(name, "float32") for name in spec.dispatch}
        shorter = {name: dtype.replace("float32", "bfloat16") for name, dtype in dtypes.items()}
        for given in (dtypes, shorter):
            if not row.requirement.refusals(Call(row.op, device, tuple(given.values()))):
                yield case if given == dtypes else replace(case, dtypes={**case.dtypes, **given})
                break


def make_inputs(op: str, case: Case, seed: int = 0) -> Arguments:
    """Arguments of `getattr(pagedserve.ops, op)` by name, on the CPU.

    Pages nobody owns, rows past a sequence's length and columns beyond a row's width hold NaN (or codes with NaN
    scales), and page ids past the length are outside the pool: a backend that reads them gives itself away.
    """
    return MAKERS[op](case, torch.Generator().manual_seed(seed))


def _normal(shape: tuple[int, ...], dtype: torch.dtype, random: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=random).to(dtype)


def _strided(shape: tuple[int, ...], dtype: torch.dtype, random: torch.Generator) -> Tensor:
    """Random rows with NaN between them."""
    wide = torch.full((*shape[:-1], shape[-1] + 3), torch.nan, dtype=dtype)
    wide[..., : shape[-1]] = _normal(shape, dtype, random)
    return wide[..., : shape[-1]]


def _dtype(case: Case, name: str) -> torch.dtype:
    return DTYPES[case.dtypes.get(name, "float32")]


def _pages(case: Case, num_pages: int, random: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Keys or values of all pages, and their scales where they are quantised."""
    shape = (num_pages, *(case.sizes[name] for name in ("page_size", "num_kv_heads", "head_dim")))
    dtype = _dtype(case, "k_pages")
    if dtype == torch.uint8:  # int4
        codes = torch.randint(16, (*shape[:3], shape[3] // 2, 2), generator=random)
        codes = codes.clamp(min=1)  # 0 would be -8, which no writer writes
        codes = (codes[..., 0] | codes[..., 1] << 4).to(torch.uint8)
    elif dtype == torch.int8:
        codes = torch.randint(-127, 128, shape, generator=random).to(torch.int8)
    elif dtype == torch.float8_e4m3fn:
        codes = (torch.randn(shape, generator=random) * 100).clamp(-448, 448).to(dtype)
    else:
        return _normal(shape, dtype, random), None
    return codes, torch.rand(shape[:3], generator=random) / 50 + 0.001


def _poison(pages: Tensor, scales: Tensor | None, unread: Tensor) -> None:
    """Fills rows [num_pages, page_size] that nobody may read. Viewed as whole numbers: float8 cannot be filled."""
    if pages.dtype in (torch.int8, torch.float8_e4m3fn, torch.uint8):
        pages.view(torch.int8)[unread] = 127  # NaN, as float8_e4m3fn
    else:
        pages[unread] = torch.nan
    if scales is not None:
        scales[unread] = torch.nan


def _attention(case: Case, random: torch.Generator) -> Arguments:
    sizes, options = case.sizes, dict(case.options)
    page_size, num_q_heads = sizes["page_size"], sizes["num_q_heads"]
    lens = torch.tensor(case.lens, dtype=torch.int32)
    num_pages_of = [-(-max(length, 0) // page_size) for length in case.lens]
    num_pages = sum(num_pages_of) + 2
    ids = torch.randperm(num_pages, generator=random).to(torch.int32)
    table = BAD_PAGES[torch.randint(3, (len(lens), max(num_pages_of) + 2), generator=random)]
    unread = torch.ones(num_pages, page_size, dtype=torch.bool)
    for seq, length in enumerate(case.lens):
        own, ids = ids[: num_pages_of[seq]], ids[num_pages_of[seq] :]
        table[seq, : len(own)] = own
        unread[own.long()] = torch.arange(len(own) * page_size).view(-1, page_size) >= length
    arguments: Arguments = {
        "q": _strided((sum(case.q_lens), num_q_heads, sizes["head_dim"]), _dtype(case, "q"), random),
        "page_table": table,
        "kv_lens": lens,
    }
    for name in ("k", "v"):
        pages, scales = _pages(case, num_pages, random)
        _poison(pages, scales, unread)
        arguments |= {f"{name}_pages": pages} | ({} if scales is None else {f"{name}_scales": scales})
    if options.pop("sinks", False):
        arguments["sinks"] = torch.randn(num_q_heads, generator=random)
    if options.pop("alibi_slopes", False):
        arguments["alibi_slopes"] = torch.rand(num_q_heads, generator=random) / 10
    if options.pop("tree_mask", False):
        q_len = case.q_lens[0]
        mask = torch.rand(len(lens), q_len, q_len, generator=random) < 0.5
        arguments["tree_mask"] = mask | torch.eye(q_len, dtype=torch.bool)
    return arguments | options


def _prefill(case: Case, random: torch.Generator) -> Arguments:
    starts = torch.tensor([0, *case.q_lens], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return _attention(case, random) | {"q_starts": starts}


def _plan(case: Case, random: torch.Generator) -> Arguments:
    return {
        "kv_lens": torch.tensor(case.lens, dtype=torch.int32),
        "workspace": torch.full((case.sizes["workspace_bytes"],), 0xAB, dtype=torch.uint8),
        **case.options,
    }


def _merge(case: Case, random: torch.Generator) -> Arguments:
    shape = tuple(case.sizes[name] for name in ("num_states", "num_tokens", "num_heads", "head_dim"))
    o, lse = _normal(shape, _dtype(case, "o"), random), torch.randn(shape[:3], generator=random) * 5
    empty = torch.rand(shape[:3], generator=random) < 0.2
    o[empty], lse[empty] = torch.nan, -torch.inf
    return {"o": o, "lse": lse}


def _append(case: Case, random: torch.Generator) -> Arguments:
    sizes = case.sizes
    num_tokens, num_slots = sizes["num_tokens"], sizes["num_pages"] * sizes["page_size"]
    slots = torch.randperm(num_slots, generator=random)[:num_tokens]
    slots[: num_tokens // 4] = -1
    shape = (num_tokens, sizes["num_kv_heads"], sizes["head_dim"])
    arguments: Arguments = {"slot_mapping": slots}
    for name in ("k", "v"):
        values = _strided(shape, _dtype(case, "k"), random)
        values[num_tokens // 2 : num_tokens // 2 + 1, 0] = 0  # amax 0
        pages, scales = _pages(case, sizes["num_pages"], random)
        arguments |= {name: values, f"{name}_pages": pages} | ({} if scales is None else {f"{name}_scales": scales})
    return arguments


def _rope_append(case: Case, random: torch.Generator) -> Arguments:
    sizes, options, dtype = case.sizes, dict(case.options), _dtype(case, "q")
    arguments = _append(replace(case, dtypes={**case.dtypes, "k": case.dtypes.get("q", "float32")}), random)
    shape = (sizes["num_tokens"], sizes["num_q_heads"], sizes["head_dim"])
    arguments |= {
        "q": _strided(shape, dtype, random),
        "positions": torch.randint(sizes["max_position"], shape[:1], generator=random, dtype=torch.int32),
        "cos_sin": rope_table(sizes["rotary_dim"], sizes["max_position"]),
    }
    for name in ("q_norm", "k_norm"):
        if options.pop(name, False):
            arguments[name] = torch.rand(sizes["head_dim"], generator=random) + 0.5
    return arguments | options


def _copy(case: Case, random: torch.Generator) -> Arguments:
    sizes = case.sizes
    src, dst = (
        (torch.randn(sizes[name], 4, 2, 8, generator=random) * 50).to(torch.int8).to(_dtype(case, "src"))
        for name in ("num_src_pages", "num_dst_pages")
    )
    dst_pages = torch.randperm(sizes["num_dst_pages"], generator=random)[: sizes["num_copies"]]
    src_pages = torch.randint(sizes["num_src_pages"], (sizes["num_copies"],), generator=random)
    return {"src": src, "dst": dst, "src_pages": src_pages, "dst_pages": dst_pages}


def _norm(case: Case, random: torch.Generator) -> Arguments:
    shape = tuple(case.sizes[name] for name in ("num_tokens", "num_heads", "hidden") if name in case.sizes)
    arguments: Arguments = {
        "x": _strided(shape, _dtype(case, "x"), random),
        "weight": torch.randn(shape[-1], generator=random),
    }
    if case.options.get("residual"):
        arguments["residual"] = _strided(shape, _dtype(case, "x"), random)
    if case.options.get("accumulate"):
        arguments |= {"accumulate": True, "out": _strided(shape, _dtype(case, "x"), random)}
    return arguments


def _rope(case: Case, random: torch.Generator) -> Arguments:
    sizes = case.sizes
    shape = (sizes["num_tokens"], sizes["num_heads"], sizes["head_dim"])
    return {
        "x": _strided(shape, _dtype(case, "x"), random),
        "positions": torch.randint(sizes["max_position"], shape[:1], generator=random, dtype=torch.int32),
        "cos_sin": rope_table(sizes["rotary_dim"], sizes["max_position"]),
        **case.options,
    }


def _act(case: Case, random: torch.Generator) -> Arguments:
    shape = (case.sizes["num_tokens"], 2 * case.sizes["intermediate"])
    return {"gate_up": _strided(shape, _dtype(case, "gate_up"), random)}


def _soft_cap(case: Case, random: torch.Generator) -> Arguments:
    shape = (case.sizes["num_tokens"], case.sizes["hidden"])
    return {"x": _strided(shape, torch.float32, random) * 40, **case.options}


def _linear(case: Case, random: torch.Generator) -> Arguments:
    num_tokens, in_features, out_features = (case.sizes[n] for n in ("num_tokens", "in_features", "out_features"))
    dense = torch.randn(out_features, in_features, generator=random)
    arguments: Arguments = {
        "x": _strided((num_tokens, in_features), torch.float32, random),
        "weight": Weight.from_dense(dense, case.dtypes["weight"]),
    }
    if case.options.get("bias"):
        arguments["bias"] = torch.randn(out_features, generator=random)
    if case.options.get("accumulate"):
        arguments |= {"accumulate": True, "out": _strided((num_tokens, out_features), torch.float32, random)}
    return arguments


def _embed(case: Case, random: torch.Generator) -> Arguments:
    dense = torch.randn(case.sizes["vocab_size"], case.sizes["hidden"], generator=random)
    shape = (case.sizes["num_tokens"],)
    return {
        "token_ids": torch.randint(case.sizes["vocab_size"], shape, generator=random, dtype=torch.int32),
        "weight": Weight.from_dense(dense, case.dtypes["weight"]),
        **case.options,
    }


def _take(case: Case, random: torch.Generator) -> Arguments:
    sizes = case.sizes
    return {
        "x": _strided((sizes["num_tokens"], sizes["hidden"]), torch.float32, random),
        "rows": torch.randint(sizes["num_tokens"], (sizes["num_rows"],), generator=random, dtype=torch.int32),
    }


def _sample(case: Case, random: torch.Generator) -> Arguments:
    num_rows, vocab_size = case.sizes["num_rows"], case.sizes["vocab_size"]
    options: Arguments = dict(case.options)
    floats = {"temperature": 0.8, "top_p": 1, "min_p": 0, "repetition": 1, "presence": 0.1, "frequency": 0.1}
    lens = torch.arange(num_rows, dtype=torch.int32)  # row r has r tokens, the last of them output
    starts = torch.cat((lens[:1], lens.cumsum(0, dtype=torch.int32)))
    return {
        "logits": _strided((num_rows, vocab_size), torch.float32, random),
        **{n: torch.full((num_rows,), options.get(n, value), dtype=torch.float32) for n, value in floats.items()},
        "top_k": torch.full((num_rows,), options.get("top_k", 0), dtype=torch.int32),
        "seeds": torch.randint(2**62, (num_rows,), generator=random),
        "offsets": torch.randint(1000, (num_rows,), generator=random),
        "history": torch.randint(vocab_size, (int(starts[-1]),), generator=random, dtype=torch.int32),
        "history_starts": starts,
        "output_starts": (starts[1:] - 1).clamp(min=0),
        "num_top": case.sizes["num_top"],
    }


MAKERS: dict[str, Callable[[Case, torch.Generator], Arguments]] = {
    "paged_decode": _attention,
    "paged_prefill": _prefill,
    "merge_states": _merge,
    "plan_decode": _plan,
    "append_kv": _append,
    "rope_append_kv": _rope_append,
    "copy_pages": _copy,
    "rms_norm": _norm,
    "rope": _rope,
    "silu_mul": _act,
    "gelu_mul": _act,
    "soft_cap": _soft_cap,
    "linear": _linear,
    "embed": _embed,
    "take_rows": _take,
    "sample": _sample,
}
