# SPDX-License-Identifier: Apache-2.0
"""What a spec's axes and dtypes do not say: relations between sizes, and what CPU tensors may hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pagedserve.errors import InvalidInput
from pagedserve.ops.check import element_type
from pagedserve.ops.weight import Weight
from pagedserve.specs.plan_layout import MAX_BLOCKS, PlanLayout
from pagedserve.specs.spec import ITEM_BYTES, QUANTISED, OpSpec

MAX_HEAD_DIM = 256
MAX_KV_LEN = 2**31 - 256  # kernels count whole splits of 256 tokens in 32 bits
Named = Mapping[str, Any]


def check_sizes(op: str, named: Named, sizes: Mapping[str, int], scalars: Mapping[str, Any]) -> None:
    """Relations between sizes and options; reads no tensor, so it holds while tracing."""
    rule = SIZE_RULES.get(op)
    if rule is not None:
        rule(op, named, {**sizes, **scalars})


def check_values(op: str, named: Named, sizes: Mapping[str, int], device: str) -> None:
    """What index and parameter tensors hold, where they are on the CPU: elsewhere a look would wait for the device."""
    rule = VALUE_RULES.get(op)
    if rule is not None and device == "cpu":
        rule(op, named, sizes)


# Sizes


def _attention_sizes(op: str, tensors: Named, sizes: Mapping[str, Any]) -> None:
    head_dim, num_q_heads, num_kv_heads = sizes["head_dim"], sizes["num_q_heads"], sizes["num_kv_heads"]
    if head_dim % 8 or not 8 <= head_dim <= MAX_HEAD_DIM:
        raise InvalidInput(f"{op}: head_dim is {head_dim}; supported: multiples of 8 up to {MAX_HEAD_DIM}")
    if num_kv_heads < 1 or num_q_heads % num_kv_heads:
        raise InvalidInput(
            f"{op}: num_q_heads is {num_q_heads}, num_kv_heads {num_kv_heads}; each key head serves an equal group "
            f"of query heads, so num_q_heads must be a multiple of num_kv_heads"
        )
    _page_size(op, sizes)
    _scales(op, tensors)
    if tensors.get("workspace") is not None:
        _workspace(op, tensors["workspace"], sizes)
    if sizes["soft_cap"] < 0:
        raise InvalidInput(f"{op}: soft_cap is {sizes['soft_cap']}; give a cap above 0, or 0 for none")


def _append_sizes(op: str, tensors: Named, sizes: Mapping[str, Any]) -> None:
    _page_size(op, sizes)
    _scales(op, tensors)


def _page_size(op: str, sizes: Mapping[str, Any]) -> None:
    size = sizes["page_size"]
    if not 1 <= size < 2**31:
        why = "a page holds at least one token" if size < 1 else f"supported: up to {2**31 - 1}"
        raise InvalidInput(f"{op}: page_size (axis 1 of k_pages) is {size}; {why}")


def _scales(op: str, tensors: Named) -> None:
    quantised = tensors["k_pages"].dtype in (torch.int8, torch.float8_e4m3fn, torch.uint8)
    for name in ("k_scales", "v_scales"):
        if quantised and tensors[name] is None:
            raise InvalidInput(
                f"{op}: pages are {tensors['k_pages'].dtype}, but {name} is None; "
                f"give float32 scales [num_pages, page_size, num_kv_heads]"
            )
        if not quantised and tensors[name] is not None:
            raise InvalidInput(
                f"{op}: {name} is given, but pages are {tensors['k_pages'].dtype}; only {', '.join(QUANTISED)} "
                f"pages have scales: leave it out"
            )


def _copy_sizes(op: str, tensors: Named, sizes: Mapping[str, Any]) -> None:
    src, dst = tensors["src"], tensors["dst"]
    if src.shape[1:] != dst.shape[1:]:
        raise InvalidInput(
            f"{op}: a page of src is {list(src.shape[1:])}, of dst {list(dst.shape[1:])}; pages must be alike"
        )


def _rope_append_sizes(op: str, tensors: Named, sizes: Mapping[str, Any]) -> None:
    _append_sizes(op, tensors, sizes)
    _rope_sizes(op, tensors, sizes)
    _eps(op, sizes)


def _eps(op: str, sizes: Mapping[str, Any]) -> None:
    if sizes["eps"] < 0:
        raise InvalidInput(f"{op}: eps is {sizes['eps']}; give a small number, 0 or above")


def _norm_sizes(op: str, tensors: Named, sizes: Mapping[str, Any]) -> None:
    if tensors["residual"] is not None and sizes["num_heads"] != 1:
        raise InvalidInput(
            f"{op}: a residual is given with num_heads {sizes['num_heads']}; it goes with x [num_tokens, hidden]"
        )
    _eps(op, sizes)


def _rope_sizes(op: str, tensors: Named, sizes: Mapping[str, Any]) -> None:
    rotary_dim, head_dim = sizes["rotary_dim"], sizes["head_dim"]
    if rotary_dim % 2 or rotary_dim > head_dim:
        raise InvalidInput(
            f"{op}: rotary_dim (axis 1 of cos_sin) is {rotary_dim}; it must be even and at most head_dim {head_dim}"
        )


def _soft_cap_sizes(op: str, tensors: Named, sizes: Mapping[str, Any]) -> None:
    if sizes["cap"] <= 0:
        raise InvalidInput(f"{op}: cap is {sizes['cap']}; give a number above 0")


def _plan_sizes(op: str, tensors: Named, sizes: Mapping[str, Any]) -> None:
    for name in ("num_q_heads", "num_kv_heads", "head_dim", "q_len"):
        if sizes[name] < 1:
            raise InvalidInput(f"{op}: {name} is {sizes[name]}; give a whole number, 1 or above")
    if sizes["num_q_heads"] % sizes["num_kv_heads"]:
        raise InvalidInput(
            f"{op}: num_q_heads is {sizes['num_q_heads']}, num_kv_heads {sizes['num_kv_heads']}; num_q_heads must be a "
            f"multiple of num_kv_heads"
        )
    if not 0 <= sizes["num_blocks"] <= MAX_BLOCKS:
        raise InvalidInput(f"{op}: num_blocks is {sizes['num_blocks']}; give 1 to {MAX_BLOCKS}, or None")
    _workspace(op, tensors["workspace"], sizes)


def _workspace(op: str, workspace: Tensor, sizes: Mapping[str, Any]) -> None:
    """Room for a plan. With room for no partial, sequences stay whole: slow, but legal."""
    num_strands = sizes["num_seqs"] * sizes["num_q_heads"] * sizes["q_len"]
    if num_strands > 2**31 - 1:
        raise InvalidInput(f"{op}: num_seqs * num_q_heads * q_len is {num_strands}; supported: up to {2**31 - 1}")
    names = ("num_seqs", "num_q_heads", "num_kv_heads", "head_dim", "q_len")
    needed = PlanLayout.of(*(sizes[name] for name in names)).partials
    if sizes["workspace_bytes"] < needed:
        raise InvalidInput(
            f"{op}: workspace has {sizes['workspace_bytes']} bytes; a plan of "
            f"{', '.join(f'{name} {sizes[name]}' for name in names)} takes at least {needed}: make it as large as "
            f"ops.decode_workspace_bytes says"
        )


def _merge_sizes(op: str, tensors: Named, sizes: Mapping[str, Any]) -> None:
    if sizes["num_states"] < 1:
        raise InvalidInput(f"{op}: num_states (axis 0 of o) is 0; give at least one state")


def _sample_sizes(op: str, tensors: Named, sizes: Mapping[str, Any]) -> None:
    if sizes["vocab_size"] < 1:
        raise InvalidInput(f"{op}: vocab_size (axis 1 of logits) is 0; there is nothing to choose from")


SIZE_RULES: dict[str, Callable[[str, Named, Mapping[str, Any]], None]] = {
    "paged_decode": _attention_sizes,
    "paged_prefill": _attention_sizes,
    "merge_states": _merge_sizes,
    "plan_decode": _plan_sizes,
    "append_kv": _append_sizes,
    "rope_append_kv": _rope_append_sizes,
    "copy_pages": _copy_sizes,
    "rms_norm": _norm_sizes,
    "rope": _rope_sizes,
    "soft_cap": _soft_cap_sizes,
    "sample": _sample_sizes,
}

# Values. Tensors are read through numpy: a look at a small one takes a microsecond there.


def _within(op: str, what: str, ids: Tensor, lowest: int, count: int, of: str) -> None:
    """Ids lowest .. count - 1."""
    if ids.numel() == 0:
        return
    array = ids.numpy()
    low, high = int(array.min()), int(array.max())
    if low < lowest or high >= count:
        bad = low if low < lowest else high
        raise InvalidInput(f"{op}: {what} holds {bad}; it must be {lowest} to {count - 1}, {of} being {count}")


def _decode_values(op: str, tensors: Named, sizes: Mapping[str, int]) -> None:
    _page_ids(op, tensors, sizes, None)


def _prefill_values(op: str, tensors: Named, sizes: Mapping[str, int]) -> None:
    starts = tensors["q_starts"].numpy()
    if starts[0] < 0 or (starts[1:] < starts[:-1]).any() or starts[-1] > sizes["num_tokens"]:
        raise InvalidInput(
            f"{op}: q_starts is {starts[:9].tolist()}{'...' if len(starts) > 9 else ''}; it must rise from 0 or above "
            f"to at most num_tokens {sizes['num_tokens']} and never fall"
        )
    _page_ids(op, tensors, sizes, starts[1:] > starts[:-1])


def _page_ids(op: str, tensors: Named, sizes: Mapping[str, int], takes_part: Any) -> None:
    """Pages below a sequence's length must be in the pool; those behind it may be anything."""
    lens, table = tensors["kv_lens"].numpy(), tensors["page_table"].numpy()
    if takes_part is not None:
        lens = lens * takes_part
    longest = int(lens.max()) if lens.size else 0
    if longest <= 0:
        return
    page_size, num_pages, max_pages = sizes["page_size"], sizes["num_pages"], sizes["max_pages"]
    if longest > max_pages * page_size:
        seq = int(lens.argmax())
        raise InvalidInput(
            f"{op}: kv_lens[{seq}] is {int(lens[seq])}, but a row of page_table holds max_pages {max_pages} pages of "
            f"page_size {page_size}, {max_pages * page_size} tokens; widen page_table"
        )
    if longest > MAX_KV_LEN:
        raise InvalidInput(f"{op}: kv_lens[{int(lens.argmax())}] is {longest}; supported: up to {MAX_KV_LEN} tokens")
    bad = table.view(np.uint32) >= num_pages  # negative ones are large then
    if not bad.any():
        return
    bad &= np.arange(max_pages) * page_size < lens[:, None]
    if bad.any():
        seq, page = divmod(int(bad.argmax()), max_pages)
        raise InvalidInput(
            f"{op}: page_table[{seq}, {page}] is {int(table[seq, page])} and kv_lens[{seq}] is {int(lens[seq])}, which "
            f"needs that page; the pool has num_pages {num_pages}"
        )


