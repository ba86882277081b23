# SPDX-License-Identifier: Apache-2.0
"""Judges one call of a backend by the reference in float64: the errors must keep to the op's budget."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from pagedserve import ops
from pagedserve.specs import SPECS, OpSpec, TensorSpec

EXACT = (torch.int8, torch.float8_e4m3fn, torch.int32, torch.int64, torch.uint8, torch.bool)
LSE = dict.fromkeys(("paged_decode", "paged_prefill", "merge_states"), ("lse", "out_lse", "result 1"))
Results = dict[str, Tensor]


def copied(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same call on memory of its own, strides and poison included."""
    return {name: copy.deepcopy(value) if isinstance(value, Tensor) else value for name, value in arguments.items()}


def in_float64(spec: OpSpec, arguments: dict[str, Any]) -> dict[str, Any]:
    """The same call with every tensor that may be float64 in float64."""
    wide = dict(arguments)
    for entry in spec.tensors:
        value = arguments.get(entry.name)
        if not isinstance(entry, TensorSpec) or not isinstance(value, Tensor) or value.dtype in EXACT:
            continue
        if "float64" in entry.dtypes or entry.dtypes[0][0] in "=^":
            wide[entry.name] = value.double()
    return wide


def results(op: str, arguments: dict[str, Any], backend: str) -> Results:
    """What a call returns and what it writes."""
    spec = SPECS[op]
    options = {"return_lse": True} if op in ("paged_decode", "paged_prefill") else {}
    returned = getattr(ops, op)(**arguments, **options, backend=backend)
    returned = returned if isinstance(returned, tuple) else (returned,)
    found = {f"result {place}": value for place, value in enumerate(returned) if value is not None}
    for entry in spec.tensors:
        if isinstance(entry, TensorSpec) and entry.mutated and isinstance(arguments.get(entry.name), Tensor):
            found[entry.name] = arguments[entry.name]
    return found


def disagreement(op: str, arguments: dict[str, Any], got: Results) -> str | None:
    """What is wrong with the results of a call with these arguments; None where all keep to the budget."""
    spec = SPECS[op]
    oracle = results(op, in_float64(spec, copied(arguments)), "reference")
    plain = results(op, copied(arguments), "reference")
    if got.keys() != oracle.keys():
        return f"gives {', '.join(got)} in place of {', '.join(oracle)}"
    for name, tensor in got.items():
        if plain[name].dtype in EXACT:
            wrong = difference(spec, name, tensor, plain[name])
        else:
            wrong = error_beyond_budget(spec, name, tensor, plain[name], oracle[name])
        if wrong:
            return wrong
    return None


def difference(spec: OpSpec, name: str, got: Tensor, plain: Tensor) -> str | None:
    """What sets whole numbers or codes apart from plain torch's, beyond what the budget allows codes."""
    if got.dtype != plain.dtype or got.shape != plain.shape:
        return f"{name} is {got.dtype} {list(got.shape)} in place of {plain.dtype} {list(plain.shape)}"
    if torch.equal(as_bytes(got), as_bytes(plain)):
        return None
    if spec.budget.code_steps and name in ("k_pages", "v_pages"):
        apart = (code_order(got) - code_order(plain)).abs()
        if int(apart.max()) <= spec.budget.code_steps and int((apart > 0).sum()) * 100 <= apart.numel():
            return None
    return f"{name} differs from the reference"


def code_order(codes: Tensor) -> Tensor:
    """Codes of pages as whole numbers that lie as their values do, neighbours 1 apart."""
    if codes.dtype == torch.uint8:  # int4: two a byte
        return torch.stack((codes & 15, codes >> 4)).int()
    if codes.dtype == torch.float8_e4m3fn:
        bits = codes.view(torch.uint8).int()
        return torch.where(bits < 128, bits, 128 - bits)
    return codes.int()


def error_beyond_budget(spec: OpSpec, what: str, got: Tensor, plain: Tensor, oracle: Tensor) -> str | None:
    """NaN and infinities first, then |error| against 2 x plain torch's error + rounding."""
    if got.dtype != plain.dtype:
        return f"{what} is {got.dtype} in place of {plain.dtype}"
    rounding = torch.finfo(plain.dtype).eps / 2 + spec.budget.floor_eps * torch.finfo(torch.float32).eps
    oracle = oracle.to(torch.float64)
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        if not torch.equal(kind(got), kind(oracle)):
            return f"{what}: {kind.__name__} at other places than the reference"
    finite = torch.isfinite(oracle)
    got, plain, oracle = got[finite].double(), plain[finite].double(), oracle[finite]
    if oracle.numel() == 0:
        return None
    torch_error = float((plain - oracle).abs().max())
    largest = float(oracle.abs().max())
    if what in LSE.get(spec.name, ()):
        largest = max(largest, 1.0)  # a maximum plus a logarithm: their rounding stays where they cancel
    error = float((got - oracle).abs().max())
    budget = spec.budget.times_torch * torch_error + rounding * largest
    if error <= budget:
        return None
    return f"{what}: error {error:.3g}, budget {budget:.3g} (plain torch {torch_error:.3g})"


def as_bytes(tensor: Tensor) -> Tensor:
    """A tensor whose bits can be compared, whatever its dtype."""
    return tensor.contiguous().view(torch.uint8) if tensor.numel() else tensor
