# SPDX-License-Identifier: Apache-2.0
"""Runs one call on a backend, on the reference, and on the reference in float64: errors must keep to the budget."""

import copy
from typing import Any

import torch
from torch import Tensor

from pagedserve import ops
from pagedserve.specs import SPECS, Case, OpSpec, TensorSpec

EXACT = (torch.int8, torch.float8_e4m3fn, torch.int32, torch.int64, torch.uint8, torch.bool)


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


def results(op: str, arguments: dict[str, Any], backend: str) -> dict[str, Tensor]:
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


def check_backend(op: str, case: Case, arguments: dict[str, Any], backend: str) -> None:
    """Fails where a backend is further from the float64 reference than the op's budget allows."""
    spec = SPECS[op]
    oracle = results(op, in_float64(spec, copied(arguments)), "reference")
    plain = results(op, copied(arguments), "reference")
    got = results(op, copied(arguments), backend)
    assert got.keys() == oracle.keys()
    for name, tensor in got.items():
        if plain[name].dtype in EXACT:
            same = torch.equal(_bytes(tensor), _bytes(plain[name]))
            assert same, f"{case.id}: {name} differs from the reference"
        else:
            compare(spec, f"{case.id}: {name}", tensor, plain[name], oracle[name])


def compare(spec: OpSpec, what: str, got: Tensor, plain: Tensor, oracle: Tensor) -> None:
    """NaN and infinities first, then |error| against 2 x plain torch's error + rounding."""
    assert got.dtype == plain.dtype
    oracle = oracle.to(torch.float64)
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(got), kind(oracle)), f"{what}: {kind.__name__} at other places than the reference"
    finite = torch.isfinite(oracle)
    got, plain, oracle = got[finite].double(), plain[finite].double(), oracle[finite]
    if oracle.numel() == 0:
        return
    eps = torch.finfo(torch.float32 if plain.dtype == torch.float64 else plain.dtype).eps
    torch_error = float((plain - oracle).abs().max())
    floor = spec.budget.floor_eps * eps * float(oracle.abs().max())
    error = float((got - oracle).abs().max())
    budget = spec.budget.times_torch * torch_error + floor
    assert error <= budget, f"{what}: error {error:.3g}, budget {budget:.3g} (plain torch {torch_error:.3g})"


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int8) if tensor.dtype == torch.float8_e4m3fn else tensor