def _append_values(op: str, tensors: Named, sizes: Mapping[str, int]) -> None:
    slots = tensors["slot_mapping"].numpy()
    num_slots = sizes["num_pages"] * sizes["page_size"]
    if slots.size and int(slots.max()) >= num_slots:
        raise InvalidInput(
            f"{op}: slot_mapping holds {int(slots.max())}; the pool has num_pages {sizes['num_pages']} of page_size "
            f"{sizes['page_size']}, slots up to {num_slots - 1}"
        )


def _copy_values(op: str, tensors: Named, sizes: Mapping[str, int]) -> None:
    _within(op, "src_pages", tensors["src_pages"], 0, sizes["num_src_pages"], "num_src_pages")
    _within(op, "dst_pages", tensors["dst_pages"], 0, sizes["num_dst_pages"], "num_dst_pages")


def _rope_values(op: str, tensors: Named, sizes: Mapping[str, int]) -> None:
    _within(op, "positions", tensors["positions"], 0, sizes["max_position"], "max_position")


def _rope_append_values(op: str, tensors: Named, sizes: Mapping[str, int]) -> None:
    _append_values(op, tensors, sizes)
    _rope_values(op, tensors, sizes)


def _embed_values(op: str, tensors: Named, sizes: Mapping[str, int]) -> None:
    _within(op, "token_ids", tensors["token_ids"], 0, sizes["vocab_size"], "vocab_size")


