# SPDX-License-Identifier: Apache-2.0
"""`pagedserve explain OP`: which backend runs a call of these sizes, why each other does not, and what it costs."""

from __future__ import annotations

import argparse
from typing import Any

from pagedserve.cli.console import Console
from pagedserve.errors import InvalidInput
from pagedserve.specs import SPECS
from pagedserve.specs.plan_layout import workspace_bytes
from pagedserve.specs.spec import PACKED, QUANTISED

# A step of 8 sequences of an 8B Llama. Sizes that are not given follow from these.
SIZES = {
    **{"num_seqs": 8, "kv_len": 1024, "q_len": 1, "page_size": 16},
    **{"num_q_heads": 32, "num_kv_heads": 8, "num_heads": 1, "head_dim": 128, "max_position": 8192},
    **{"hidden": 4096, "in_features": 4096, "out_features": 4096, "intermediate": 14336, "vocab_size": 128256},
    **{"num_states": 4, "num_top": 0, "num_history": 0, "num_copies": 8, "num_src_pages": 64, "num_dst_pages": 64},
}
DEFAULT_DTYPES = {"q": "bfloat16", "k_pages": "bfloat16", "weight": "bf16", "k": "float32"}
# What a parameter of `sample` holds where the call is plain.
OFF = {"top_p": 1.0, "repetition": 1.0}


def run(args: argparse.Namespace) -> int:
    """Print ops.explain() of a call that is described, not computed."""
    from pagedserve import ops

    if args.op not in SPECS:
        raise InvalidInput(f"there is no op {args.op!r}; the ops are {', '.join(SPECS)}")
    call = Call(SPECS[args.op], dict(_key_value(text) for text in args.shape))
    console = Console()
    console.print(f"{args.op}: {SPECS[args.op].formula}")
    console.print(f"  {call.describe()}")
    console.print(str(ops.explain(args.op, call.inputs())))
    return 0


def _key_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key or not value:
        raise InvalidInput(f"--shape takes KEY=VALUE, as in num_seqs=32 or k_pages=int8; got {text!r}")
    return key, value


class Call:
    """A call of an op: sizes of its axes, dtypes of its tensors, values of its scalars.

    Args:
        spec: the op's.
        given: what --shape says: a size, a tensor's dtype ("yes" for an optional tensor of its usual dtype), a scalar.

    Raises:
        InvalidInput: a key is not the op's, or a value cannot be; the message lists what can.
    """

    def __init__(self, spec: Any, given: dict[str, str]) -> None:
        self._spec = spec
        self._tensors = {entry.name: entry for entry in spec.tensors if not getattr(entry, "made", False)}
        self._scalars = {scalar.name: scalar for scalar in spec.scalars}
        axes = {name for entry in self._tensors.values() for axis in entry.axes for name in axis.names}
        if "kv_lens" in self._tensors:
            axes |= {"kv_len", "q_len", "num_seqs"}
        if spec.name == "copy_pages":
            axes |= {"page_size", "num_kv_heads", "head_dim"}
        known = [*sorted(axes), *self._tensors, *(name for name in self._scalars if name not in axes)]
        self._dtypes: dict[str, str] = {}
        self._values: dict[str, float] = {}
        sizes: dict[str, int] = {}
        for key, value in given.items():
            if key in axes:
                sizes[key] = _whole(key, value)
            elif key in self._tensors:
                self._dtypes[key] = value
            elif key in self._scalars:
                self._values[key] = _number(key, value)
            else:
                raise InvalidInput(f"{spec.name} has no {key!r}; --shape knows {', '.join(known)}")
        self._sizes = {name: size for name, size in _complete({**sizes, **self._values}).items() if name in axes}

    def describe(self) -> str:
        """Sizes, dtypes and scalars in one line."""
        dtypes = {
            name: self._dtype(entry)
            for name, entry in self._tensors.items()
            if name in (*self._spec.dispatch, "weight")
        }
        words = {**self._sizes, **dtypes, **{k: v for k, v in self._dtypes.items() if k not in dtypes}, **self._values}
        return " ".join(f"{key}={value}" for key, value in words.items())

    def inputs(self) -> dict[str, Any]:
        """Arguments for ops.explain: uninitialised tensors, index tensors that hold what is legal."""
        arguments: dict[str, Any] = {}
        try:
            for name, entry in self._tensors.items():
                if not getattr(entry, "optional", False) or name in self._dtypes or self._scales(name):
                    arguments[name] = self._tensor(entry)
        except (RuntimeError, TypeError, MemoryError) as error:  # TypeError: a size beyond 64 bits
            reason = str(error).partition("\n")[0]
            raise InvalidInput(f"the tensors of this call cannot be made here ({reason}); give smaller sizes") from None
        return {**arguments, **self._values, **{k: self._sizes[k] for k in self._scalars if k in self._sizes}}

    def _scales(self, name: str) -> bool:
        """Whether this is a tensor that the pages' dtype asks for."""
        return name in ("k_scales", "v_scales") and self._dtype(self._tensors["k_pages"]) in QUANTISED

    def _shape(self, entry: Any) -> list[int]:
        shape = []
        for axis in entry.axes:
            product = axis.factor
            for name in axis.names:
                product *= self._sizes[name]
            shape.append(product + axis.plus)
        if getattr(entry, "any_further", False):
            shape += [self._sizes[name] for name in ("page_size", "num_kv_heads", "head_dim")]
        if self._dtype(entry) in PACKED:
            shape[-1] //= PACKED[self._dtype(entry)]
        return shape

    def _dtype(self, entry: Any) -> str:
        """A dtype's name, or a weight's format."""
        allowed = getattr(entry, "formats", None) or entry.dtypes
        if allowed[0][0] in "=^":  # another tensor's dtype, or that of its arithmetic
            other = self._dtype(self._tensors[allowed[0][1:]])
            return "float32" if allowed[0][0] == "^" and other != "float64" else other
        dtype = self._dtypes.get(entry.name, "yes")
        if dtype == "yes":
            default = DEFAULT_DTYPES.get(entry.name, "")
            return default if default in allowed else str(allowed[0])
        if dtype not in allowed:
            raise InvalidInput(f"{self._spec.name}: {entry.name} cannot be {dtype}; it can be {', '.join(allowed)}")
        return dtype

    def _tensor(self, entry: Any) -> Any:
        import torch

        shape, dtype = self._shape(entry), self._dtype(entry)
        if hasattr(entry, "formats"):
            return _weight(dtype, shape)
        made = torch.empty(shape, dtype=torch.uint8 if dtype == "int4" else getattr(torch, dtype))
        values = self._index_values(entry.name)
        if values is not None:
            return made.copy_(torch.as_tensor(values).expand(shape))
        if dtype in ("int32", "int64") or entry.name in OFF or shape == [self._sizes.get("num_rows")]:
            return made.fill_(OFF.get(entry.name, 0))
        return made

    def _index_values(self, name: str) -> Any:
        import torch

        sizes = self._sizes
        if name == "kv_lens":
            return sizes["kv_len"]
        if name == "page_table":
            shape = sizes["num_seqs"], sizes["max_pages"]
            return torch.arange(shape[0] * shape[1]).reshape(shape) % max(sizes["num_pages"], 1)
        if name == "q_starts":
            return torch.arange(sizes["num_seqs"] + 1) * sizes["q_len"]
        return None