def _linear_values(op: str, tensors: Named, sizes: Mapping[str, int]) -> None:
    _apart(op, tensors)


def _apart(op: str, tensors: Named) -> None:
    """Rows of out are written while rows of x are still to be read."""
    x, out = tensors["x"], tensors["out"]
    if out.data_ptr() == x.data_ptr() and out.numel() and x.numel():
        raise InvalidInput(
            f"{op}: out begins where x does, and x is read after out is written; give out memory of its own"
        )


def _take_values(op: str, tensors: Named, sizes: Mapping[str, int]) -> None:
    _apart(op, tensors)
    _within(op, "rows", tensors["rows"], 0, sizes["num_tokens"], "num_tokens")


FINITE = 3.4e38
# lowest, highest, what to give
SAMPLE_RANGES = {
    "temperature": (0.0, FINITE, "0 (greedy) or a finite number above"),
    "top_p": (1e-30, 1.0, "above 0 and at most 1 (off)"),
    "min_p": (0.0, 1.0, "0 (off) to 1"),
    "repetition": (1e-30, FINITE, "finite and above 0 (1: off)"),
    "presence": (-FINITE, FINITE, "finite (0: off)"),
    "frequency": (-FINITE, FINITE, "finite (0: off)"),
}


def _sample_values(op: str, tensors: Named, sizes: Mapping[str, int]) -> None:
    for name, (lowest, highest, advice) in SAMPLE_RANGES.items():
        values = tensors[name].numpy()
        good = (values >= lowest) & (values <= highest)  # NaN is neither
        if not good.all():
            row = int((~good).argmax())
            raise InvalidInput(f"{op}: {name}[{row}] is {float(values[row])}; give {advice}")
    starts, outputs = tensors["history_starts"].numpy(), tensors["output_starts"].numpy()
    num_history = len(tensors["history"])
    if starts[0] < 0 or starts[-1] > num_history or (outputs < starts[:-1]).any() or (outputs > starts[1:]).any():
        raise InvalidInput(
            f"{op}: history_starts[r] <= output_starts[r] <= history_starts[r + 1] <= {num_history}, the length of "
            f"history, does not hold for every row r"
        )
    _within(op, "history", tensors["history"], 0, sizes["vocab_size"], "vocab_size")


VALUE_RULES: dict[str, Callable[[str, Named, Mapping[str, int]], None]] = {
    "paged_decode": _decode_values,
    "paged_prefill": _prefill_values,
    "append_kv": _append_values,
    "rope_append_kv": _rope_append_values,
    "copy_pages": _copy_values,
    "rope": _rope_values,
    "linear": _linear_values,
    "embed": _embed_values,
    "take_rows": _take_values,
    "sample": _sample_values,
}


def count(spec: OpSpec, named: Named, sizes: Mapping[str, int]) -> dict[str, float]:
    """The counts that a spec's flops and bytes need beyond sizes of axes."""
    counts: dict[str, float] = {}
    for name, operand in named.items():
        if isinstance(operand, Weight):
            counts[f"{name}_nbytes"] = operand.nbytes
        elif operand is not None:
            counts[f"{name}_bytes"] = ITEM_BYTES[element_type(spec, name, operand)]
    if "page_table" in named:
        lens = named["kv_lens"].clamp(min=0).long()
        starts = named.get("q_starts")
        q_lens = torch.full_like(lens, sizes["q_len"]) if starts is None else starts.diff().long()
        counts["num_tokens"] = int(q_lens.sum())
        counts["kv_tokens"] = int(lens[q_lens > 0].sum())
        seeing = torch.minimum(lens, q_lens)  # queries that see a key: lens - seeing + 1 of them, up to lens
        counts["pairs"] = int(((2 * lens - seeing + 1) * seeing // 2).sum())
    if "src_pages" in named:
        counts["page_numel"] = named["src"][0].numel() if len(named["src"]) else 0
    return counts