def _complete(given: dict[str, int]) -> dict[str, int]:
    """Every size: those given, those that follow, and the usual ones."""
    sizes = {**SIZES, **given}
    sizes.setdefault("num_tokens", sizes["num_seqs"] * sizes["q_len"])
    sizes.setdefault("num_rows", sizes["num_seqs"])
    sizes.setdefault("rotary_dim", sizes["head_dim"])
    sizes.setdefault("max_pages", max(1, -(-sizes["kv_len"] // max(sizes["page_size"], 1))))
    sizes.setdefault("num_pages", sizes["num_seqs"] * sizes["max_pages"])
    heads = (max(1, int(sizes[name])) for name in ("num_q_heads", "num_kv_heads", "head_dim", "q_len"))
    sizes.setdefault("workspace_bytes", _workspace(sizes["num_seqs"], sizes["kv_len"], *heads))
    return sizes


def _workspace(num_seqs: int, kv_len: int, num_q_heads: int, num_kv_heads: int, head_dim: int, q_len: int) -> int:
    num_q_heads = max(num_q_heads, num_kv_heads)  # what does not fit is the op's to say
    return workspace_bytes(num_seqs, num_q_heads, num_kv_heads, head_dim, max_kv_tokens=num_seqs * kv_len, q_len=q_len)


def _weight(format: str, shape: list[int]) -> Any:
    import torch

    from pagedserve.ops import Weight

    rows, columns = shape
    if format in ("f32", "bf16"):
        return Weight(format, torch.empty(rows, columns, dtype=torch.float32 if format == "f32" else torch.bfloat16))
    scales = torch.empty(rows, columns // 32)
    if format == "q8":
        return Weight("q8", torch.empty(rows, columns, dtype=torch.int8), scales)
    return Weight("q4", torch.empty(rows, columns // 2, dtype=torch.uint8), scales, scales)


def _whole(key: str, text: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise InvalidInput(f"{key} is {text!r}; give a whole number from 0 to 18 digits")
    return int(text)


def _number(key: str, text: str) -> float:
    words = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
    try:
        number = words[text.lower()] if text.lower() in words else float(text)
    except ValueError:
        raise InvalidInput(f"{key} is {text!r}; give a number") from None
    return int(number) if number.is_integer() else number
